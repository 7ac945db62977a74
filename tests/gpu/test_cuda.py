"""On a CUDA device: runs of both kinds, resuming, the sampler, and mixed precision. Skipped where there is none."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import Linear
from torch.nn.functional import cross_entropy

from remask import generate, kernels, load
from remask.analysis.profile import profile
from remask.config import (
    CanvasConfig,
    DecodingConfig,
    HeldOutConfig,
    LoraConfig,
    PolicyEngineConfig,
    ProfileConfig,
    ReferenceConfig,
    RlConfig,
    RolloutConfig,
    SftConfig,
    TrainerConfig,
)
from remask.diffusion.token_loss import losses_and_errors, read_tokens
from remask.models import adapters, fused
from remask.models.lora import add_adapter
from remask.rl.run import run_rl
from remask.sft.run import run_sft

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture
def config(tmp_path: Path) -> SftConfig:
    return SftConfig(
        data="generated:sudoku+countdown:64",
        eval_data="generated:sudoku+countdown:16",
        objective="gift",
        output_dir=str(tmp_path / "run"),
        device="cuda",
        canvas=CanvasConfig(max_length=160),
        trainer=TrainerConfig(learning_rate=5e-4, num_train_epochs=2, save_steps=3, report_to=("none",)),
    )


@pytest.mark.parametrize("bf16", [False, True])
def test_a_run_on_cuda_finishes_and_loads(config: SftConfig, bf16: bool) -> None:
    outcome = run_sft(replace(config, trainer=replace(config.trainer, bf16=bf16)), quiet=True)
    assert outcome.finished
    model, _ = load(outcome.folder, device="cuda")
    assert next(model.parameters()).is_cuda


def test_a_profile_on_cuda_adds_up_and_weighs_its_parts(config: SftConfig) -> None:
    settings = {f.name: getattr(config, f.name) for f in fields(SftConfig)}
    record = profile(ProfileConfig(**settings, steps=3))
    for step in record["steps"]:
        assert sum(step["parts"].values()) == pytest.approx(step["seconds"], rel=1e-6)
    assert record["peak_bytes"]["backward"] >= record["bytes"]["gradients"] > 0
    assert record["hardware"]["gpu"]


def test_lora_and_gradient_checkpointing_on_cuda(config: SftConfig) -> None:
    changed = replace(
        config, lora=LoraConfig(rank=8), trainer=replace(config.trainer, bf16=True, gradient_checkpointing=True)
    )
    assert run_sft(changed, quiet=True).finished


@pytest.mark.parametrize("objective", ["espo", "diffu-grpo", "coupled-grpo", "wd1"])
@pytest.mark.parametrize("adapters", [0, 8])
def test_reinforcement_learning_on_cuda(objective: str, adapters: int, tmp_path: Path) -> None:
    """In mixed precision with gradient checkpointing: at the first inner update ratios are 1, and losses are finite."""
    run = run_rl(
        RlConfig(
            objective=objective,
            max_steps=4,
            problems=50,
            output_dir=str(tmp_path / "run"),
            device="cuda",
            rollout=RolloutConfig(
                prompts=4, completions=4, inner_updates=2, decoding=DecodingConfig(temperature=1.0, steps=8)
            ),
            held_out=HeldOutConfig(n=8),
            reference=ReferenceConfig(sync_every=3),
            lora=LoraConfig(rank=adapters),
            trainer=PolicyEngineConfig(
                learning_rate=1e-4, bf16=True, gradient_checkpointing=True, logging_steps=1, report_to=("none",)
            ),
        ),
        quiet=True,
    )
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert len(steps) == 4
    assert all(math.isfinite(row["loss"]) for row in steps)
    if objective != "wd1":
        assert [row["ratio_max"] for row in steps[::2]] == [1.0, 1.0]


def test_adapters_on_4_bit_weights(config: SftConfig) -> None:
    pytest.importorskip("bitsandbytes")
    outcome = run_sft(replace(config, lora=LoraConfig(rank=8), quantization="4bit"), quiet=True)
    assert outcome.finished
    assert generate(*load(outcome.folder, device="cuda", quantization="4bit"), ["countdown 4 5 9 -> 9"]).texts


def test_logits_on_cuda_are_those_of_the_cpu() -> None:
    on_cpu, tokenizer = load("tiny", device="cpu")
    on_cuda, _ = load("tiny", device="cuda")
    ids = torch.tensor([tokenizer.encode("countdown 4 5 9 -> 9")])
    with torch.no_grad():
        difference = on_cpu(input_ids=ids).logits - on_cuda(input_ids=ids.cuda()).logits.cpu()
    assert difference.abs().max() < 1e-2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_alone_is_the_row_in_a_batch_on_cuda(temperature: float) -> None:
    model, tokenizer = load("tiny", device="cuda")
    prompts = ["sudoku 2031 0002 0013 3004", "countdown 4 5 9 -> 9", "countdown 1 2 3 -> 6"]
    together = generate(model, tokenizer, prompts, temperature=temperature)
    alone = [generate(model, tokenizer, [p], temperature=temperature, row_seeds=[i]) for i, p in enumerate(prompts)]
    assert together.texts == [one.texts[0] for one in alone]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [7, 1000, 126464])
def test_losses_errors_and_entropies_of_the_kernels_are_the_plain_ones(
    dtype: torch.dtype, vocabulary: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "ON", True)
    generator = torch.Generator("cuda").manual_seed(0)
    logits = (3 * torch.randn(37, vocabulary, device="cuda", generator=generator)).to(dtype)
    targets = torch.randint(vocabulary, (37,), device="cuda", generator=generator)
    logits[0, (targets[0] + 1) % vocabulary] = -torch.inf
    on_cpu, gold = logits.double().cpu(), targets.cpu()
    ce = cross_entropy(on_cpu, gold, reduction="none")
    p = on_cpu.softmax(-1)
    error = p.clone()
    error[torch.arange(37), gold] -= 1
    reading = read_tokens(logits, targets)
    assert torch.allclose(losses_and_errors(logits, targets, overwrite=False).cpu().double(), ce, atol=1e-5)
    assert torch.allclose(reading.nll.cpu().double(), ce, atol=1e-5)
    assert torch.allclose(reading.entropy.cpu().double(), -torch.special.xlogy(p, p).sum(-1), atol=1e-4)
    kept = losses_and_errors(logits, targets, overwrite=True)
    assert torch.allclose(kept.cpu().double(), ce, atol=1e-5)
    assert torch.allclose(logits.cpu().double(), error, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-7)
    logits[1, 2], logits[2, 3] = torch.nan, torch.inf
    assert losses_and_errors(logits, targets, overwrite=False)[1:3].isnan().all()
    assert torch.stack(list(read_tokens(logits, targets)))[:, 1:3].isnan().all()


def reader(mask_id: int) -> Callable[[torch.nn.Module, bool], torch.Tensor]:
    """(network, whether in mixed precision) → losses and gradients on the same rows, in one vector."""
    ids = torch.randint(60, 120, (4, 48), device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    positions = torch.zeros_like(ids, dtype=torch.bool)
    positions[:, 20:40] = True
    hidden = ids.masked_fill(positions, mask_id)

    def read(network: torch.nn.Module, mixed: bool) -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=mixed):
            loss = network(input_ids=hidden, positions=positions, targets=ids[positions]).token_loss
        network.zero_grad()
        loss.mean().backward()
        gradients = (p.grad.float().flatten() for p in network.parameters() if p.requires_grad)
        return torch.cat([loss.detach().float(), *gradients])

    return read


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_fused_layers_have_the_plain_ones_losses_and_gradients(
    autocast: bool, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of float32's: as far from them as plain layers in half precision are, or nearer."""
    pytest.importorskip("liger_kernel")
    model, tokenizer = load("tiny", device="cuda")
    model.requires_grad_(True).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    read = reader(tokenizer.mask_token_id)
    right = read(model, False)
    network = model if autocast else copy.deepcopy(model).bfloat16()
    apart = []
    for on in (False, True):
        monkeypatch.setattr(kernels, "ON", on)
        apart.append((read(network, autocast) - right).norm() / right.norm())
    assert fused.fuses(torch.ones(1, device="cuda", dtype=torch.bfloat16))
    assert 0 < apart[1] < 1.2 * apart[0] + 1e-3


@pytest.mark.parametrize("mixed", [False, True])
def test_adapters_in_half_precision_are_as_near_to_float32s_as_pefts(
    mixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses, and gradients of the adapters, of the same rounded weights."""
    model, tokenizer = load("tiny", device="cuda", dtype="bfloat16")
    model = add_adapter(model, LoraConfig(rank=4, targets=("all-linear",)), base_name="tiny").train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    read = reader(tokenizer.mask_token_id)
    right = read(copy.deepcopy(model).float(), False)
    apart = [(read(model, mixed) - right).norm() / right.norm()]
    monkeypatch.setattr(adapters.LeanAdapter, "forward", lambda self, x: Linear.forward(self, x))
    apart.append((read(model, mixed) - right).norm() / right.norm())
    assert 0 < apart[0] < 1.2 * apart[1] + 1e-3


def test_a_pass_that_nothing_is_asked_of_has_a_gradient_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ON", True)
    model, _ = load("tiny", device="cuda", dtype="bfloat16")
    model.requires_grad_(True)
    ids = torch.full((2, 12), 70, device="cuda")
    nothing = torch.zeros_like(ids, dtype=torch.bool)
    model(input_ids=ids, positions=nothing, targets=ids[nothing]).token_loss.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("mixed", [False, True])
def test_a_packed_batch_is_the_padded_one_in_half_precision(mixed: bool) -> None:
    """By PyTorch's variable-length attention: in bfloat16, and in mixed precision on float32 weights."""
    model, tokenizer = load("tiny", device="cuda", dtype="float32" if mixed else "bfloat16")
    model.requires_grad_(True)
    ids = torch.randint(60, 120, (4, 48), device="cuda")
    attended = torch.ones_like(ids)
    for row in range(4):
        attended[row, : 10 * row] = 0
    positions = (attended != 0) & (torch.rand(ids.shape, device="cuda") < 0.5)
    hidden, targets = ids.masked_fill(positions, tokenizer.mask_token_id), ids[positions]
    lengths: list[int] = []
    model.model.register_forward_pre_hook(
        lambda _, __, named: lengths.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    found = []
    for model.packs in (False, None):
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=mixed):
            loss = model(input_ids=hidden, attention_mask=attended, positions=positions, targets=targets).token_loss
        loss.mean().backward()
        found.append(torch.cat([loss.detach().float(), *(p.grad.float().flatten() for p in model.parameters())]))
    assert lengths == [48, int(attended.sum())]
    assert (found[0] - found[1]).norm() < 0.05 * found[0].norm()
