"""Against the published implementations, on tiny checkpoints in the official layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

import remask.models  # noqa: F401  (registers the layout)
from remask.diffusion.corruption import Canvas
from remask.diffusion.importance import probe_signal
from remask.diffusion.noise import Noise
from remask.diffusion.objective import corrupt, denominator, row_losses, scored_positions
from remask.diffusion.reader import LogitsReader
from remask.diffusion.token_loss import token_cross_entropy
from remask.sampling import denoise
from remask.sft.presets import resolve

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def checkpoint(shared: Path) -> Path:
    return shared / "golden" / "llada_tiny"


@pytest.fixture
def model(checkpoint: Path) -> Any:
    return AutoModelForMaskedLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


# ---- the model ------------------------------------------------------------------------------------------------


def family(shared: Path, name: str) -> tuple[Any, Path, dict[str, torch.Tensor]]:
    """A model, its folder and its expected logits, aligned: `logits[:, i]` predicts token i."""
    folder = shared / "golden" / name
    expected = load_file(folder / "expected_logits.safetensors")
    if "raw_logits_unshifted" in expected:
        raw = expected["raw_logits_unshifted"]
        expected["logits"] = torch.cat([raw[:, :1], raw[:, :-1]], dim=1)
    model: Any = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, folder, expected


FAMILIES = pytest.mark.parametrize("name", ["llada_tiny", "dream_tiny"])


@FAMILIES
def test_logits(name: str, shared: Path) -> None:
    model, _, expected = family(shared, name)
    with torch.no_grad():
        logits = model(input_ids=expected["input_ids"]).logits
    assert logits.shape == (3, 24, 160)
    assert (logits - expected["logits"]).abs().max() <= 1e-5


@FAMILIES
def test_logits_at_chosen_positions_alone(name: str, shared: Path) -> None:
    model, _, expected = family(shared, name)
    positions = torch.rand(3, 24, generator=torch.Generator().manual_seed(0)) < 0.3
    with torch.no_grad():
        logits = model(input_ids=expected["input_ids"], positions=positions).logits
    assert (logits - expected["logits"][positions]).abs().max() <= 1e-5


@FAMILIES
def test_left_padding_does_not_move_a_row(name: str, shared: Path) -> None:
    model, _, expected = family(shared, name)
    padded = torch.nn.functional.pad(expected["input_ids"], (5, 0), value=7)
    attended = torch.nn.functional.pad(torch.ones_like(expected["input_ids"]), (5, 0))
    with torch.no_grad():
        logits = model(input_ids=padded, attention_mask=attended).logits
    assert (logits[:, 5:] - expected["logits"]).abs().max() <= 1e-4


@FAMILIES
def test_saving_gives_back_the_official_layout(name: str, shared: Path, tmp_path: Path) -> None:
    model, checkpoint, expected = family(shared, name)
    model.save_pretrained(tmp_path)
    before, after = load_file(checkpoint / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert set(before) == set(after)
    for key, tensor in before.items():
        assert torch.equal(tensor, after[key]), key
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert (file.metadata() or {}).get("format") == "pt"
    old = json.loads((checkpoint / "config.json").read_text())
    new = json.loads((tmp_path / "config.json").read_text())
    changed = {key for key in old if new.get(key) != old[key]}
    assert changed <= {"transformers_version", "torch_dtype"}  # rope_theta above all: the official code reads it
    again: Any = AutoModelForMaskedLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(again(expected["input_ids"]).logits, model(expected["input_ids"]).logits)


# ---- the objectives -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "golden" / "sft_objectives.json").read_text())


def score(
    name: str, case: dict[str, Any], golden: dict[str, Any], reader: LogitsReader
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, rates and mask of one method under the golden time and mask.

    The published GIFT leaves EOS fill out of the response and takes β_ref over the batch; the others count the fill.
    """
    ids = torch.tensor(golden["input_ids"])
    places = torch.arange(ids.shape[1])
    response = places >= torch.tensor(golden["prompt_lengths"])[:, None]
    if name == "gift":
        last = torch.tensor([int((row != golden["eos"]).nonzero().max()) for row in ids])
        response = response & (places <= last[:, None])
    mask = torch.tensor(case[name]["mask"]).bool()
    canvas = Canvas(ids, torch.ones_like(response), response, response)
    noise = Noise.at(torch.tensor(case["t"]), torch.where(mask, 0.0, 1.0))
    objective = resolve(name, **({"reference": "batch"} if name == "gift" else {}))
    signal = probe_signal(reader, canvas, golden["mask"], objective.signal) if objective.uses_importance else None
    corrupted = corrupt(objective, canvas, noise, golden["mask"], signal=signal)
    where = scored_positions(canvas, corrupted)
    ce = token_cross_entropy(reader.function(corrupted.ids, canvas.attended, where), ids[where])
    loss = row_losses(objective, canvas, corrupted, ce).sum() / denominator(objective, canvas, corrupted)
    return loss, corrupted.rate, corrupted.mask


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("name", ["sft", "cart", "gift"])
def test_losses(name: str, number: int, golden: dict[str, Any], model: Any, logits_of: Any) -> None:
    case = golden["cases"][number]
    loss, _, mask = score(name, case, golden, logits_of(model))
    assert torch.equal(mask, torch.tensor(case[name]["mask"]).bool())
    assert loss.item() == pytest.approx(case[name]["loss"], rel=1e-4)


@pytest.mark.parametrize("number", range(4))
def test_gift_times_and_gradient(number: int, golden: dict[str, Any], model: Any, logits_of: Any) -> None:
    case = golden["cases"][number]["gift"]
    loss, rate, _ = score("gift", golden["cases"][number], golden, logits_of(model))
    times = torch.tensor([[torch.nan if t is None else t for t in row] for row in case["t_i"]])
    response = ~times.isnan()
    assert torch.equal(rate > 0, response)
    assert rate[response].tolist() == pytest.approx(times[response].tolist(), rel=1e-4)
    loss.backward()
    norm = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
    assert norm.item() == pytest.approx(case["grad_norm"], rel=1e-4)


def test_the_embedding_of_eos_is_learned(golden: dict[str, Any], model: Any, logits_of: Any) -> None:
    """LLaDA pads with its EOS, which fills the canvas: an embedding that ignores its padding id would freeze it."""
    assert model.config.pad_token_id == golden["eos"]
    assert model.get_input_embeddings().padding_idx is None
    loss, _, _ = score("sft", golden["cases"][0], golden, logits_of(model))
    loss.backward()
    assert model.get_input_embeddings().weight.grad[golden["eos"]].abs().max() > 0


# ---- the sampler ----------------------------------------------------------------------------------------------


def generations(shared: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((shared / "golden" / name / "expected_generate.json").read_text())


@pytest.mark.parametrize("number", range(4))
def test_lladas_generations(number: int, model: Any, shared: Path) -> None:
    """Low-confidence remasking with several blocks and steps; the last one with guidance 1.5."""
    cases = generations(shared, "llada_tiny")
    assert len(cases) == 4
    case, settings = cases[number], cases[number]["kwargs"]
    assert (settings.get("cfg_scale", 0.0) > 0) == (number == 3)
    ids = denoise(
        model,
        torch.tensor(case["prompt"]),
        max_new_tokens=settings["gen_length"],
        steps=settings["steps"],
        block_length=settings["block_length"],
        guidance=settings.get("cfg_scale", 0.0),
        stop_early=False,
    )
    assert ids.tolist() == case["output"]


REVEAL = {"maskgit_plus": "confidence", "topk_margin": "margin", "entropy": "entropy"}


@pytest.mark.parametrize("number", range(6))
def test_dreams_generations(number: int, shared: Path) -> None:
    """Three reveal rules on the t-schedule, more steps than reveal something and fewer steps than tokens."""
    cases = generations(shared, "dream_tiny")
    assert {(case["alg"], case["steps"]) for case in cases} == {(alg, steps) for alg in REVEAL for steps in (16, 6)}
    case = cases[number]
    dream, _, _ = family(shared, "dream_tiny")
    ids = denoise(
        dream,
        torch.tensor(case["prompt"]),
        max_new_tokens=len(case["output"][0]),
        steps=case["steps"],
        schedule="t",
        eps=case["eps"],
        reveal=REVEAL[case["alg"]],
        stop_early=False,
    )
    assert ids.tolist() == case["output"]
