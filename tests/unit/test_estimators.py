"""Estimators and gradients side by side: by hand, and against a plain computation of the same."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import Tensor

from remask.analysis.estimators import (
    ESTIMATORS,
    compare_estimators,
    draw_noise,
    first_tokens,
    pass_count,
    tightness,
    uniform_time_views,
)
from remask.analysis.gradient_sums import SKETCH, Drawn, Sums, cosine_error, layer_of, log_ratio_error, sketch
from remask.analysis.gradients import compare_gradients, gradient, gradients, random_visits
from remask.analysis.reward_relation import concordance
from remask.data.canvas import Fill, Row
from remask.data.collate import Collator, Visit
from remask.diffusion.corruption import Canvas
from remask.diffusion.noise import Noise, low_discrepancy_place
from remask.diffusion.objective import Objective
from remask.diffusion.reader import LogitsReader
from remask.diffusion.times import LINEAR, MIN_TIME
from remask.errors import UserError
from remask.models.llada import LLaDAConfig, LLaDAModelLM
from remask.sft.presets import resolve

MASK = 4
LOG_P = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()


def without_context(ids: Tensor, attended: Tensor, positions: Tensor) -> Tensor:
    return LOG_P.expand(int(positions.sum()), 4)


ignorant = LogitsReader(without_context)


def canvas(*tokens: int) -> Canvas:
    ids = torch.tensor([[0, *tokens]])
    response = torch.ones_like(ids, dtype=torch.bool)
    response[0, 0] = False
    return Canvas(ids, torch.ones_like(response), response, response)


def test_uniform_time_by_hand() -> None:
    """t = 0.4 masks u = 0.1 and 0.3; each weighs 1/t."""
    (view,) = uniform_time_views(
        canvas(1, 2, 3), Noise.at(torch.tensor([0.4]), torch.tensor([[0.0, 0.1, 0.9, 0.3]])), MASK
    )
    assert view.ids.tolist() == [[0, MASK, 2, MASK]]
    assert view.scored.tolist() == [[False, True, False, True]]
    assert view.weight.unique().tolist() == pytest.approx([2.5])


def test_stratified_draws_put_one_time_in_each_part() -> None:
    noise = draw_noise(50, 3, 4, stratified=True, generator=torch.Generator().manual_seed(0))
    times = torch.stack([n.row_tau for n in noise])
    assert (times.mul(4).floor() == torch.arange(4)[:, None]).all()
    free = draw_noise(50, 3, 4, stratified=False, generator=torch.Generator().manual_seed(0))
    assert not (torch.stack([n.row_tau for n in free]).mul(4).floor() == torch.arange(4)[:, None]).all()


def test_every_unbiased_estimator_finds_the_truth_and_passes_are_counted() -> None:
    """A model that ignores context has the ELBO Σ log p; the interval of each bias holds 0 (4 standard errors)."""
    batch = canvas(0, 1, 2, 3)
    truth = LOG_P.mean().double()[None]
    done: list[int] = []
    found, _ = compare_estimators(
        ignorant, batch, MASK, draws=(1, 2), count=400, reference_count=10, truth=truth, tick=done.append
    )
    unbiased = {e.name for e in ESTIMATORS if e.unbiased} | {"mean field"}  # exact where context does not matter
    for quality in (q for q in found if q.name in unbiased):
        width = (quality.bias_high - quality.bias_low) / 2
        assert abs(quality.bias) <= 2.1 * width + 1e-6, quality
    free = {(q.name, q.draws): q.sd**2 for q in found}
    assert free["exact count", 2] == pytest.approx(free["exact count", 1] / 2, rel=0.3)
    assert free["exact count, stratified", 2] < free["exact count", 2]
    assert free["exact count", 1] < free["uniform t", 1]  # which at small t weighs few tokens by much
    assert next(q for q in found if q.name == "exact count").efficiency == 1.0
    assert {q.name for q in found if q.efficiency is None} >= {e.name for e in ESTIMATORS if not e.unbiased}
    assert sum(done) + 20 == pass_count(1, (1, 2), 400, 10)  # the reference's own 20 were not needed


def test_bias_is_held_against_a_reference_where_the_truth_is_not_known() -> None:
    """A model without context: the mean field is exact and read once; DiffuCoder's estimate counts half too much."""
    batch = Canvas(*(x.repeat(3, 1) for x in (canvas(0, 1, 2, 3).ids, *[torch.ones(1, 5, dtype=torch.bool)] * 3)))
    batch.corruptible[:, 0] = batch.supervised[:, 0] = False
    done: list[int] = []
    found, truth = compare_estimators(
        ignorant, batch, MASK, draws=(1, 4), count=64, reference_count=256, tick=done.append
    )
    expected = LOG_P.mean().item()
    assert truth.tolist() == pytest.approx([expected] * 3, abs=0.05)
    by_name = {(q.name, q.draws): q for q in found}
    for name in ("exact count", "coupled", "mean field"):
        quality = by_name[name, 1]
        assert abs(quality.bias) <= 1.1 * (quality.bias_high - quality.bias_low)  # 4.3 standard errors
    assert by_name["coupled (DiffuCoder)", 4].bias == pytest.approx(expected / 2, abs=0.15)
    assert by_name["coupled (DiffuCoder)", 4].bias_high < 0
    assert (by_name["mean field", 1].forwards, ("mean field", 4) in by_name) == (1, False)
    assert sum(done) == pass_count(3, (1, 4), 64, 256)


def test_tightness_of_a_model_without_context_is_total() -> None:
    """All orders give the same product: ELBO, bounds and likelihood coincide."""
    one = first_tokens(canvas(0, 1, 2, 3), 0, 3)
    found = tightness(ignorant, one, MASK, orders=(1, 4), repetitions=2, generator=torch.Generator())
    expected = LOG_P[:3].mean().item()
    assert found.tokens == 3
    assert [found.elbo, found.log_likelihood, *(v for _, v in found.bounds)] == pytest.approx([expected] * 4, abs=1e-6)


def test_concordance_by_hand() -> None:
    """Pairs of unlike reward: (1, 0) and (1, 0.5) right, (0.5, 0) tied: 2.5 of 3. No spread: nothing to say."""
    assert concordance([1.0, 0.0, 0.5], [3.0, 1.0, 1.0]) == pytest.approx(2.5 / 3)
    assert concordance([0.2, 0.2], [1.0, 2.0]) is None


@pytest.fixture(scope="module")
def small() -> LLaDAModelLM:
    torch.manual_seed(0)
    config = LLaDAConfig(
        vocab_size=12,
        d_model=16,
        n_layers=2,
        n_heads=2,
        mlp_hidden_size=32,
        max_sequence_length=64,
        eos_token_id=9,
        pad_token_id=9,
        mask_token_id=11,
    )
    return LLaDAModelLM(config).eval()


ROWS = [Row([1, 2], [3, 4, 5, 6, 7], "a"), Row([2], [8, 3, 4], "b")]
COLLATOR = Collator(Fill("none"), 9, 64, seed=3)


def test_a_gradient_is_that_of_the_plain_formula(small: LLaDAModelLM) -> None:
    """(1/N) Σ m·ce/t over whole logits."""
    visits = [Visit(0, 5, 10), Visit(1, 5, 11)]
    found = gradient(small, ROWS, COLLATOR, resolve("sft"), 11, visits)
    batch = COLLATOR(list(zip(ROWS, visits, strict=True)))
    where, noise = Canvas.of(batch), Noise.of(batch)
    mask = (noise.u < LINEAR.rate(noise.tau)) & where.corruptible
    assert mask.any()
    logits = small(input_ids=where.ids.masked_fill(mask, 11), attention_mask=where.attended.long()).logits
    ce = torch.nn.functional.cross_entropy(logits.transpose(1, 2), where.ids, reduction="none")
    loss = (ce * mask / LINEAR.rate(noise.tau)).sum() / where.corruptible.sum()
    expected = torch.autograd.grad(loss, list(small.parameters()), allow_unused=True)
    for (name, parameter), g in zip(small.named_parameters(), expected, strict=True):
        torch.testing.assert_close(found[name], torch.zeros_like(parameter) if g is None else g, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in small.parameters())


def of_vectors(draws: Tensor) -> Sums:
    """The sums of given gradients [R, D]."""
    sums = Sums()
    for draw in draws:
        sums.add(Drawn.of({"layers.0.w": draw}))
    return sums


def test_sums_by_hand() -> None:
    """g = (1, 0), (3, 0), (2, 1) with weights 1, 2, 1: E‖g‖² ≈ (1 + 18 + 5)/3 = 8; Σwg = (9, 1), Σw²‖g‖² = 1 + 36 + 5,
    ‖μ‖² ≈ (82 − 42)/6, tr Σ the rest.
    """
    sums = Sums()
    for g, weight in (([1.0, 0.0], 1.0), ([3.0, 0.0], 2.0), ([2.0, 1.0], 1.0)):
        sums.add(Drawn.of({"layers.0.w": torch.tensor(g[:1]), "head.w": torch.tensor(g[1:])}), weight)
    assert sums.squared_mean() == pytest.approx(40 / 6)
    assert sums.variance() == pytest.approx(8 - 40 / 6)
    assert sums.squared_mean("head") == pytest.approx(0.0)  # (1 − 1)/6
    assert sums.variance("layers.0") == pytest.approx((1 + 18 + 4) / 3 - 40 / 6)
    without_the_last = Sums()
    for g, weight in (([1.0, 0.0], 1.0), ([3.0, 0.0], 2.0)):
        without_the_last.add(Drawn.of({"layers.0.w": torch.tensor(g[:1]), "head.w": torch.tensor(g[1:])}), weight)
    assert sums.squared_means_but_one()[2].item() == pytest.approx(without_the_last.squared_mean())
    assert sums.variances_but_one()[2].item() == pytest.approx(without_the_last.variance())


def test_sums_are_those_of_the_gradients(small: LLaDAModelLM) -> None:
    """Every draw has its own visits."""
    objective, seen = resolve("gift"), np.random.default_rng(1)
    sums = Sums()
    for drawn, weight in gradients(small, ROWS, COLLATOR, objective, 11, 5, np.random.default_rng(1)):
        sums.add(Drawn.of(drawn), weight)
    steps = [random_visits(len(ROWS), COLLATOR.seed, seen) for _ in range(5)]
    each = torch.stack(
        [
            torch.cat([g.flatten() for g in gradient(small, ROWS, COLLATOR, objective, 11, visits).values()])
            for visits, _ in steps
        ]
    ).double()
    weights = torch.tensor([w for _, w in steps], dtype=torch.float64)
    squares = each.square().sum(-1)
    mean = ((weights @ each).square().sum() - (weights.square() * squares).sum()).item() / 20
    assert sums.squared_mean() == pytest.approx(mean, rel=1e-3)
    assert sums.variance() == pytest.approx((weights * squares).mean().item() - mean, rel=1e-3)
    assert sum(sums.variance(layer) for layer in sums.squares) == pytest.approx(sums.variance(), rel=1e-6)
    assert {"layers.0", "layers.1"} < set(sums.squares)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [8, 13])
def test_steps_are_drawn_as_training_meets_them(rows: int) -> None:
    """Weighted means over draws are those over all places of the sequence: of t, and, which plain draws would hardly
    find, of 1/t² (whose mean over [ε, 1] is 1/ε). Times of one step are not those of the next.
    """
    random = np.random.default_rng(0)
    drawn = [random_visits(rows, 0, random) for _ in range(3000)]
    times = MIN_TIME + (1 - MIN_TIME) * np.array(
        [[low_discrepancy_place(0, visit.visit) for visit in visits] for visits, _ in drawn]
    )
    weights = np.array([weight for _, weight in drawn])
    assert weights.max() <= 2
    assert weights.mean() == pytest.approx(1.0, abs=0.05)
    assert (weights[:, None] * times).mean() == pytest.approx((1 + MIN_TIME) / 2, rel=0.05)
    assert (weights[:, None] * times**-2).mean() == pytest.approx(1 / MIN_TIME, rel=0.15)
    first = times[:, 0] * weights
    assert np.corrcoef(first[:-1], first[1:])[0, 1] == pytest.approx(0.0, abs=0.08)


def test_visits_of_a_draw_are_consecutive_and_in_any_order() -> None:
    random = np.random.default_rng(3)
    drawn = [random_visits(4, 0, random)[0] for _ in range(400)]
    for visits in drawn:
        first = min(v.visit for v in visits)
        assert sorted(v.visit - first for v in visits) == [0, 1, 2, 3]
        assert [v.index for v in visits] == [0, 1, 2, 3]
    assert len({v.epoch for visits in drawn for v in visits}) == 400
    assert len({tuple(v.visit - min(w.visit for w in visits) for v in visits) for visits in drawn}) == 24


@pytest.mark.slow
def test_methods_are_held_against_the_first(small: LLaDAModelLM) -> None:
    """The same method twice: as much compute and the same direction, within four standard errors."""
    plain = Objective(rate="uniform", alpha=0.0)  # no weights of 1/t: light tails
    methods = {"a": plain, "b": plain, "c": resolve("gift")}
    first, same, probed = compare_gradients(small, ROWS, COLLATOR, methods, 11, count=101)
    assert (first.cosine, first.compute, first.forwards, probed.forwards) == (1.0, 1.0, 3, 4)
    assert same.variance != first.variance  # its noise is its own
    assert same.variance == pytest.approx(first.variance, abs=4 * math.hypot(same.variance_error, first.variance_error))
    assert same.cosine == pytest.approx(1.0, abs=4 * same.cosine_error)
    assert same.cosine_error < 0.2
    spread = math.log(same.compute_high / same.compute) / 1.96
    assert abs(math.log(same.compute)) < 4 * spread
    assert same.compute_low < same.compute < same.compute_high < 10 * same.compute_low
    with pytest.raises(UserError, match="reference model"):
        compare_gradients(small, ROWS, COLLATOR, {"rho1": resolve("rho1")}, 11, count=4)
    with pytest.raises(UserError, match="3 gradients"):
        compare_gradients(small, ROWS, COLLATOR, {"sft": resolve("sft")}, 11, count=3)


def test_clipping_by_hand() -> None:
    """(3, 4) has a length of 5: clipped to 1 it is (0.6, 0.8), to 6 itself; sums of it are those of (0.6, 0.8)."""
    drawn = Drawn.of({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])})
    assert (drawn.clip_scale(1.0), drawn.clip_scale(6.0), drawn.clip_scale(None)) == pytest.approx((0.2, 1.0, 1.0))
    cut, plain = Sums(), Sums()
    for _ in range(2):
        cut.add(drawn, 1.5, scale=0.2)
        plain.add(Drawn.of({"a": torch.tensor([0.6]), "b": torch.tensor([0.8])}), 1.5)
    assert cut.squared_mean() == pytest.approx(plain.squared_mean())
    assert cut.variance() == pytest.approx(plain.variance())
    assert torch.allclose(cut.sketches[0], plain.sketches[0])


def test_clipped_gradients_come_after_those_as_they_are(small: LLaDAModelLM) -> None:
    methods = {name: resolve(name) for name in ("sft", "gift")}
    found = compare_gradients(small, ROWS, COLLATOR, methods, 11, count=20, clip=1e-3)
    assert [(m.name, m.clip) for m in found] == [("sft", None), ("gift", None), ("sft", 1e-3), ("gift", 1e-3)]
    plain = compare_gradients(small, ROWS, COLLATOR, methods, 11, count=20)
    assert plain == found[:2]
    for method in found[2:]:  # all of one length: E‖g‖² is its square, up to the weights' mean
        assert method.norm is not None
        assert method.variance + method.norm**2 == pytest.approx(1e-6, rel=0.4)


def test_what_is_lost_in_the_noise_is_not_known(small: LLaDAModelLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not infinite, nor zero: nothing that JSON has no word for."""
    generator = torch.Generator().manual_seed(0)

    def noise(*_: object) -> dict[str, Tensor]:
        return {"layers.0.w": torch.randn(100, generator=generator)}

    monkeypatch.setattr("remask.analysis.gradients.gradient", noise)
    found = compare_gradients(small, ROWS, COLLATOR, {name: resolve("sft") for name in "abcdefgh"}, 11, count=4)
    lost = [each for each in found if each.norm is None]
    assert lost
    for each in lost:
        assert (each.relative, each.compute, each.compute_low, each.cosine, each.layers["layers.0"]) == (None,) * 5
    json.dumps([asdict(each) for each in found], allow_nan=False)


def test_noise_in_the_mean_is_taken_out() -> None:
    """Pure noise: ‖ḡ‖² is its share alone, and the corrected mean is 0 in expectation."""
    generator = torch.Generator().manual_seed(0)
    found = [of_vectors(torch.randn(8, 5, generator=generator)).squared_mean() for _ in range(200)]
    assert min(found) < 0  # and not cut off there
    assert abs(sum(found) / 200) < 4 * torch.tensor(found).std().item() / math.sqrt(200)


def test_sketches_keep_lengths_and_angles() -> None:
    generator = torch.Generator().manual_seed(0)
    one = {"a": torch.randn(70, 301, generator=generator), "b": torch.randn(5, generator=generator)}
    other = {name: 0.6 * g + 0.8 * torch.randn(g.shape, generator=generator) for name, g in one.items()}
    x, y = (torch.cat([g.flatten() for g in each.values()]) for each in (one, other))
    assert sketch(one).shape == (SKETCH,)
    assert (sketch(one) @ sketch(other)).item() == pytest.approx((x @ y).item(), abs=4 * len(x) / math.sqrt(SKETCH))
    assert sketch({"b": one["b"]}).square().sum() == pytest.approx(one["b"].square().sum().item())


@pytest.mark.slow
def test_intervals_of_ratios_and_cosines_cover() -> None:
    """100 pairs of methods in 40 dimensions, whose means have a cosine of 0.6 and whose noise differs by a factor 4."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.zeros(2, 40)
    mean[0, 0], mean[1, 0], mean[1, 1] = 1.0, 0.6, 0.8
    covered = [0, 0]
    for _ in range(100):
        quiet, loud = (
            of_vectors(mean[i] + scale * torch.randn(60, 40, generator=generator)) for i, scale in ((0, 0.25), (1, 0.5))
        )
        length = math.sqrt(quiet.squared_mean() * loud.squared_mean())
        error = cosine_error(quiet, loud)
        assert error is not None
        covered[0] += abs(quiet.product(loud) / length - 0.6) < 1.96 * error
        ratio = loud.variance() / loud.squared_mean() / (quiet.variance() / quiet.squared_mean())
        spread = log_ratio_error(quiet, loud)
        assert spread is not None
        covered[1] += abs(math.log(ratio / 4)) < 1.96 * spread
    assert [share / 100 for share in covered] == pytest.approx([0.95, 0.95], abs=0.06)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.self_attn.q_proj.weight", "layers.3"),
        ("base_model.model.model.layers.11.mlp.up_proj.lora_A.default.weight", "layers.11"),
        ("model.embed_tokens.weight", "embed_tokens"),
        ("lm_head.weight", "lm_head"),
    ],
)
def test_layers_are_named(name: str, layer: str) -> None:
    assert layer_of(name) == layer
