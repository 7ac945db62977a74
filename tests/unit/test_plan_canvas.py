"""Plans of DiffusionGemma's training steps: counted as the real step makes its tensors, and its arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import gemma
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from remask.analysis.plan import Meter, need
from remask.analysis.plan_canvas import EvenExperts, step_flops, step_loss, with_even_experts
from remask.cli import main
from remask.commands.plan import remedies
from remask.config import LoraConfig, PlanConfig
from remask.diffusion.corruption import Canvas
from remask.diffusion.reader import ModelReader
from remask.models.lora import add_adapter
from remask.models.patches import derive
from remask.models.shapes import empty_model
from remask.training.model import all_trained

pytestmark = pytest.mark.slow  # each of them trains, or walks a model

ROWS, LENGTH = 3, 40


@pytest.fixture
def folder(tokenizer: Any, tmp_path: Path) -> Path:
    gemma(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def meta(tokenizer: Any, rank: int = 0) -> Any:
    model = empty_model(gemma(tokenizer).config, "float32")
    return add_adapter(model, LoraConfig(rank=rank), base_name="x") if rank else all_trained(model)


@pytest.mark.parametrize("rank", [0, 4])
def test_what_is_counted_is_what_the_step_makes(rank: int, tokenizer: Any) -> None:
    planned = need(lambda: meta(tokenizer, rank), rows=ROWS, length=LENGTH, scored=1)
    model = gemma(tokenizer).train()
    model = add_adapter(model, LoraConfig(rank=rank), base_name="x") if rank else all_trained(model)
    inner = model.get_base_model() if rank else model
    with_even_experts(inner)
    meter = Meter()
    with meter:
        loss = step_loss(inner, torch.zeros(ROWS, LENGTH, dtype=torch.long))
        left = meter.now
        loss.backward()
    assert planned.activations == pytest.approx(left, rel=0.01)
    weights = sum(p.nbytes for p in model.parameters())
    assert planned.weights == weights
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    assert (planned.gradients, planned.optimiser) == (trained, 2 * trained)
    assert planned.total >= weights + 3 * trained + left


def test_a_real_step_needs_no_more(tokenizer: Any) -> None:
    """One whose experts are chosen by the router, and whose rows are all conditioned on themselves."""
    planned = need(lambda: meta(tokenizer), rows=ROWS, length=LENGTH, scored=1)
    model = all_trained(gemma(tokenizer).train())
    ids = torch.randint(5, 200, (ROWS, LENGTH))
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    answer = everywhere.clone()
    answer[:, :8] = False
    where = everywhere.clone()
    where[:, :-8] = False
    following = everywhere.clone()
    following[:, 0] = False
    meter = Meter()
    with meter:
        said = ModelReader(model).call(
            ids,
            Canvas(ids, everywhere, answer, answer),
            where,
            targets=ids[where],
            conditioned=torch.ones(ROWS, dtype=torch.bool),
            scored_clean=following,
        )
        left = meter.now
        (said.token_loss.sum() + said.clean_loss.sum()).backward()
    assert left == pytest.approx(planned.activations, rel=0.15)


@pytest.mark.parametrize("again", [False, True])
def test_the_arithmetic_is_what_torch_counts(again: bool, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a step all of whose rows are conditioned, with a window that all fits into."""
    monkeypatch.setattr("remask.analysis.plan_canvas.CONDITIONED", 1.0)
    model = all_trained(gemma(tokenizer, sliding_window=128).train())
    with_even_experts(model)
    if again:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # whose products torch counts
        step_loss(model, torch.zeros(4, 64, dtype=torch.long)).backward()
    planned = step_flops(model, 4, 64, frozen=False, again=again)
    assert planned == pytest.approx(counter.get_total_flops(), rel=0.12)


def test_even_experts_compute_what_experts_compute_of_even_choices(tokenizer: Any) -> None:
    """Where token t's choices are the experts that its rows are given to anyway."""
    experts = gemma(tokenizer).model.decoder.layers[0].experts
    hidden, weights = torch.randn(8, 32), torch.rand(8, 2)
    chosen = (torch.arange(16) // 4).view(8, 2)
    expected = experts(hidden, chosen, weights)
    derive("planned-experts", experts, EvenExperts)
    assert torch.allclose(experts(hidden, chosen, weights), expected, atol=1e-5)


def test_plan(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    assert main(["plan", "--model", str(folder), "--length", "64", "--rows", "2", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert 0 < found["trained"] < found["parameters"]
    assert found["fits"]
    for option, said in (
        (["--strategy", "fsdp", "--gpus", "2"], "encoder and decoder share their weights, which are not sharded"),
        (["--quantization", "4bit", "--lora-rank", "4"], "a diffusion_gemma is not quantised"),
    ):
        assert main(["plan", "--model", str(folder), *option]) == 2
        assert said in capsys.readouterr().err


def test_what_would_fit_is_looked_for_among_what_works(folder: Path) -> None:
    flags = " ".join(flags for flags, _ in remedies(PlanConfig(model=str(folder), gpus=2, dtype="float32")))
    assert "--lora-rank" in flags
    assert "fsdp" not in flags
    assert "quantization" not in flags
