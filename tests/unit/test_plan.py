"""Plans of training steps: counted as the real step makes its tensors; sharding, arithmetic and what cannot fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, seeded, special
from peft import prepare_model_for_kbit_training
from torch.utils.flop_counter import FlopCounterMode

from remask.analysis.plan import Meter, Need, need
from remask.analysis.quantised import quantise, stored_bytes, weight_bytes
from remask.choices import Quantization
from remask.cli import main
from remask.commands.plan import kept_gib, plan, remedies
from remask.config import LoraConfig, PlanConfig
from remask.diffusion.head import two_pass_cross_entropy
from remask.errors import UserError
from remask.models.llada import LLaDAConfig, LLaDAModelLM
from remask.models.load import load_model
from remask.models.lora import add_adapter
from remask.models.shapes import empty_model, shape_config

ROWS, LENGTH, SCORED = 3, 40, 50


def meta(family: str, tokenizer: Any, *, rank: int = 0) -> Any:
    """A model of the family without weights."""
    model = empty_model(FAMILIES[family](tokenizer).config, "float32")
    return add_adapter(model, LoraConfig(rank=rank), base_name="x") if rank else model.requires_grad_(True)


def step(model: Any, meter: Meter) -> int:
    """A real training step; what its forward pass left."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    with meter:
        hidden = inner.hidden_at(torch.arange(SCORED), input_ids=ids)
        loss = two_pass_cross_entropy(inner.lm_head, hidden, torch.zeros(SCORED, dtype=torch.long)).sum()
        left = meter.now
        loss.backward()
    return left


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("family", ["llada", "dream", "a2d-qwen3"])
def test_what_is_counted_is_what_the_step_makes(family: str, rank: int, checkpointing: bool, tokenizer: Any) -> None:
    planned = need(
        lambda: meta(family, tokenizer, rank=rank),
        rows=ROWS,
        length=LENGTH,
        scored=SCORED,
        checkpointing=checkpointing,
    )
    model = FAMILIES[family](tokenizer).requires_grad_(True)
    if rank:
        model = add_adapter(model, LoraConfig(rank=rank), base_name="x")
    if checkpointing:
        inner = model.get_base_model() if rank else model
        inner.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    meter = Meter()
    left = step(model.train(), meter)
    assert planned.activations == left
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    assert planned.gradients == gradients
    assert planned.working == max(0, meter.peak - left - gradients)
    assert planned.weights == sum(p.nbytes for p in model.parameters())
    assert planned.optimiser == 2 * sum(p.nbytes for p in model.parameters() if p.requires_grad)


def test_checkpointing_leaves_less(tokenizer: Any) -> None:
    kept, less = (
        need(lambda: meta("llada", tokenizer), rows=ROWS, length=LENGTH, scored=SCORED, checkpointing=checkpointing)
        for checkpointing in (False, True)
    )
    assert less.activations < 0.5 * kept.activations
    assert less.flops > kept.flops


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_arithmetic_is_that_which_is_done(family: str, tokenizer: Any) -> None:
    """By torch's counter, with attention written out (it does not know the fused kernel); the step of this test has not
    said what it expects, so that it computes the logits once more.
    """
    planned = need(lambda: meta(family, tokenizer), rows=ROWS, length=LENGTH, scored=SCORED)
    model = FAMILIES[family](tokenizer).requires_grad_(True)
    model.set_attn_implementation("eager")
    counter = FlopCounterMode(display=False)
    with counter:
        step(model, Meter())
    again = 2 * SCORED * model.lm_head.weight.numel()
    assert planned.flops == pytest.approx(counter.get_total_flops() - again, rel=1e-6)


@pytest.mark.parametrize("length", [40, 400])
def test_arithmetic_with_adapters_is_that_which_is_done(length: int, tokenizer: Any) -> None:
    """Of what is not the adapters' own: the same step with adapters of twice the rank tells what that is. The first
    layer's inputs need no gradient, which is not counted out: three of its matrices.
    """
    counts = {}
    for rank in (1, 2):
        model = add_adapter(FAMILIES["llada"](tokenizer), LoraConfig(rank=rank), base_name="x")
        model.get_base_model().set_attn_implementation("eager")
        with FlopCounterMode(display=False) as counter:
            inner = model.get_base_model()
            hidden = inner.hidden_at(torch.arange(length), input_ids=torch.zeros(ROWS, length, dtype=torch.long))
            two_pass_cross_entropy(inner.lm_head, hidden, torch.zeros(length, dtype=torch.long)).sum().backward()
        counts[rank] = counter.get_total_flops()
    planned = need(lambda: meta("llada", tokenizer, rank=1), rows=ROWS, length=length, scored=length)
    first = inner.model.layers[0].self_attn
    inputs = 2 * ROWS * length * sum(m.base_layer.weight.numel() for m in (first.q_proj, first.k_proj, first.v_proj))
    assert planned.flops - inputs == pytest.approx(2 * counts[1] - counts[2], rel=1e-6)


LAYERS = 3


def with_fewer_layers() -> Any:
    """LLaDA-8B's shape with three of its 32 layers, which are all alike."""
    config = shape_config("llada-8b")
    assert config.num_hidden_layers == 32
    config.num_hidden_layers = LAYERS
    return config


def published(**keywords: Any) -> Need:
    def build() -> Any:
        return empty_model(with_fewer_layers(), "bfloat16").requires_grad_(True)

    return need(build, rows=1, length=64, scored=16, **keywords)


@pytest.mark.slow
def test_a_published_shape_by_hand() -> None:
    """LLaDA-8B: 2·126464·4096 + layers·(4·4096² + 3·4096·12288 + 2·4096) + 4096 weights, two bytes each."""
    parameters = 2 * 126464 * 4096 + LAYERS * (4 * 4096**2 + 3 * 4096 * 12288 + 2 * 4096) + 4096
    one = published()
    assert (one.parameters, one.trained) == (parameters, parameters)
    assert (one.weights, one.gradients, one.optimiser) == (2 * parameters, 2 * parameters, 4 * parameters)
    sharded = published(strategy="fsdp", devices=8)
    assert (sharded.weights, sharded.gradients, sharded.optimiser) == (parameters / 4, parameters / 4, parameters / 2)
    layer = 4 * 4096**2 + 3 * 4096 * 12288 + 2 * 4096
    assert sharded.working - one.working == 4 * (2 * 126464 * 4096 + 4096) + 8 * layer
    zero = published(strategy="zero2", devices=8)
    assert (zero.weights, zero.gradients, zero.optimiser) == (2 * parameters, parameters / 4, parameters / 2)
    assert zero.working == one.working


def test_quantised_weights_by_hand() -> None:
    """nf4: half a byte a weight, and of each 64 a float32; doubly: of each 64 a byte, and of each 256 of these a
    float32; the tables of 16 (and 256, and a mean) float32. 8 bits: a byte a weight, a float32 a row.
    """
    n = 4096 * 12288
    assert stored_bytes(n, 12288, "4bit") == n // 2 + 4 * n // 64 + 64
    assert 8 * (stored_bytes(n, 12288, "4bit") - 64) / n == 4.5
    assert stored_bytes(n, 12288, "4bit-double") == n // 2 + n // 64 + 4 * n // (64 * 256) + 1092
    assert 8 * (stored_bytes(n, 12288, "4bit-double") - 1092) / n == 4 + 8 / 64 + 32 / (64 * 256) == 4.126953125
    assert stored_bytes(n, 12288, "8bit") == n + 4 * 12288
    assert stored_bytes(65, 1, "4bit") == 33 + 2 * 4 + 64
    assert stored_bytes(65, 1, "4bit-double") == 33 + 2 + 4 + 1092


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["4bit", "4bit-double", "8bit"])
def test_a_published_shape_on_quantised_weights_by_hand(quantization: Quantization, tmp_path: Path) -> None:
    """LLaDA-8B with adapters of rank 8 on queries, keys and values: embedding, head, norms and adapters are float32."""
    with_fewer_layers().save_pretrained(tmp_path)
    record = plan(PlanConfig(model=str(tmp_path), length=16, lora_rank=8, quantization=quantization))
    each = {"4bit": 4096**2 * 9 // 16 + 64, "8bit": 4096**2 + 4 * 4096}
    each["4bit-double"] = 4096**2 // 2 + 4096**2 // 64 + 4096**2 // 4096 + 1092
    wide = {"4bit": 4096 * 12288 * 9 // 16 + 64}
    wide["4bit-double"] = 4096 * 12288 // 2 + 4096 * 12288 // 64 + 4096 * 12288 // 4096 + 1092
    up, down = (wide.get(quantization, 4096 * 12288 + 4 * outputs) for outputs in (12288, 4096))
    rest = 2 * 126464 * 4096 + LAYERS * 2 * 4096 + 4096
    adapters = LAYERS * 3 * 8 * 2 * 4096
    whole = LAYERS * (4 * each[quantization] + 2 * up + down) + 4 * rest + 4 * adapters
    assert record["memory_gib"]["weights"] * 2**30 == whole
    assert record["memory_gib"]["gradients"] * 2**30 == 4 * adapters
    assert record["trained"] == adapters
    layer = 4 * 4096**2 + 3 * 4096 * 12288 + 2 * 4096
    assert record["parameters"] == 2 * 126464 * 4096 + LAYERS * layer + 4096 + adapters


@pytest.mark.parametrize("quantization", ["4bit", "4bit-double", "8bit"])
def test_quantised_layers_take_what_bitsandbytes_stores(
    quantization: Quantization, tokenizer: Any, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'remask[quantization]'")
    folder = save_llada(tmp_path, tokenizer)
    model = load_model(str(folder), quantization=quantization)
    found = 0
    for module in model.modules():
        if type(module).__name__ == "Linear8bitLt":
            found += module.weight.data.nbytes + module.weight.SCB.nbytes
        elif type(module).__name__ == "Linear4bit":
            state = module.weight.quant_state
            held = [module.weight.data, state.absmax, state.code]
            held += [state.offset, state.state2.absmax, state.state2.code] if state.nested else []
            found += sum(tensor.nbytes for tensor in held)
    counted = quantise(empty_model(model.config, "float32"), quantization)
    rest = sum(p.nbytes for name, p in counted.named_parameters() if "proj" not in name)
    assert weight_bytes(counted) - rest == found > 0


def test_a_step_on_8_bits_leaves_what_is_counted(tokenizer: Any, tmp_path: Path) -> None:
    """The one that trains on a CPU. Beside the inputs its kernels keep their scales, which are small."""
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'remask[quantization]'")
    folder = save_llada(tmp_path, tokenizer)
    model = prepare_model_for_kbit_training(load_model(str(folder), quantization="8bit"), False)
    left = step(add_adapter(model, LoraConfig(rank=4), base_name="x").train(), Meter())

    def build() -> Any:
        counted = quantise(empty_model(model.config, "float32"), "8bit")
        return add_adapter(counted, LoraConfig(rank=4), base_name="x")

    planned = need(build, rows=ROWS, length=LENGTH, scored=SCORED)
    assert planned.activations == pytest.approx(left, rel=0.02)


def save_llada(folder: Path, tokenizer: Any) -> Path:
    """Of widths that the kernels take."""
    sizes = {"d_model": 128, "n_layers": 2, "n_heads": 4, "mlp_hidden_size": 192}
    seeded(lambda: LLaDAModelLM(LLaDAConfig(**sizes, **special(tokenizer)))).save_pretrained(folder)
    return folder


def test_a_mixture_is_refused(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="depends on its routing"):
        need(lambda: meta("llada-moe", tokenizer), rows=1, length=8, scored=4)


def test_the_command(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "plan.json"
    assert main(["plan", "--model", "tiny", "--length", "256", "--total-rows", "1000", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "1,000 rows:" in out
    record = json.loads(file.read_text())
    assert record["fits"]
    assert record["total_gib"] == pytest.approx(sum(record["memory_gib"].values()))
    assert record["hours"] == pytest.approx(1000 * record["seconds_per_step"] / 3600)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "2"], "do not fit into the 72.5 GiB"),
        (["--model", "nothing-8b"], "nothing-8b"),
        (["--efficiency", "0"], "give a number in (0, 1]"),
        (["--gpus", "0"], "give 1 or more"),
        (["--peak-tflops", "0"], "peak_tflops = 0.0; give more than 0"),
        (["--peak-tflops", "nan"], "peak_tflops = nan"),
        (["--memory-gib", "-1"], "memory_gib = -1.0; give more than 0"),
        (["--memory-gib", "nan"], "memory_gib = nan"),
        (["--memory-gib", "inf"], "memory_gib = inf"),
        (["--reserve-gib", "nan"], "reserve_gib = nan; give 0 or more, and below 74.5"),
        (["--reserve-gib", "-1"], "reserve_gib = -1.0"),
        (["--memory-gib", "8", "--reserve-gib", "8"], "reserve_gib = 8.0; give 0 or more, and below 8.0"),
        (["--total-rows", "-5"], "total_rows = -5; give 1 or more"),
        (["--quantization", "4bit"], "weights of 4bit cannot be trained; train adapters on them: --lora-rank 64"),
        (["--quantization", "8bit", "--lora-rank", "8", "--gpus", "2", "--strategy", "fsdp"], "are not sharded"),
    ],
)
def test_plans_that_cannot_be(arguments: list[str], message: str, capsys: Any) -> None:
    assert main(["plan", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_advice_is_what_helps_on_that_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """On one GPU no sharding; what is named fits when it is planned."""
    one = PlanConfig(model="tiny", memory_gib=0.02, reserve_gib=0.0, rows=8, length=160)
    flags = [flag for flag, _ in remedies(one)]
    assert not any("--strategy" in flag for flag in flags)
    assert any("--strategy fsdp" in flag for flag, _ in remedies(replace(one, gpus=2)))
    small = ["--memory-gib", "0.02", "--reserve-gib", "0", "--rows", "8", "--length", "160"]
    assert main(["plan", "--model", "tiny", *small]) == 2
    said = capsys.readouterr().err
    first = said.partition("this would fit: ")[2].partition(";")[0].strip()
    assert first in flags
    assert plan(dict(remedies(one))[first])["fits"]
    assert not plan(one)["fits"]


@pytest.mark.slow
def test_a_quantised_base_is_offered_where_nothing_else_fits(
    tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """27 MB of linear layers in bfloat16, in 24 MiB. Each way that is named fits when it is planned."""
    sizes = {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 1536}
    LLaDAConfig(
        **{LLaDAConfig.attribute_map[key]: n for key, n in sizes.items()}, **special(tokenizer)
    ).save_pretrained(tmp_path)
    small = PlanConfig(model=str(tmp_path), memory_gib=24 / 1024, reserve_gib=0.0, length=16)
    assert not plan(replace(small, lora_rank=8, gradient_checkpointing=True))["fits"]
    asked = ["--memory-gib", str(24 / 1024), "--reserve-gib", "0", "--length", "16"]
    assert main(["plan", "--model", str(tmp_path), *asked]) == 2
    ways = capsys.readouterr().err.strip().partition("this would fit: ")[2].split("; or ")
    for way in ways:
        assert "--lora-rank 64" in way
        assert "--quantization" in way
        assert plan(dict(remedies(small))[way])["fits"]


def test_what_is_kept_is_part_of_the_plan() -> None:
    for config in (
        PlanConfig(model="tiny", length=16),
        PlanConfig(model="tiny", length=16, gpus=4, strategy="zero2"),
        PlanConfig(model="tiny", length=16, lora_rank=4, quantization="4bit-double"),
    ):
        memory = plan(config)["memory_gib"]
        assert kept_gib(config) == memory["weights"] + memory["gradients"] + memory["optimiser"]


def test_only_a_frozen_base_is_quantised() -> None:
    for config in (PlanConfig(), PlanConfig(gpus=4), PlanConfig(lora_rank=8), PlanConfig(gpus=4, strategy="zero2")):
        ways = remedies(config)
        assert any(changed.quantization == "4bit" for _, changed in ways) == (config.strategy == "ddp")
        for flags, changed in ways:
            if changed.quantization:
                assert changed.lora_rank
                assert changed.strategy == "ddp"
                assert flags.count("--quantization") == 1
    already = PlanConfig(lora_rank=8, quantization="8bit")
    assert not any("--quantization" in flags for flags, _ in remedies(already))
