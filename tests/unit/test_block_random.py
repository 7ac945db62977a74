"""Canvases of answers half written block by block, and the bound that is pushed down: by hand, and their gradient."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from remask.diffusion.attention import BlockCausal, Full
from remask.diffusion.block_random import block_random_views, power_mean
from remask.diffusion.blocks import in_blocks
from remask.diffusion.corruption import Canvas
from remask.diffusion.likelihood import View, mean
from remask.diffusion.noise import Noise
from remask.errors import UserError
from remask.rl.presets import resolve
from remask.rl.settings import in_blocks_of
from remask.sampling.schedule import Decoding

MASK = 0


def canvas_of(prompt: int, scored: int, fill: int = 0) -> Canvas:
    ids = torch.arange(1, prompt + scored + fill + 1)[None]
    answer = torch.arange(ids.shape[1])[None] >= prompt
    return Canvas(ids, torch.ones_like(answer), answer, answer & (torch.arange(ids.shape[1]) < prompt + scored))


def noise_of(tau: float, u: list[float]) -> Noise:
    return Noise(torch.full((1, len(u)), tau, dtype=torch.float64), torch.tensor([u]))


def test_views_by_hand() -> None:
    """Two prompt tokens, six of an answer in blocks of two, one of fill. τ = ⅓ + ⅙: block 1, both of its tokens; u
    masks a prompt token and one of block 0 below 0.15. Five tokens are scored, each with the weight 6/5.
    """
    u = [0.1, 0.9, 0.9, 0.14, 0.6, 0.5, 0.9, 0.2, 0.05]
    (view,) = block_random_views(canvas_of(2, 6, 1), noise_of(0.5, u), MASK, length=2, clean_rate=0.15)
    assert view.ids.tolist() == [[MASK, 2, 3, MASK, MASK, MASK, MASK, MASK, MASK]]
    assert view.scored.long().tolist() == [[0, 0, 0, 1, 1, 1, 1, 1, 0]]
    assert view.weight[view.scored].tolist() == pytest.approx([6 / 5] * 5)
    (view,) = block_random_views(canvas_of(2, 6, 1), noise_of(0.34, u), MASK, length=2)
    assert view.ids.tolist() == [[1, 2, 3, 4, 5, MASK, MASK, MASK, MASK]]


def test_blocks_and_counts_are_each_as_likely_as_any_other() -> None:
    """Blocks of 4, 4 and 2 of ten tokens: each a third of all τ, and each count of a block as often as any other."""
    often: dict[tuple[int, int], int] = {}
    for step in range(2400):
        noise = noise_of((step + 0.5) / 2400, torch.linspace(0.2, 0.9, 10).tolist())
        (view,) = block_random_views(canvas_of(0, 10), noise, MASK, length=4)
        first = int(view.scored[0].long().argmax())
        block = min(first // 4, 2)
        masked = int(view.scored[0, 4 * block : 4 * block + 4].sum())
        often[block, masked] = often.get((block, masked), 0) + 1
    assert often == {(b, c): 2400 // 3 // size for b, size in enumerate((4, 4, 2)) for c in range(1, size + 1)}


@pytest.mark.shared
def test_published_views(shared: Path) -> None:
    """Each published canvas is the view of some block, with noise that is low where it is masked; so is what is scored
    (all that is masked of the answer up to its end).
    """
    case = json.loads((shared / "golden" / "rl" / "spg.json").read_text())["views_sample"]
    prompt = case["prompt_length"]
    for ids, answer, draws in zip(case["ids"], case["answer"], case["noisy"], strict=True):
        length = sum(answer)
        canvas = replace(canvas_of(prompt, length, len(answer) - length), ids=torch.tensor([ids]))
        blocks = -(-length // case["block"])
        for noisy in draws:
            u = [0.01 if token == case["mask_id"] else 0.99 for token in noisy]
            found = [
                block_random_views(
                    canvas,
                    noise_of((block + (count + 0.5) / case["block"]) / blocks, u),
                    case["mask_id"],
                    length=case["block"],
                    clean_rate=case["p_mask_clean"],
                )[0]
                for block in range(blocks)
                for count in range(case["block"])
            ]
            same = [view for view in found if view.ids[0].tolist() == noisy]
            assert same
            masked = [token == case["mask_id"] for token in noisy]
            wanted = [m and prompt <= place < prompt + length for place, m in enumerate(masked)]
            assert all(view.scored[0].tolist() == wanted for view in same)


def drawn(log_p: Tensor, scored: Tensor) -> tuple[list[Tensor], list[tuple[View, ...]]]:
    """Values and views of K draws from log p [K, B, L], weighed by n = L over the masked tokens of a draw."""
    weight = log_p.shape[-1] / scored.sum(-1, keepdim=True).double()
    views = [(View(torch.zeros(s.shape).long(), s, w.expand(s.shape)),) for s, w in zip(scored, weight, strict=True)]
    return [lp * w * s for lp, w, s in zip(log_p, weight, scored, strict=True)], views


def test_the_power_mean_by_hand() -> None:
    """p = ½ and ¼ of a token masked in both draws of 2 and 1 tokens, weights 1 and 2; ⅛ of one masked in the first."""
    log_p = torch.tensor([[[0.5, 0.125]], [[0.25, 0.3]]], dtype=torch.float64).log()
    values, views = drawn(log_p, torch.tensor([[[True, True]], [[True, False]]]))
    both, single = math.log((0.5**2 + 2 * 0.25**2) / 2) / 2, math.log(0.125**2 / 2) / 2
    assert power_mean(values, views, power=2.0)[0].tolist() == pytest.approx([both, single])


def test_its_gradient_is_a_softmax_over_draws() -> None:
    """Σ_k π_ki·∇log p_ki with π_ki ∝ w_ki·p_ki^β, every token of the union alike; also where p^β is 0 in floats."""
    generator = torch.Generator().manual_seed(0)
    log_p = (-300 * torch.rand(3, 2, 6, generator=generator, dtype=torch.float64)).requires_grad_()
    scored = torch.rand(3, 2, 6, generator=generator) < 0.5
    values, views = drawn(log_p, scored)
    (found,) = torch.autograd.grad(power_mean(values, views, power=1.5).sum(), log_p)
    weight = torch.stack([view.weight for (view,) in views]).double()
    share = torch.where(scored, weight.log() + 1.5 * log_p.detach(), -torch.inf).softmax(0).nan_to_num(0.0)
    assert torch.allclose(found, share * 6 / scored.any(0).sum(-1, keepdim=True), atol=1e-6)
    assert found.isfinite().all()


def test_with_one_draw_it_has_the_means_gradient() -> None:
    log_p = (-torch.rand(1, 2, 6, dtype=torch.float64)).requires_grad_()
    values, views = drawn(log_p, torch.rand(1, 2, 6) < 0.7)
    above, below = (
        torch.autograd.grad(f.sum(), log_p, retain_graph=True)[0]
        for f in (power_mean(values, views, power=1.5), mean(values, views))
    )
    assert torch.allclose(above, below, atol=1e-6)


def test_only_answers_without_a_positive_advantage_are_bounded_from_above() -> None:
    generator = torch.Generator().manual_seed(1)
    log_p = -torch.rand(2, 3, 6, generator=generator, dtype=torch.float64)
    values, views = drawn(log_p, torch.rand(2, 3, 6, generator=generator) < 0.6)
    advantage = torch.tensor([[1.0], [0.0], [-1.0]]).expand(3, 6)
    found = resolve("spg", power_share=0.25).combine(advantage)(values, views)
    below, above = mean(values, views), power_mean(values, views, power=1.5)
    assert torch.equal(found[0], below[0])
    assert torch.allclose(found[1:], (0.25 * above + 0.75 * below)[1:])


def test_blocks_are_those_of_sampling_unless_told() -> None:
    decoding = Decoding(max_new_tokens=16, block_length=4)
    assert in_blocks_of(resolve("spg"), decoding, Full()).block_length == 4
    assert in_blocks_of(resolve("spg", block_length=8), decoding, Full()).block_length == 8
    assert in_blocks_of(resolve("spg"), Decoding(), Full()).block_length == 0
    assert in_blocks_of(resolve("espo"), decoding, Full()) == resolve("espo")
    assert in_blocks_of(resolve("spg"), decoding, BlockCausal(4)).block_length == 4
    with pytest.raises(UserError, match="block_length = 8: the model has blocks of 4 tokens; set it to 0"):
        in_blocks_of(resolve("spg", block_length=8), decoding, BlockCausal(4))


def test_a_block_model_has_blocks_of_its_own() -> None:
    """Blocks of 2 and 4 of six answer tokens behind two of the prompt: the canvas's, whatever the length."""
    canvas = in_blocks(canvas_of(2, 6), BlockCausal(4))
    u = [0.9, 0.9, 0.4, 0.5, 0.6, 0.1, 0.7, 0.2]
    for tau, masked in ((0.26, [2, 3, 4, 5, 6, 7]), (0.51, [5]), (0.8, [4, 5, 7])):
        (view,) = block_random_views(canvas, noise_of(tau, u), MASK, length=3)
        assert view.scored[0].nonzero()[:, 0].tolist() == masked


@pytest.mark.parametrize(
    ("name", "choices", "said"),
    [
        ("spg", {"draws": 1}, "power with one draw, .*; set choices.draws to 2 or more"),
        ("d2", {"negatives": "power"}, "power with the likelihood trajectory, which has one draw"),
        ("spg", {"power": 0.0}, "choices.power = 0.0"),
        ("spg", {"power": math.inf}, "choices.power = inf"),
        ("spg", {"power_share": 1.5}, "power_share = 1.5"),
        ("spg", {"block_length": -1}, "block_length = -1"),
        ("espo", {"block_length": 8}, "block_length = 8 with the likelihood elbo_coupled"),
        ("espo", {"prompt_mask": 0.1}, "only mean_field and block_random mask the prompt"),
    ],
)
def test_choices_that_do_not_fit(name: str, choices: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        resolve(name, **choices)
