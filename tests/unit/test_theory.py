"""The claims of docs/theory.md, exactly: every mask of a few tokens, every order, and integrals over t by quadrature.

A model is a table [2^n, n]: the loss of every token under every mask. b_i is β_i/β_ref. With r = √(1 − t) and b a
multiple of ½ all integrands are polynomials in r, which the rule of Gauss and Legendre integrates exactly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from remask.diffusion.corruption import Canvas, Corrupted, apply_mask, importance_rate
from remask.diffusion.importance import importance, probe_signal
from remask.diffusion.likelihood import elbo, elbo_coupled, elbo_coupled_views
from remask.diffusion.noise import Noise
from remask.diffusion.objective import (
    Objective,
    corrupt,
    denominator,
    row_losses,
    scored_positions,
    token_weights,
)
from remask.diffusion.reader import LogitsReader
from remask.diffusion.times import MIN_TIME
from remask.diffusion.token_loss import token_cross_entropy
from remask.sft.presets import PRESETS

HIDDEN = 2
RATIO = torch.tensor([0.5, 1.0, 1.5, 1.0], dtype=torch.float64)
TIMES = (MIN_TIME, 0.01, 0.3, 0.75, 0.999)


def masks(n: int) -> Tensor:
    return torch.tensor(list(itertools.product([False, True], repeat=n)))


def random_table(n: int = 4) -> Tensor:
    return 0.1 + 2 * torch.rand(2**n, n, generator=torch.Generator().manual_seed(0))


def predict_by(table: Tensor) -> LogitsReader:
    """Token 0 is the truth everywhere; e^(−loss) is its probability."""

    def predict(ids: Tensor, attended: Tensor, positions: Tensor) -> Tensor:
        places = 2 ** torch.arange(ids.shape[1]).flip(0)
        ce = table[((ids == HIDDEN) * places).sum(-1)][positions]
        return torch.stack([torch.zeros_like(ce), torch.expm1(ce).log()], -1)

    return LogitsReader(predict)


def canvas_of(rows: int, n: int) -> Canvas:
    response = torch.ones(rows, n, dtype=torch.bool)
    return Canvas(torch.zeros(rows, n, dtype=torch.long), response, response, response)


def all_masks(ratio: Tensor, t: float) -> tuple[Canvas, Corrupted, Tensor]:
    """Every mask as a row, and how likely it is when token i is masked at the code's rate."""
    mask = masks(len(ratio))
    canvas = canvas_of(*mask.shape)
    time = torch.full((len(mask), 1), t, dtype=torch.float64)
    every = ratio.expand(mask.shape)
    rate = importance_rate(time, every, canvas.corruptible)
    chance = torch.where(mask, rate, 1 - rate).prod(-1)
    return canvas, Corrupted(apply_mask(canvas.ids, mask, HIDDEN), mask, rate, time, every), chance


def over_time(nodes: int = 10) -> Iterator[tuple[float, float]]:
    """(t, weight) for ∫₀¹ dt, in r = √(1 − t)."""
    for x, weight in zip(*np.polynomial.legendre.leggauss(nodes), strict=True):
        r = (x + 1) / 2
        yield 1 - r * r, weight * r


def expected_loss(objective: Objective, table: Tensor, ratio: Tensor) -> float:
    """∫ dt Σ over masks of P(mask)·row loss: what `row_losses` is on average over all noise."""
    total = 0.0
    for t, weight in over_time():
        canvas, corrupted, chance = all_masks(ratio, t)
        where = scored_positions(canvas, corrupted)
        ce = predict_by(table).losses(corrupted.ids, canvas, where)
        total += weight * (chance * row_losses(objective, canvas, corrupted, ce)).sum().item()
    return total


def unread(corrupted: Corrupted) -> Tensor:
    """Losses for weights that do not depend on them."""
    return torch.zeros(int(corrupted.mask.sum()))


def rate_and_slope(ratio: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """p(t) and p′(t), the latter through the code's own function."""
    time = torch.full((len(ratio),), t, dtype=torch.float64, requires_grad=True)
    rate = importance_rate(time[:, None], ratio[:, None], torch.ones(len(ratio), 1, dtype=torch.bool))[:, 0]
    (slope,) = torch.autograd.grad(rate.sum(), time)
    return rate.detach(), slope


def path_bound(table: Tensor, ratio: Tensor) -> float:
    """∫ dt Σ_i p_i′/p_i · E[m_i·ce_i]: the bound of the chain with these rates."""
    total = 0.0
    for t, weight in over_time():
        _, corrupted, chance = all_masks(ratio, t)
        rate, slope = rate_and_slope(ratio, t)
        total += weight * (chance[:, None] * corrupted.mask * table * slope / rate).sum().item()
    return total


def over_orders(table: Tensor, ratio: Tensor) -> float:
    """The mean over orders: the odds b_i decide which token is masked next; they are revealed in reverse."""
    n, total = len(ratio), 0.0
    for order in itertools.permutations(range(n)):
        chance, loss, left, number = 1.0, 0.0, list(range(n)), 0
        for i in order:
            chance *= (ratio[i] / ratio[left].sum()).item()
            left.remove(i)
            number += 2 ** (n - 1 - i)
            loss += table[number, i].item()
        total += chance * loss
    return total


# ---- the chain and its bound ----------------------------------------------------------------------------------


@pytest.mark.parametrize("t", TIMES[1:])
def test_hazards_keep_their_ratio(t: float) -> None:
    """p′/(1 − p) = b/(1 − t) at every time."""
    rate, slope = rate_and_slope(RATIO, t)
    assert torch.allclose(slope * (1 - t) / (1 - rate), RATIO)


def test_the_weight_of_the_path_by_hand_and_its_total() -> None:
    """At t = ¾ the rates ½, ¾, ⅞ have slopes b(1 − p)/(1 − t) = 1, 1, ¾ and weights 2, 4⁄3, 6⁄7; ∫ p′ = 1 for each."""
    rate, slope = rate_and_slope(RATIO[:3], 0.75)
    assert (slope / rate).tolist() == pytest.approx([2, 4 / 3, 6 / 7])
    total = sum(weight * rate_and_slope(RATIO, t)[1] for t, weight in over_time())
    assert torch.as_tensor(total).tolist() == pytest.approx([1.0] * 4)


@pytest.mark.parametrize("ratio", [RATIO, torch.ones_like(RATIO), 2 * RATIO])
def test_the_path_bound_is_a_mean_over_orders(ratio: Tensor) -> None:
    assert path_bound(random_table(), ratio) == pytest.approx(over_orders(random_table(), ratio))


# ---- what GIFT weighs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", TIMES)
def test_the_expected_weight_is_one_at_every_time(t: float) -> None:
    canvas, corrupted, chance = all_masks(RATIO, t)
    where = scored_positions(canvas, corrupted)
    weights = torch.zeros(where.shape, dtype=torch.float64)
    weights[where] = token_weights(PRESETS["gift"], canvas, corrupted, torch.zeros(int(where.sum())))
    assert (chance[:, None] * weights).sum(0).tolist() == pytest.approx([1.0] * 4)


def test_gift_is_a_mean_over_times_that_is_not_the_paths() -> None:
    """∫ c_i dt against ∫ p_i′·c_i dt, c_i(t) the mean loss of a masked token: the same where b = 1, and only there."""
    table = random_table()
    gift = 0.0
    for t, weight in over_time():
        _, corrupted, chance = all_masks(RATIO, t)
        share = chance[:, None] * corrupted.mask
        gift += weight * ((share * table).sum(0) / share.sum(0)).sum().item()
    assert expected_loss(PRESETS["gift-elbo"], table, RATIO) == pytest.approx(gift)
    assert gift != pytest.approx(path_bound(table, RATIO), rel=0.01)
    even = torch.ones_like(RATIO)
    assert expected_loss(PRESETS["gift-elbo"], table, even) == pytest.approx(path_bound(table, even))


def test_gift_does_not_bound_the_likelihood() -> None:
    """Two copies of a fair coin, and the true model: −log p = log 2. GIFT's mean loss at b = 1½, ½ is 14⁄15 of it."""
    unknown = math.log(2)
    table = torch.full((4, 2), 1e-7)  # where the other copy is seen nothing is left to say
    table[3] = unknown
    ratio = torch.tensor([1.5, 0.5], dtype=torch.float64)
    assert path_bound(table, ratio) == pytest.approx(unknown)
    assert expected_loss(PRESETS["sft"], table, torch.ones_like(ratio)) == pytest.approx(unknown)
    assert expected_loss(PRESETS["gift-elbo"], table, ratio) == pytest.approx(14 / 15 * unknown, rel=1e-5)


def test_entropy_looks_at_the_prompt_alone_and_nll_at_the_answer(
    random_model: Any, tiny_config: Any, logits_of: Any
) -> None:
    ids = torch.randint(6, 260, (1, 8), generator=torch.Generator().manual_seed(0)).expand(2, 8).clone()
    ids[1, 3:] = ids[1, 3:].flip(0)
    response = (torch.arange(8) >= 3).expand(2, 8)
    canvas = Canvas(ids, torch.ones_like(response), response, response)
    reader, mask_id = logits_of(random_model), tiny_config.mask_token_id
    entropy, nll = (probe_signal(reader, canvas, mask_id, name) for name in ("entropy", "nll"))
    assert torch.allclose(entropy[0], entropy[1], atol=1e-5)
    assert not torch.allclose(nll[0], nll[1], atol=1e-2)


@pytest.mark.parametrize("t", [0.05, 0.3, 0.75, 0.999])
def test_gift_masks_fewer_tokens_than_sft(t: float) -> None:
    """1 − (1 − t)^b is concave in b, and the mean of b is 1."""
    signal = torch.tensor([[0.1, 0.3, 1.0, 4.0]], dtype=torch.float64)
    everywhere = torch.ones(1, 4, dtype=torch.bool)
    ratio = importance(signal, everywhere, "sqrt").ratio.double()
    assert ratio.mean().item() == pytest.approx(1)
    assert importance_rate(torch.tensor([[t]], dtype=torch.float64), ratio, everywhere).mean() < t


def test_the_permuted_control_masks_as_many() -> None:
    """Not only on average: the number of masked tokens has the same distribution."""
    generator = torch.Generator().manual_seed(0)
    canvas, signal = canvas_of(3, 6), 3 * torch.rand(3, 6, generator=generator)
    noise = Noise.at(
        torch.tensor([0.2, 0.5, 0.9]), *(torch.rand(s, generator=generator) for s in ((3, 6), (3,), (3, 6)))
    )
    plain, control = (corrupt(PRESETS[n], canvas, noise, HIDDEN, signal=signal) for n in ("gift", "gift-permuted"))
    assert not torch.equal(plain.rate, control.rate)
    for a, b in zip(plain.rate.tolist(), control.rate.tolist(), strict=True):
        assert sum(a) == pytest.approx(sum(b))
        assert count_law(a) == pytest.approx(count_law(b))


def count_law(rates: list[float]) -> Any:
    """P(0, 1, … of these are masked)."""
    law = np.ones(1)
    for rate in rates:
        law = np.convolve(law, [1 - rate, rate])
    return law


# ---- weights and normalisers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("t", TIMES)
def test_alpha_gives_p_to_the_one_less_alpha(alpha: float, t: float) -> None:
    """E[m·w] = p^(1−α) and Var[m·w] = p^(1−2α)·(1 − p)."""
    canvas, corrupted, chance = all_masks(RATIO, t)
    weights = torch.zeros(corrupted.mask.shape, dtype=torch.float64)
    weights[corrupted.mask] = token_weights(Objective(alpha=alpha), canvas, corrupted, unread(corrupted))
    p, mean = corrupted.rate[0], (chance[:, None] * weights).sum(0)
    assert torch.allclose(mean, p ** (1 - alpha))
    variance = (chance[:, None] * weights**2).sum(0) - mean**2
    assert torch.allclose(variance, p ** (1 - 2 * alpha) * (1 - p))


def test_visits_move_variance_between_tokens() -> None:
    """The mean of 1/p over t ∈ [ε, 1], which is E[(m/p)²], at b = ½, 1, 2; at b = 1 it is ln(1/ε)/(1 − ε)."""
    logarithm = torch.linspace(math.log(MIN_TIME), 0, 20_001, dtype=torch.float64)
    t = logarithm.exp()
    for b, mean in ((0.5, 12.83), (1.0, math.log(1000) / 0.999), (2.0, 3.80)):
        rate = importance_rate(
            t[:, None], torch.full((len(t), 1), b, dtype=torch.float64), torch.ones(len(t), 1).bool()
        )[:, 0]
        assert torch.trapezoid(t / rate, logarithm).item() / (1 - MIN_TIME) == pytest.approx(mean, abs=0.005)


def test_alpha_of_one_half_over_all_times_by_hand() -> None:
    """(1/b)·B(1/b, 3⁄2): 8⁄15, ⅔ and π/4 for b = ½, 1, 2. At α = 0 it is b/(1 + b)."""
    ratio = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    table = torch.ones(8, 3)
    nothing = torch.full_like(table, 1e-30)
    for alpha, totals in ((0.5, (8 / 15, 2 / 3, math.pi / 4)), (0.0, (1 / 3, 1 / 2, 2 / 3))):
        for i, total in enumerate(totals):
            alone = nothing.clone()
            alone[:, i] = 1.0
            assert expected_loss(Objective(alpha=alpha), alone, ratio) == pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize("t", TIMES)
def test_weft_sw_weighs_a_token_by_its_importance(t: float) -> None:
    canvas, corrupted, chance = all_masks(torch.ones_like(RATIO), t)
    uneven = Corrupted(
        corrupted.ids, corrupted.mask, corrupted.rate, corrupted.time, RATIO.expand(corrupted.mask.shape)
    )
    weights = torch.zeros(corrupted.mask.shape, dtype=torch.float64)
    weights[corrupted.mask] = token_weights(PRESETS["weft-sw"], canvas, uneven, unread(uneven))
    assert torch.allclose((chance[:, None] * weights).sum(0), RATIO)


def test_dividing_by_the_masked_makes_one_row_a_harmonic_sum() -> None:
    """Where every loss is 1, a row of n tokens alone has the mean 1 over response tokens and H_n over masked ones."""
    n = 4
    for name, expected in (("response", 1.0), ("masked", sum(1 / k for k in range(1, n + 1)))):
        total = 0.0
        for t, weight in over_time():
            canvas, corrupted, chance = all_masks(torch.ones(n, dtype=torch.float64), t)
            rows = row_losses(Objective(), canvas, corrupted, torch.ones(int(corrupted.mask.sum())))
            for row, p in enumerate(chance.tolist()):
                one = slice(row, row + 1)
                part = Corrupted(*(getattr(corrupted, k)[one] for k in ("ids", "mask", "rate", "time")))
                divisor = denominator(Objective(normaliser=name), canvas_of(1, n), part).clamp(min=1)  # type: ignore[arg-type]
                total += weight * p * (rows[row] / divisor).item()
        assert total == pytest.approx(expected)


def test_dft_ascends_the_probability_itself() -> None:
    """sg[p]/t · ∇(−log p) = −∇p/t."""
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mask = torch.ones(1, 3, dtype=torch.bool)
    corrupted = Corrupted(torch.zeros(1, 3, dtype=torch.long), mask, torch.full((1, 3), 0.25), torch.tensor([[0.25]]))
    ce = token_cross_entropy(logits, torch.tensor([0, 1, 2]))
    (found,) = torch.autograd.grad(row_losses(PRESETS["dft"], canvas_of(1, 3), corrupted, ce).sum(), logits)
    (slope,) = torch.autograd.grad(logits.softmax(-1).diagonal().sum(), logits)
    assert torch.allclose(found, -slope / 0.25, atol=1e-6)


# ---- estimates of the bound -----------------------------------------------------------------------------------


def test_uniform_times_give_the_mean_over_orders() -> None:
    even = torch.ones(4, dtype=torch.float64)
    assert expected_loss(PRESETS["sft"], random_table(), even) == pytest.approx(over_orders(random_table(), even))


def drawing(mask: Tensor, cells: int, k: int) -> Noise:
    """The noise whose time lies in the k-th of as many equal cells, and whose smallest u are the mask's."""
    tau = (k + 0.5) / cells
    return Noise.at(torch.tensor([MIN_TIME + (1 - MIN_TIME) * tau]), torch.where(mask, 0.1, 0.9)[None])


@pytest.mark.parametrize("name", ["elbo", "elbo_coupled"])
def test_the_mean_over_every_draw_is_the_mean_over_orders(name: str) -> None:
    """Each count is as likely, k = 1..n or 0..n, and so is each mask of that many tokens."""
    n, table, total, chance = 4, random_table(), 0.0, 0.0
    estimate, cells, least = (elbo, n, 1) if name == "elbo" else (elbo_coupled, n + 1, 0)
    for mask in masks(n):
        k = int(mask.sum())
        if k >= least:
            share = 1 / (cells * math.comb(n, k))
            value = estimate(predict_by(table), canvas_of(1, n), [drawing(mask, cells, k - least)], HIDDEN)
            total, chance = total - share * value.sequence.item(), chance + share
    assert chance == pytest.approx(1)
    assert total == pytest.approx(over_orders(table, torch.ones(n, dtype=torch.float64)))


@pytest.mark.parametrize(("k", "scored"), [(0, (0, 3)), (3, (3, 0)), (1, (1, 2))])
def test_the_ends_of_a_pair_are_one_empty_half_and_a_whole_one(k: int, scored: tuple[int, int]) -> None:
    """½(n+1)/k and ½(n+1)/(n−k) of n = 3: the whole half at an end weighs 4⁄6, not 1."""
    views = elbo_coupled_views(canvas_of(1, 3), drawing(torch.arange(3) < k, 4, k), HIDDEN)
    assert tuple(int(view.scored.sum()) for view in views) == scored
    for view, count in zip(views, scored, strict=True):
        assert count == 0 or view.weight[0, 0].item() == pytest.approx(4 / count / 2)
