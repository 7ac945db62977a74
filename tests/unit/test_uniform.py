"""Training by uniform noise: the published losses and gradients, and what a row's numbers decide."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from remask.diffusion.blocks import attention_of, in_blocks
from remask.diffusion.capped import Capped, capped_losses
from remask.diffusion.corruption import Canvas
from remask.diffusion.noise import Noise
from remask.diffusion.objective import corrupt
from remask.diffusion.reader import ModelReader
from remask.diffusion.uniform import UniformObjective, chosen, next_tokens, replaced, shares
from remask.errors import UserError
from remask.models.load import load_model
from remask.sft.presets import PRESETS, resolve
from remask.training.model import all_trained

PRESET = PRESETS["diffusion-gemma"]
assert isinstance(PRESET, UniformObjective)


@pytest.fixture
def folder(shared: Path) -> Path:
    return shared / "golden" / "diffusion_gemma_tiny"


@pytest.fixture
def model(folder: Path) -> Any:
    """With its router trained, as the published norms are of every weight."""
    return load_model(str(folder)).train().requires_grad_(True)


def of_case(case: dict[str, Any], model: Any, pad: int = 0) -> tuple[Tensor, Canvas, Tensor]:
    """(noised rows, canvas, the positions that are scored), with so many tokens of padding behind."""
    clean, noised = (torch.tensor(case[name] + [0] * pad)[None] for name in ("input_ids", "noisy_ids"))
    attended = torch.ones_like(clean, dtype=torch.bool)
    attended[:, len(case["input_ids"]) :] = False
    answer = attended.clone()
    answer[:, : case["prompt_length"]] = False
    canvas = in_blocks(Canvas(clean, attended, answer, answer), attention_of(model))
    return noised, canvas, answer & (canvas.block == case["scored_canvas"])


def said_of(case: dict[str, Any], model: Any, pad: int = 0) -> Any:
    noised, canvas, where = of_case(case, model, pad)
    return ModelReader(model).call(
        noised,
        canvas,
        where,
        targets=canvas.ids[where],
        weights=torch.ones(int(where.sum())),
        conditioned=torch.tensor([case["self_conditioned"]]),
        scored_clean=next_tokens(canvas, 1),
    )


def norm_of(model: Any) -> float:
    """Without the padding token's embedding, to which the published class gives no gradient."""
    total = 0.0
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradient = parameter.grad.clone()
            if "embed_tokens" in name or "lm_head" in name:
                gradient[0] = 0
            total += float(gradient.square().sum())
    return total**0.5


@pytest.mark.shared
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("number", range(3))
def test_published_losses_and_gradient(number: int, checkpointing: bool, model: Any, folder: Path) -> None:
    """Both losses and the gradient norm, also where what lies between is computed again in the backward pass."""
    case = json.loads((folder / "block_training.json").read_text())["cases"][number]
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    found = said_of(case, model)
    diffusion, encoder = found.token_loss.mean(), found.clean_loss.mean()
    assert diffusion.item() == pytest.approx(case["diffusion_loss"], rel=1e-4)
    assert encoder.item() == pytest.approx(case["encoder_ar_loss"], rel=1e-4)
    (found.loss / len(found.token_loss) + encoder).backward()
    assert norm_of(model) == pytest.approx(case["grad_norm"], rel=1e-4)


@pytest.mark.shared
def test_padding_and_batch_mates_change_no_row(model: Any, folder: Path) -> None:
    """Rows of unlike length together, of which some are conditioned on themselves."""
    cases = json.loads((folder / "block_training.json").read_text())["cases"]
    width = max(len(case["input_ids"]) for case in cases)
    parts = [of_case(case, model, width - len(case["input_ids"])) for case in cases]
    noised, where = (torch.cat([part[place] for part in parts]) for place in (0, 2))
    canvas = Canvas.cat([part[1] for part in parts])
    found = ModelReader(model).call(
        noised,
        canvas,
        where,
        targets=canvas.ids[where],
        conditioned=torch.tensor([case["self_conditioned"] for case in cases]),
        scored_clean=next_tokens(canvas, 1),
    )
    diffusion = found.token_loss.view(3, 8).mean(-1).tolist()
    encoder = [part.mean().item() for part in found.clean_loss.split([len(case["input_ids"]) - 1 for case in cases])]
    assert diffusion == pytest.approx([case["diffusion_loss"] for case in cases], rel=1e-4)
    assert encoder == pytest.approx([case["encoder_ar_loss"] for case in cases], rel=1e-4)


@pytest.mark.shared
def test_checkpointing_computes_every_layer_again(model: Any, folder: Path) -> None:
    """Those of the encoder too, whose keys and values the canvas looks at."""
    case = json.loads((folder / "block_training.json").read_text())["cases"][0]
    counts = dict.fromkeys(("encoder", "decoder"), 0)

    def counting(part: str) -> Any:
        def count(*_: Any) -> None:
            counts[part] += 1

        return count

    for part, layers in (
        ("encoder", model.model.encoder.language_model.layers),
        ("decoder", model.model.decoder.layers),
    ):
        for layer in layers:
            layer.self_attn.q_proj.register_forward_hook(counting(part))
    said_of(case, model).loss.backward()
    assert counts == {"encoder": 3, "decoder": 3}
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    said_of(case, model).loss.backward()
    assert counts == {"encoder": 9, "decoder": 9}


@pytest.mark.shared
def test_the_router_is_not_trained(model: Any) -> None:
    frozen = {name for name, p in all_trained(model).named_parameters() if not p.requires_grad}
    assert {name.split(".layers.")[0] for name in frozen if "router" in name} == {"model.encoder.language_model"}
    assert sum("router" in name for name in frozen) == 9
    assert all("router" in name or "vision" in name for name in frozen)


@pytest.mark.shared
def test_losses_in_parts_are_the_same(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    hidden, targets = torch.randn(11, 48, requires_grad=True), torch.randint(0, 160, (11,))
    whole = capped_losses(model.capped(), hidden, targets)
    (gradient,) = torch.autograd.grad(whole.sum(), hidden)
    monkeypatch.setattr("remask.diffusion.capped.chunk_rows", lambda vocabulary: 4)
    parts = capped_losses(model.capped(), hidden, targets)
    assert torch.allclose(parts, whole, rtol=1e-6)
    assert torch.allclose(torch.autograd.grad(parts.sum(), hidden)[0], gradient, rtol=1e-5, atol=1e-7)
    expected = torch.nn.functional.cross_entropy(30 * torch.tanh(model.lm_head(hidden) / 30), targets, reduction="none")
    assert torch.allclose(whole, expected, rtol=1e-6)


def test_a_cap_is_never_passed() -> None:
    head = torch.nn.Linear(2, 5, bias=False)
    torch.nn.init.constant_(head.weight, 1e3)
    logits = Capped(head, 30.0)(torch.ones(3, 2))
    assert logits.max() == 30.0
    assert Capped(head, 30.0).out_features == 5


# ---- noise -------------------------------------------------------------------------------------------------------


def rows(*answers: int, prompt: int = 3, block: int = 4) -> Canvas:
    """Rows with answers of so many tokens, right-padded, in canvases of `block`."""
    width = prompt + max(answers)
    ids = torch.arange(10, 10 + width).repeat(len(answers), 1)
    column = torch.arange(width)
    attended = column < prompt + torch.tensor(answers)[:, None]
    answer = attended & (column >= prompt)
    number = torch.where(answer, (column - prompt) // block, 0)
    return Canvas(ids, attended, answer, answer, block=number)


def noise_of(canvas: Canvas, s: list[float], tau: float = 0.5) -> Noise:
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.rand(canvas.ids.shape, generator=generator) for _ in range(2))
    return Noise(torch.full(canvas.ids.shape, tau, dtype=torch.float64), u, torch.tensor(s), v)


def test_the_canvas_and_the_coin_by_hand() -> None:
    """s = 0.3 lies at 0.6 of [0, ½): the second of two canvases, and conditioned; 0.55 at 0.1 of [½, 1): the first."""
    canvas = rows(8, 8, 5, 4)
    found = chosen(PRESET, canvas, noise_of(canvas, [0.3, 0.55, 0.99, 0.0]))
    assert found.conditioned.tolist() == [True, False, False, True]
    columns = [row.nonzero()[:, 0].tolist() for row in found.canvas]
    assert columns == [[7, 8, 9, 10], [3, 4, 5, 6], [7], [3, 4, 5, 6]]
    for p, coin in ((0.0, False), (1.0, True)):
        objective = replace(PRESET, self_conditioning=p)
        found = chosen(objective, canvas, noise_of(canvas, [0.3, 0.55, 0.99, 0.0]))
        assert found.conditioned.tolist() == [coin] * 4
        assert [row.nonzero()[0, 0].item() for row in found.canvas] == [3, 7, 7, 3]


def test_canvases_are_chosen_alike_often() -> None:
    canvas = rows(*[12] * 6000)
    s = ((torch.arange(6000) + 0.5) / 6000).tolist()
    found = chosen(PRESET, canvas, noise_of(canvas, s))
    starts = found.canvas.long().argmax(-1)
    for coin in (True, False):
        assert starts[found.conditioned == coin].bincount()[[3, 7, 11]].tolist() == [1000] * 3


def test_tokens_are_replaced_at_the_time_of_their_row() -> None:
    canvas = rows(400, 400, block=256)
    noise = noise_of(canvas, [0.1, 0.9], tau=0.25)
    found = replaced(PRESET, canvas, noise, 50)
    t = 1e-3 + (1 - 1e-3) * 0.25
    assert torch.allclose(found.time, torch.tensor(t))
    assert torch.equal(found.mask, canvas.corruptible & (noise.u < t))
    assert torch.equal(found.ids[~found.mask], canvas.ids[~found.mask])
    assert noise.v is not None
    assert torch.equal(found.ids[found.mask], (noise.v.double() * 50).long()[found.mask])
    assert found.ids[found.mask].max() < 50
    counts = found.ids[found.mask].bincount(minlength=50).double()
    assert ((counts - counts.mean()).square() / counts.mean()).sum() < 95  # χ² of 49: 0.0001 lie beyond


def test_the_encoder_learns_a_row_and_not_its_fill() -> None:
    """The fill's first token is learned, its others are not, nor is padding, nor a row's first token."""
    canvas = rows(8, 4)
    canvas.ids[0, 6:] = 1
    canvas.ids[1, 7:] = 1
    assert [row.nonzero()[:, 0].tolist() for row in next_tokens(canvas, 1)] == [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]]
    uncounted = replace(canvas, corruptible=torch.zeros_like(canvas.corruptible))
    assert not next_tokens(uncounted, 1).any()


def test_each_loss_has_its_own_denominator() -> None:
    found = shares(torch.tensor([6.0, 10.0]), torch.tensor([3.0, 5.0]), 0.5)
    assert found == {"loss": 3.0, "diffusion": 2.0, "encoder": 2.0}


# ---- the preset --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"weight": "cart"}, "weight: not a choice of an objective that replaces tokens by others"),
        ({"rate": "importance"}, "rate: not a choice"),
        ({"complement": True, "normaliser": "masked"}, "normaliser, complement: not a choice"),
        ({"self_conditioning": 1.5}, r"self_conditioning = 1\.5"),
        ({"encoder": -1.0}, r"encoder = -1\.0"),
        ({"rate_low": 0.9, "rate_high": 0.1}, "masking rates from 0.9 to 0.1"),
    ],
)
def test_choices_of_other_objectives_are_refused(choices: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        resolve("diffusion-gemma", **choices)


def test_its_own_choices() -> None:
    found = resolve("diffusion-gemma", self_conditioning=0.0, encoder=0.3, rate_low=0.1)
    assert found == UniformObjective(self_conditioning=0.0, encoder=0.3, rate_low=0.1)
    assert (PRESET.self_conditioning, PRESET.encoder, PRESET.rate_low, PRESET.rate_high) == (0.5, 1.0, 1e-3, 1.0)


def test_it_does_not_mask() -> None:
    canvas = rows(4)
    with pytest.raises(UserError, match="this objective replaces tokens by others; use one that masks"):
        corrupt(PRESET, canvas, noise_of(canvas, [0.5]), 1)


def test_numbers_that_are_missing_are_an_error() -> None:
    canvas = rows(4)
    bare = Noise(torch.zeros(canvas.ids.shape, dtype=torch.float64), torch.zeros(canvas.ids.shape))
    with pytest.raises(UserError, match=r"needs Noise\.s"):
        chosen(PRESET, canvas, bare)
    with pytest.raises(UserError, match=r"needs Noise\.v"):
        replaced(PRESET, canvas, bare, 5)
