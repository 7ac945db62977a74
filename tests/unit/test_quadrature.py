"""The ELBO at fixed shares masked: counts and weights by hand, and what they add up to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from remask.diffusion.attention import BlockCausal
from remask.diffusion.blocks import in_blocks
from remask.diffusion.corruption import Canvas
from remask.diffusion.likelihood import share_views
from remask.diffusion.noise import Noise
from remask.rl.presets import resolve

MASK = 99


def canvas_of(prompt: int, length: int) -> Canvas:
    ids = torch.arange(prompt + length)[None]
    answer = ids >= prompt
    return Canvas(ids, torch.ones_like(answer), answer, answer)


def noise(count: int, length: int) -> list[Noise]:
    generator = torch.Generator().manual_seed(0)
    return [Noise(torch.rand(1, 1).expand(1, length), torch.rand(1, length, generator=generator)) for _ in range(count)]


def test_two_points_by_hand() -> None:
    """τ = ½ ± 1/√12 = 0.211, 0.789 of eight tokens: 1 + 1 and 1 + 6 are masked, each weighing 8/2 and 8/7."""
    draws = resolve("gdpo").estimator.draws(canvas_of(2, 8), noise(2, 10), MASK)
    assert [int(view.scored.sum()) for (view,) in draws] == [2, 7]
    for (view,), weight in zip(draws, (4, 8 / 7), strict=True):
        assert view.weight[view.scored].unique().tolist() == [pytest.approx(weight)]
        assert torch.equal(view.ids == MASK, view.scored)


def test_three_points_by_hand() -> None:
    """τ = ½ − √0.15, ½, ½ + √0.15 with the weights 5/18, 8/18, 5/18, times three draws in the mean."""
    draws = resolve("gdpo", draws=3).estimator.draws(canvas_of(0, 8), noise(3, 8), MASK)
    assert [int(view.scored.sum()) for (view,) in draws] == [1, 5, 8]
    found = [view.weight[view.scored][0].item() for (view,) in draws]
    assert found == pytest.approx([8 * 15 / 18, 8 / 5 * 24 / 18, 15 / 18])


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("block", [None, 4])
def test_every_token_weighs_one_where_context_says_nothing(count: int, block: int | None) -> None:
    canvas = canvas_of(3, 13)
    canvas = canvas if block is None else in_blocks(canvas, BlockCausal(block))
    draws = resolve("gdpo").estimator.draws(canvas, noise(count, 16), MASK)
    total = sum((view.weight * view.scored).sum().item() for (view,) in draws) / count
    assert total == pytest.approx(13)


@pytest.mark.shared
@pytest.mark.parametrize("origin", ["global", "response"])
def test_ebpos_published_views_are_the_elbos_of_blocks(origin: str, shared: Path) -> None:
    """c_b of a block's n_b tokens, each weighing n_b/c_b, with blocks from the row's or from the answer's start."""
    case = json.loads((shared / "golden" / "rl" / "ebpo.json").read_text())["views_sample"]
    published = case[f"{origin}_origin"]
    ids, rate = torch.tensor(case["ids"]), torch.tensor(published["p"])
    answer = torch.arange(ids.shape[1]).expand_as(ids) >= case["prompt_length"]
    attention = BlockCausal(case["block"], "answer") if origin == "response" else BlockCausal(case["block"])
    canvas = in_blocks(Canvas(ids, torch.ones_like(answer), answer, answer), attention)
    scored = torch.tensor(published["scored"]).bool()
    assert canvas.block is not None
    tau = torch.zeros(ids.shape, dtype=torch.float64)
    for row in range(len(ids)):
        for block in canvas.block[row][answer[row]].unique():
            members = (canvas.block[row] == block) & answer[row]
            tau[row][members] = (int(scored[row][members].sum()) - 0.5) / int(members.sum())
    (view,) = share_views(canvas, torch.where(scored, 0.1, 0.9), tau, 99)
    assert view.ids.tolist() == published["noisy"]
    assert torch.equal(view.scored, scored)
    assert torch.allclose(view.weight[scored], 1 / rate[scored])
