"""The SFT objective: weights and normalisers by hand, GIFT against SFT bit for bit, unbiasedness, every preset."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from remask.diffusion.corruption import Canvas, Corrupted
from remask.diffusion.importance import probe_signal
from remask.diffusion.noise import Noise, collate_noise, row_noise
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
from remask.diffusion.weights import cart_weights
from remask.errors import UserError
from remask.sft.presets import PRESETS, resolve

PROMPTS, LENGTHS, WIDTH = (5, 3, 8, 4), (9, 12, 6, 1), 16

MASKING = [name for name, objective in PRESETS.items() if objective.masks]


def bits(*rows: str) -> torch.Tensor:
    """`bits("01", "10")` is a bool tensor."""
    return torch.tensor([[mark == "1" for mark in row] for row in rows])


@pytest.fixture
def canvas(tiny_config: Any) -> Canvas:
    """Four rows of unequal prompts and responses; one of the responses is a single token; padding on the right."""
    ids = torch.randint(6, 260, (4, WIDTH), generator=torch.Generator().manual_seed(0))
    places = torch.arange(WIDTH)
    start = torch.tensor(PROMPTS)[:, None]
    end = start + torch.tensor(LENGTHS)[:, None]
    response = (places >= start) & (places < end)
    attended = places < end
    return Canvas(ids.masked_fill(~attended, tiny_config.eos_token_id), attended, response, response)


@pytest.fixture
def noise() -> Noise:
    return collate_noise([row_noise(0, 0, i, i, n) for i, n in enumerate(LENGTHS)], list(PROMPTS), WIDTH)


def rows_of(canvas: Canvas, noise: Noise, rows: slice) -> tuple[Canvas, Noise]:
    assert noise.s is not None
    assert noise.v is not None
    part = Canvas(canvas.ids[rows], canvas.attended[rows], canvas.corruptible[rows], canvas.supervised[rows])
    return part, Noise(noise.tau[rows], noise.u[rows], noise.s[rows], noise.v[rows])


def numerator_and_denominator(
    objective: Objective,
    canvas: Canvas,
    noise: Noise,
    reader: LogitsReader,
    mask_id: int,
    reference: LogitsReader | None = None,
) -> tuple[torch.Tensor, torch.Tensor, Corrupted]:
    """What the trainer does with one micro-batch."""
    signal = probe_signal(reader, canvas, mask_id, objective.signal) if objective.uses_importance else None
    corrupted = corrupt(objective, canvas, noise, mask_id, signal=signal, reader=reader)
    where = scored_positions(canvas, corrupted)
    ce = token_cross_entropy(reader.function(corrupted.ids, canvas.attended, where), canvas.ids[where])
    ce_reference = None
    if objective.uses_reference_model:
        assert reference is not None
        with torch.no_grad():
            ce_reference = token_cross_entropy(
                reference.function(corrupted.ids, canvas.attended, where), canvas.ids[where]
            )
    rows = row_losses(objective, canvas, corrupted, ce, ce_reference)
    return rows.sum(), denominator(objective, canvas, corrupted), corrupted


# ---- by hand --------------------------------------------------------------------------------------------------


def corrupted_by_hand(mask: torch.Tensor, t: list[float], importance: torch.Tensor | None = None) -> Corrupted:
    time = torch.tensor(t)[:, None].expand(mask.shape)
    return Corrupted(torch.zeros(mask.shape, dtype=torch.long), mask, time, time, importance)


def canvas_by_hand(response: torch.Tensor, attended: torch.Tensor | None = None) -> Canvas:
    everything = torch.ones_like(response) if attended is None else attended
    return Canvas(torch.zeros(response.shape, dtype=torch.long), everything, response, response)


@pytest.mark.parametrize(
    ("normaliser", "rows", "total", "loss"),
    [
        ("response", [6.0, 6.0], 6.0, 2.0),  # 12 over 4 + 2 response tokens
        ("masked", [6.0, 6.0], 3.0, 4.0),  # 12 over 3 masked tokens
        ("sequence", [1.5, 3.0], 2.0, 2.25),  # mean of 6/4 and 6/2
    ],
)
def test_normalisers_by_hand(normaliser: str, rows: list[float], total: float, loss: float) -> None:
    """t = ½ weighs 2; row 0 masks two of its four tokens (losses 1 and 2), row 1 one of its two (loss 3)."""
    canvas = canvas_by_hand(bits("01111", "00011"))
    corrupted = corrupted_by_hand(bits("01010", "00001"), [0.5, 0.5])
    objective = Objective(normaliser=normaliser)
    each = row_losses(objective, canvas, corrupted, torch.tensor([1.0, 2.0, 3.0]))
    assert each.tolist() == pytest.approx(rows)
    assert denominator(objective, canvas, corrupted).item() == total
    assert (each.sum() / denominator(objective, canvas, corrupted)).item() == pytest.approx(loss)


def test_masked_tokens_that_are_not_supervised_carry_no_loss() -> None:
    everything = bits("111")
    canvas = Canvas(torch.zeros(1, 3, dtype=torch.long), everything, everything, bits("001"))
    corrupted = corrupted_by_hand(bits("111"), [0.5])
    assert scored_positions(canvas, corrupted).tolist() == [[False, False, True]]
    assert row_losses(Objective(), canvas, corrupted, torch.tensor([3.0])).tolist() == [6.0]
    for normaliser in ("response", "masked"):
        assert denominator(Objective(normaliser=normaliser), canvas, corrupted) == 1


def test_cart_by_hand() -> None:
    """q = 0.1: ½q(1−q)^(d−1) = 0.05, 0.045, 0.0405 at distances 1, 2, 3; both ends of four tokens are unmasked."""
    weights = cart_weights(bits("0110"), bits("1111"), 0.1)
    assert weights[0].tolist() == pytest.approx([0.0405, 0.095, 0.095, 0.0405])


def test_cart_leaves_padding_out() -> None:
    assert cart_weights(bits("0110"), bits("1110"), 0.1)[0, 1:3].tolist() == pytest.approx([0.05, 0.045])


def test_cart_counts_the_prompt_and_not_the_masked() -> None:
    """Two prompt tokens before three masked ones: 0.05 + 0.045, then 0.045 + 0.0405, then 0.0405 + 0.03645."""
    assert cart_weights(bits("00111"), bits("11111"), 0.1)[0, 2:].tolist() == pytest.approx([0.095, 0.0855, 0.07695])


def test_cart_is_divided_by_time() -> None:
    corrupted = corrupted_by_hand(bits("0110"), [0.5])
    weights = token_weights(Objective(weight="cart"), canvas_by_hand(bits("0111")), corrupted, torch.ones(2))
    assert weights.tolist() == pytest.approx([0.19, 0.19])


def test_inverse_rate_and_its_exponent_by_hand() -> None:
    canvas = canvas_by_hand(bits("11"))
    corrupted = replace(corrupted_by_hand(bits("11"), [0.5]), rate=torch.tensor([[0.25, 0.64]]))
    ce = torch.ones(2)
    for alpha, weights in ((1.0, [4.0, 1.5625]), (0.5, [2.0, 1.25]), (0.0, [1.0, 1.0])):
        assert token_weights(Objective(alpha=alpha), canvas, corrupted, ce).tolist() == pytest.approx(weights)


def test_dft_weight_by_hand() -> None:
    """p_θ(x) = ¼ and ½ at t = ½: weights ½ and 1."""
    corrupted = corrupted_by_hand(bits("11"), [0.5])
    ce = torch.tensor([math.log(4), math.log(2)])
    weights = token_weights(Objective(weight="dft"), canvas_by_hand(bits("11")), corrupted, ce)
    assert weights.tolist() == pytest.approx([0.5, 1.0])


def test_importance_weight_by_hand() -> None:
    """β/β_ref = ½ and 2 at t = ¼: weights 2 and 8."""
    corrupted = corrupted_by_hand(bits("011"), [0.25], torch.tensor([[9.0, 0.5, 2.0]]))
    weights = token_weights(Objective(weight="importance"), canvas_by_hand(bits("011")), corrupted, torch.ones(2))
    assert weights.tolist() == [2.0, 8.0]


def test_rho1_keeps_the_largest_excess_of_each_row() -> None:
    """Row 0: excess 0, 3, −1, 2, 1 and share 0.6 keeps three; row 1 has one masked token and keeps it."""
    corrupted = corrupted_by_hand(bits("11111", "00010"), [0.5, 0.25])
    ce = torch.tensor([5.0, 4.0, 0.0, 3.0, 2.0, 1.0])
    reference = torch.tensor([5.0, 1.0, 1.0, 1.0, 1.0, 7.0])
    canvas = canvas_by_hand(bits("11111", "11111"))
    weights = token_weights(Objective(weight="rho1", keep=0.6), canvas, corrupted, ce, reference)
    assert weights.tolist() == [0.0, 2.0, 0.0, 2.0, 2.0, 4.0]


@pytest.mark.parametrize(("keep", "kept"), [(0.01, 1), (0.1, 1), (0.25, 2), (0.5, 5), (1.0, 10)])
def test_rho1_share(keep: float, kept: int) -> None:
    corrupted = corrupted_by_hand(bits("1" * 10), [1.0])
    ce = torch.rand(10, generator=torch.Generator().manual_seed(0))
    objective = Objective(weight="rho1", keep=keep)
    weights = token_weights(objective, canvas_by_hand(bits("1" * 10)), corrupted, ce, torch.zeros(10))
    assert weights.sum() == kept
    if kept < 10:
        assert ce[weights > 0].min() > ce[weights == 0].max()


def test_rho1_without_a_reference_is_an_error() -> None:
    corrupted = corrupted_by_hand(bits("1"), [1.0])
    with pytest.raises(UserError, match="reference"):
        token_weights(Objective(weight="rho1"), canvas_by_hand(bits("1")), corrupted, torch.ones(1))


@pytest.mark.parametrize("weight", ["inverse_rate", "importance", "cart", "dft", "rho1"])
def test_weights_carry_no_gradient(weight: str) -> None:
    """∂loss/∂ce_i is the weight itself, and nothing more."""
    canvas = canvas_by_hand(bits("0111"))
    corrupted = corrupted_by_hand(bits("0110"), [0.5], torch.tensor([[1.0, 0.5, 1.5, 1.0]]))
    ce = torch.tensor([0.7, 1.3], requires_grad=True)
    objective = Objective(weight=weight)
    weights = token_weights(objective, canvas, corrupted, ce, torch.zeros(2))
    assert not weights.requires_grad
    row_losses(objective, canvas, corrupted, ce, torch.zeros(2)).sum().backward()
    assert ce.grad is not None
    assert torch.equal(ce.grad, weights)


def test_lift_scores_its_superset_and_takes_the_rule_of_each_row() -> None:
    """t = 0.5, s = 1: every token is in the superset and half of the four stay masked. Row 0 (lift2: easy) keeps the
    likeliest two; at t = 0.25 row 1 is hard and keeps the least likely one."""
    ids = torch.tensor([[0, 1, 2, 3]] * 2)
    response = torch.ones(2, 4, dtype=torch.bool)
    seen = []

    def predict(ids: torch.Tensor, attended: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        seen.append(ids)
        gold = torch.tensor([3.0, 0.0, 2.0, 1.0]).repeat(2)
        return torch.nn.functional.one_hot(torch.arange(4).repeat(2), 5) * gold[:, None]

    noise = Noise.at(torch.tensor([0.5, 0.25]), torch.rand(2, 4), torch.ones(2))
    corrupted = corrupt(
        Objective(rate="lift2"), Canvas(ids, response, response, response), noise, 4, reader=LogitsReader(predict)
    )
    assert [x.tolist() for x in seen] == [[[4] * 4] * 2]
    assert corrupted.mask.tolist() == [[True, False, True, False], [False, True, False, False]]
    assert corrupted.ids.tolist() == [[4, 1, 4, 3], [0, 4, 2, 3]]
    assert corrupted.rate.tolist() == [[0.5] * 4, [0.25] * 4]


# ---- GIFT against SFT -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("normaliser", ["response", "masked", "sequence"])
def test_gift_with_constant_importance_is_sft_bit_for_bit(
    normaliser: str, canvas: Canvas, noise: Noise, random_model: Any, logits_of: Callable[[Any], LogitsReader]
) -> None:
    reader, mask_id = logits_of(random_model), random_model.config.mask_token_id
    results = []
    for name, choices in (("sft", {}), ("gift", {"signal": "constant"})):
        objective = resolve(name, normaliser=normaliser, **choices)
        top, bottom, corrupted = numerator_and_denominator(objective, canvas, noise, reader, mask_id)
        random_model.zero_grad()
        (top / bottom).backward()
        gradients = [parameter.grad.clone() for parameter in random_model.parameters()]
        results.append((corrupted.mask, corrupted.rate, corrupted.ids, top / bottom, *gradients))
    assert results[0][0].any()
    for plain, gift in zip(*results, strict=True):
        assert torch.equal(plain, gift)


def test_zero_entropy_everywhere_falls_back_to_sft(canvas: Canvas, noise: Noise) -> None:
    plain = corrupt(resolve("sft"), canvas, noise, 9)
    zero = torch.zeros(canvas.ids.shape)
    for name in ("gift", "gift-raw", "gift-log", "gift-cbrt", "gift-permuted"):
        gift = corrupt(resolve(name), canvas, noise, 9, signal=zero)
        assert torch.equal(plain.mask, gift.mask)
        assert torch.equal(plain.rate, gift.rate)


def test_importance_moves_the_masks_and_not_the_noise(canvas: Canvas, noise: Noise) -> None:
    """Under one noise, a token that SFT masks stays masked where GIFT's rate is higher, and the other way round."""
    signal = torch.rand(canvas.ids.shape, generator=torch.Generator().manual_seed(1)) * 4
    plain, gift = (corrupt(resolve(name), canvas, noise, 9, signal=signal) for name in ("sft", "gift"))
    assert not torch.equal(plain.rate, gift.rate)
    higher = gift.rate >= plain.rate
    assert not (plain.mask & ~gift.mask & higher).any()
    assert not (gift.mask & ~plain.mask & ~higher).any()


# ---- edges ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MASKING)
def test_every_preset_runs_from_noise_to_gradient(
    name: str,
    canvas: Canvas,
    noise: Noise,
    random_model: Any,
    another_model: Any,
    logits_of: Callable[[Any], LogitsReader],
) -> None:
    top, bottom, corrupted = numerator_and_denominator(
        PRESETS[name],
        canvas,
        noise,
        logits_of(random_model),
        random_model.config.mask_token_id,
        logits_of(another_model),
    )
    assert corrupted.mask.any()
    assert not (corrupted.mask & ~canvas.corruptible).any()
    loss = top / bottom
    loss.backward()
    assert loss.item() > 0
    assert loss.isfinite()
    gradients = [parameter.grad for parameter in random_model.parameters()]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("u", [1.0, 0.0])
@pytest.mark.parametrize("name", MASKING)
def test_nothing_and_everything_masked(
    name: str,
    u: float,
    canvas: Canvas,
    random_model: Any,
    another_model: Any,
    logits_of: Callable[[Any], LogitsReader],
) -> None:
    """u = 1 masks nothing: the loss and every gradient are 0, not NaN. u = 0 masks all: both are finite."""
    full = torch.full(canvas.ids.shape, u)
    noise = Noise.at(
        torch.full((4,), 0.5), full, torch.zeros(4), torch.rand(full.shape, generator=torch.Generator().manual_seed(0))
    )
    top, bottom, corrupted = numerator_and_denominator(
        PRESETS[name],
        canvas,
        noise,
        logits_of(random_model),
        random_model.config.mask_token_id,
        logits_of(another_model),
    )
    loss = top / bottom.clamp(min=1)
    loss.backward()
    gradients = [parameter.grad for parameter in random_model.parameters() if parameter.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    if u == 1.0:
        assert not corrupted.mask.any()
        assert loss == 0
        assert not any(gradient.any() for gradient in gradients)
    else:
        assert loss.isfinite()
        assert loss > 0
        if not PRESETS[name].rate.startswith("lift"):
            assert torch.equal(corrupted.mask, canvas.corruptible)


@pytest.mark.parametrize("normaliser", ["response", "masked", "sequence"])
@pytest.mark.parametrize("name", MASKING)
def test_the_loss_of_a_batch_is_that_of_its_micro_batches(
    name: str,
    normaliser: str,
    canvas: Canvas,
    noise: Noise,
    random_model: Any,
    another_model: Any,
    logits_of: Callable[[Any], LogitsReader],
) -> None:
    """Numerators and denominators add up, however the batch is cut; a mean of the parts' means would differ."""
    objective = replace(PRESETS[name], normaliser=normaliser)

    def parts(*cuts: slice) -> list[tuple[float, float]]:
        found = []
        for cut in cuts:
            top, bottom, _ = numerator_and_denominator(
                objective,
                *rows_of(canvas, noise, cut),
                logits_of(random_model),
                random_model.config.mask_token_id,
                logits_of(another_model),
            )
            found.append((top.item(), bottom.item()))
        return found

    with torch.no_grad():
        ((top, bottom),) = parts(slice(0, 4))
        split = parts(slice(0, 1), slice(1, 4))
    assert sum(part[1] for part in split) == bottom
    assert sum(part[0] for part in split) / bottom == pytest.approx(top / bottom, rel=1e-5)
    assert sum(n / max(d, 1) for n, d in split) / 2 != pytest.approx(top / bottom, rel=1e-5)


# ---- unbiasedness ---------------------------------------------------------------------------------------------


def losses_over_noise(name: str, rows: int = 40_000) -> tuple[torch.Tensor, float]:
    """One short sequence under many noises, with a model whose predictions do not depend on what it reads.

    Returns each draw's loss per response token, and the mean cross-entropy that an unbiased loss has as its mean. The
    tokens' entropies differ much and their losses with them, so a wrong weight shows.
    """
    logits = torch.tensor([[6.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [2.0, 2.0, 0.0, -9.0]])
    ids = torch.tensor([[0, 1, 2, 0]]).expand(rows, 4)
    everything = torch.ones(rows, 4, dtype=torch.bool)
    canvas = Canvas(ids, everything, everything, everything)
    generator = torch.Generator().manual_seed(0)
    time = MIN_TIME + (1 - MIN_TIME) * torch.rand(rows, generator=generator)
    noise = Noise.at(time, torch.rand(rows, 4, generator=generator), None, torch.rand(rows, 4, generator=generator))

    def predict(ids: torch.Tensor, attended: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return logits[positions.nonzero()[:, 1]]

    objective = PRESETS[name]
    signal = probe_signal(LogitsReader(predict), canvas, 3, objective.signal)
    corrupted = corrupt(objective, canvas, noise, 3, signal=signal)
    where = scored_positions(canvas, corrupted)
    ce = token_cross_entropy(predict(corrupted.ids, canvas.attended, where), ids[where])
    per_row = row_losses(objective, canvas, corrupted, ce) / 4
    return per_row.double(), token_cross_entropy(logits, ids[0]).mean().item()


@pytest.mark.parametrize("name", ["sft", "gift-elbo"])
def test_the_mean_loss_over_noise_is_the_cross_entropy(name: str) -> None:
    losses, truth = losses_over_noise(name)
    error = (losses.std() / len(losses) ** 0.5).item()
    assert error < 0.02 * truth  # or the interval would prove little
    assert abs(losses.mean().item() - truth) < 4 * error


def test_gift_elbo_and_sft_differ_in_each_draw_and_not_in_the_mean() -> None:
    gift, sft = losses_over_noise("gift-elbo")[0], losses_over_noise("sft")[0]
    difference = gift - sft
    assert (difference != 0).double().mean() > 0.5
    assert abs(difference.mean()) < 4 * difference.std() / len(difference) ** 0.5


@pytest.mark.parametrize("name", ["gift-alpha", "weft-sw"])
def test_a_true_up_weighting_fails_the_same_interval(name: str) -> None:
    losses, truth = losses_over_noise(name)
    error = (losses.std() / len(losses) ** 0.5).item()
    assert abs(losses.mean().item() - truth) > 4 * error


# ---- mistakes -------------------------------------------------------------------------------------------------


def test_an_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(UserError, match=r"unknown objective 'gfit'.*sft, gift, gift-elbo"):
        resolve("gfit")


def test_an_unknown_choice_is_named() -> None:
    with pytest.raises(UserError, match=r"temperature.*rate, signal, transform"):
        resolve("sft", temperature=1.0)


@pytest.mark.parametrize(
    ("choice", "listed"),
    [
        ("rate", "uniform, importance"),
        ("signal", "entropy, nll"),
        ("transform", "sqrt, identity"),
        ("reference", "sequence, batch"),
        ("weight", "inverse_rate, importance"),
        ("normaliser", "response, masked, sequence"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_an_unknown_option_names_the_choices(choice: str, listed: str) -> None:
    with pytest.raises(UserError, match=f"unknown {choice} 'other'.*{listed}"):
        resolve("gift", **{choice: "other"})


@pytest.mark.parametrize("choice", [{"alpha": 1.5}, {"alpha": -0.1}, {"keep": 1.1}, {"cart_q": -1.0}])
def test_a_number_out_of_range_is_named(choice: dict[str, float]) -> None:
    with pytest.raises(UserError, match=rf"{next(iter(choice))} = .*\[0, 1\]"):
        Objective(**choice)


def test_what_corruption_needs_is_asked_for(canvas: Canvas, noise: Noise) -> None:
    with pytest.raises(UserError, match="signal"):
        corrupt(resolve("gift"), canvas, noise, 9)
    with pytest.raises(UserError, match="reader"):
        corrupt(resolve("lift3"), canvas, noise, 9)
    bare = Noise(noise.tau, noise.u)
    with pytest.raises(UserError, match=r"Noise\.v"):
        corrupt(resolve("gift-permuted"), canvas, bare, 9, signal=torch.rand(canvas.ids.shape))


def test_rates_of_the_smallest_time_stay_at_epsilon(canvas: Canvas) -> None:
    """At t = ε a token of little entropy keeps the rate ε: its weight is at most 1/ε."""
    noise = Noise.at(torch.full((4,), MIN_TIME), torch.zeros(canvas.ids.shape))
    signal = torch.rand(canvas.ids.shape, generator=torch.Generator().manual_seed(0))
    corrupted = corrupt(resolve("gift"), canvas, noise, 9, signal=signal)
    where = scored_positions(canvas, corrupted)
    weights = token_weights(resolve("gift"), canvas, corrupted, torch.ones(int(where.sum())))
    assert weights.max() <= 1 / MIN_TIME * (1 + 1e-6)


def test_rho1_keeps_something() -> None:
    with pytest.raises(UserError, match="keep = 0: no token would be learned"):
        Objective(weight="rho1", keep=0.0)
