"""Estimators and gradients side by side: by hand, and against a plain computation of the same."""

from __future__ import annotations

import math

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
from remask.analysis.gradients import Sums, compare_gradients, gather, gradient, layer_of
from remask.analysis.reward_relation import concordance
from remask.data.canvas import Fill, Row
from remask.data.collate import Collator, Visit, canvas_of, noise_of
from remask.diffusion.corruption import Canvas
from remask.diffusion.noise import MIN_TIME, Noise
from remask.errors import UserError
from remask.models.llada import LLaDAConfig, LLaDAModelLM
from remask.sft.presets import resolve

MASK = 4
LOG_P = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()


def ignorant(ids: Tensor, attended: Tensor, positions: Tensor) -> Tensor:
    return LOG_P.expand(int(positions.sum()), 4)


def canvas(*tokens: int) -> Canvas:
    ids = torch.tensor([[0, *tokens]])
    response = torch.ones_like(ids, dtype=torch.bool)
    response[0, 0] = False
    return Canvas(ids, torch.ones_like(response), response, response)


def test_uniform_time_by_hand() -> None:
    """t = 0.4 masks u = 0.1 and 0.3; each weighs 1/t."""
    (view,) = uniform_time_views(
        canvas(1, 2, 3), Noise(torch.tensor([0.4]), torch.tensor([[0.0, 0.1, 0.9, 0.3]])), MASK
    )
    assert view.ids.tolist() == [[0, MASK, 2, MASK]]
    assert view.scored.tolist() == [[False, True, False, True]]
    assert view.weight.tolist() == pytest.approx([2.5])


def test_stratified_draws_put_one_time_in_each_part() -> None:
    noise = draw_noise(50, 3, 4, stratified=True, generator=torch.Generator().manual_seed(0))
    times = (torch.stack([n.t for n in noise]) - MIN_TIME) / (1 - MIN_TIME)
    assert (times.mul(4).floor() == torch.arange(4)[:, None]).all()
    free = draw_noise(50, 3, 4, stratified=False, generator=torch.Generator().manual_seed(0))
    assert not (torch.stack([n.t for n in free]).mul(4).floor() == torch.arange(4)[:, None]).all()


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
    found = gradient(small, ROWS, COLLATOR, resolve("sft"), 11, 5)
    batch = COLLATOR([(row, Visit(i, 5, 10 + i)) for i, row in enumerate(ROWS)])
    where, noise = canvas_of(batch), noise_of(batch)
    mask = (noise.u < noise.t[:, None]) & where.corruptible
    assert mask.any()
    logits = small(input_ids=where.ids.masked_fill(mask, 11), attention_mask=where.attended.long()).logits
    ce = torch.nn.functional.cross_entropy(logits.transpose(1, 2), where.ids, reduction="none")
    loss = (ce * mask / noise.t[:, None]).sum() / where.corruptible.sum()
    expected = torch.autograd.grad(loss, list(small.parameters()), allow_unused=True)
    for (name, parameter), g in zip(small.named_parameters(), expected, strict=True):
        torch.testing.assert_close(found[name], torch.zeros_like(parameter) if g is None else g, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in small.parameters())


def test_sums_are_those_of_the_gradients(small: LLaDAModelLM) -> None:
    objective = resolve("gift")
    sums = gather(small, ROWS, COLLATOR, objective, 11, 6)
    each = [
        torch.cat([g.flatten() for g in gradient(small, ROWS, COLLATOR, objective, 11, r).values()]).double()
        for r in range(6)
    ]
    halves = [(each[r] - each[r + 1]).square().sum().item() / 2 for r in (0, 2, 4)]
    variance, error = sums.variance()
    assert variance == pytest.approx(sum(halves) / 3, rel=1e-4)
    assert error == pytest.approx(torch.tensor(halves).std().item() / math.sqrt(3), rel=1e-4)
    mean = torch.stack(each).mean(0).square().sum().item()
    assert sums.squared_mean() == pytest.approx(mean - variance / 6, rel=1e-3)
    by_layer = sum(sums.variance(layer)[0] for layer in sums.pairs)
    assert by_layer == pytest.approx(variance, rel=1e-6)
    assert {"layers.0", "layers.1"} < set(sums.pairs)


def test_methods_are_held_against_the_first(small: LLaDAModelLM) -> None:
    first, same, probed = compare_gradients(
        small, ROWS, COLLATOR, {n: resolve(p) for n, p in (("a", "sft"), ("b", "sft"), ("c", "gift"))}, 11, count=40
    )
    assert (first.cosine, first.compute, first.forwards, probed.forwards) == (1.0, 1.0, 3, 4)
    assert same.variance == pytest.approx(first.variance, rel=1.0)
    assert same.variance != first.variance  # its noise is its own
    with pytest.raises(UserError, match="reference model"):
        compare_gradients(small, ROWS, COLLATOR, {"rho1": resolve("rho1")}, 11, count=4)
    with pytest.raises(UserError, match="3 gradients"):
        compare_gradients(small, ROWS, COLLATOR, {"sft": resolve("sft")}, 11, count=3)


def test_noise_in_the_mean_is_taken_out() -> None:
    """Pure noise: ‖ḡ‖² is its share alone, and the corrected mean is 0 in expectation."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(200):
        draws = torch.randn(8, 5, generator=generator)
        pairs = [(draws[i] - draws[i + 1]).square().sum().item() / 2 for i in range(0, 8, 2)]
        found.append(Sums({"layers.0.w": draws.mean(0)}, {"layers.0": pairs}, 8).squared_mean())
    assert abs(sum(found) / 200) < 4 * torch.tensor(found).std().item() / math.sqrt(200)


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
