"""ELBO estimates: by hand on a model that ignores its context, unbiasedness, complements, and the golden values."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import remask.models  # noqa: F401  (registers the layout)
from remask.diffusion.corruption import Canvas, exact_count_mask
from remask.diffusion.likelihood import (
    View,
    coupled,
    coupled_views,
    elbo,
    elbo_coupled,
    mean_field,
    mean_field_views,
    pair_views,
    token_log_p,
)
from remask.diffusion.noise import Noise
from remask.diffusion.reader import LogitsReader, ModelReader
from remask.diffusion.times import MIN_TIME
from remask.errors import UserError

MASK = 4
LOG_P = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()


def uniform(ids: Tensor, attended: Tensor, positions: Tensor) -> Tensor:
    """Says the same everywhere: the exact log-likelihood of an answer is the sum of its tokens' log p."""
    return LOG_P.expand(int(positions.sum()), 4)


ignorant = LogitsReader(uniform)


def canvas(*responses: list[int], prompt: int = 2) -> Canvas:
    length = prompt + max(map(len, responses))
    ids = torch.zeros(len(responses), length, dtype=torch.long)
    response = torch.zeros(len(responses), length, dtype=torch.bool)
    for row, tokens in enumerate(responses):
        ids[row, prompt : prompt + len(tokens)] = torch.tensor(tokens)
        response[row, prompt : prompt + len(tokens)] = True
    return Canvas(ids, torch.ones_like(response), response, response)


def draws(count: int, rows: int, length: int, seed: int = 0) -> list[Noise]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Noise.at(
            MIN_TIME + (1 - MIN_TIME) * torch.rand(rows, generator=generator),
            torch.rand(rows, length, generator=generator),
        )
        for _ in range(count)
    ]


def test_by_hand() -> None:
    """n = 3; τ = 0.4 masks k = 1 + ⌊1.2⌋ = 2: the two smallest u, each weighing 3/2."""
    batch = canvas([0, 1, 2])
    noise = Noise.at(torch.tensor([MIN_TIME + (1 - MIN_TIME) * 0.4]), torch.tensor([[0.0, 0.0, 0.9, 0.1, 0.5]]))
    value = elbo(ignorant, batch, [noise], MASK)
    assert value.token[0].tolist() == pytest.approx([0, 0, 0, 1.5 * LOG_P[1].item(), 1.5 * LOG_P[2].item()])
    assert value.sequence.item() == pytest.approx(1.5 * (LOG_P[1] + LOG_P[2]).item())
    assert value.scored.tolist() == [3]


def test_coupled_by_hand() -> None:
    """n = 3; τ = 0.3 masks k = ⌊1.2⌋ = 1 with weight 4/1 and the other two with 4/2, halved."""
    batch = canvas([0, 1, 2])
    noise = Noise.at(torch.tensor([MIN_TIME + (1 - MIN_TIME) * 0.3]), torch.tensor([[0.0, 0.0, 0.9, 0.1, 0.5]]))
    value = elbo_coupled(ignorant, batch, [noise], MASK)
    weights = torch.tensor([1.0, 2.0, 1.0])
    assert value.token[0, 2:].tolist() == pytest.approx((weights * LOG_P[:3]).tolist())


def test_mean_field_by_hand() -> None:
    """One forward with the whole response masked: the sum of what is said there, whatever the noise."""
    seen = []

    def watching(ids: Tensor, attended: Tensor, positions: Tensor) -> Tensor:
        seen.append(ids)
        return uniform(ids, attended, positions)

    value = mean_field(LogitsReader(watching), canvas([0, 1, 2]), draws(1, 1, 5), MASK)
    assert value.token[0, 2:].tolist() == pytest.approx(LOG_P[:3].tolist())
    assert [ids.tolist() for ids in seen] == [[[0, 0, MASK, MASK, MASK]]]


def test_mean_field_masks_its_share_of_the_prompt_and_never_scores_it() -> None:
    batch = canvas([1, 2], prompt=3)
    noise = Noise.at(torch.tensor([0.5]), torch.tensor([[0.1, 0.5, 0.14, 0.9, 0.9]]))
    (view,) = mean_field_views(batch, noise, MASK, prompt_rate=0.15)
    assert view.ids.tolist() == [[MASK, 0, MASK, MASK, MASK]]
    assert torch.equal(view.scored, batch.corruptible)
    hidden = Canvas(batch.ids, batch.attended.clone(), batch.corruptible, batch.supervised)
    hidden.attended[0, 0] = False  # padding is no prompt
    (view,) = mean_field_views(hidden, noise, MASK, prompt_rate=0.15)
    assert view.ids.tolist() == [[0, 0, MASK, MASK, MASK]]


def test_diffucoders_coupled_by_hand() -> None:
    """τ = 0.5: r = 0.5. Of three tokens u masks the first two; each is read once whole and once in its part."""
    batch = canvas([0, 1, 2])
    noise = Noise.at(torch.tensor([MIN_TIME + (1 - MIN_TIME) * 0.25]), torch.tensor([[0.0, 0.0, 0.1, 0.3, 0.9]]))
    rate = 0.2 + 0.6 * 0.25
    value = coupled(ignorant, batch, [noise], MASK)
    weights = torch.tensor([0.5 + 0.5 / rate, 0.5 + 0.5 / rate, 0.5 + 0.5 / (1 - rate)])
    assert value.token[0, 2:].tolist() == pytest.approx((weights * LOG_P[:3]).tolist(), rel=1e-5)


@pytest.mark.parametrize("tau", [0.0, 0.25, 0.5, 0.9])
def test_diffucoders_expected_weight_is_one_and_a_half(tau: float) -> None:
    rate, total = 0.2 + 0.6 * tau, torch.zeros(3)
    for chosen in itertools.product([False, True], repeat=3):
        mask = torch.tensor(chosen)
        time = torch.tensor([MIN_TIME + (1 - MIN_TIME) * tau])
        views = coupled_views(canvas([0, 1, 2], prompt=0), Noise.at(time, torch.where(mask, 0.1, 0.9)[None]), MASK)
        chance = rate ** int(mask.sum()) * (1 - rate) ** int((~mask).sum())
        total += chance * sum((view.weight * view.scored)[0] for view in views)
    assert total.tolist() == pytest.approx([1.5] * 3, rel=1e-5)


@pytest.mark.parametrize("estimate", [mean_field, elbo, elbo_coupled, coupled])
def test_what_is_not_supervised_is_hidden_and_not_scored(estimate: Any) -> None:
    """An answer scored up to its end: its fill is masked in every view, and n counts what is scored."""
    batch = canvas([1, 2, 3, 0, 0])
    scored = batch.supervised.clone()
    scored[0, 5:] = False
    part = Canvas(batch.ids, batch.attended, batch.corruptible, scored)
    seen: list[Tensor] = []

    def watching(ids: Tensor, attended: Tensor, positions: Tensor) -> Tensor:
        seen.append(ids)
        return uniform(ids, attended, positions)

    value = estimate(LogitsReader(watching), part, draws(4, 1, 7), MASK)
    assert value.scored.tolist() == [3]
    assert (value.token[0, 5:] == 0).all()
    assert all((ids[0, 5:] == MASK).all() for ids in seen)
    alone = estimate(ignorant, canvas([1, 2, 3]), [Noise(n.tau[:, :5], n.u[:, :5]) for n in draws(4, 1, 7)], MASK)
    assert value.sequence.item() == pytest.approx(alone.sequence.item())


def any_order(predict: Any, batch: Canvas) -> float:
    """The mean over all orders of the any-order log-likelihood, every order written out."""
    places = batch.corruptible[0].nonzero()[:, 0].tolist()
    values = []
    for order in itertools.permutations(places):
        total, ids = 0.0, batch.ids.masked_fill(batch.corruptible, MASK)
        for place in order:
            one = torch.zeros_like(batch.corruptible)
            one[0, place] = True
            log_p = predict(ids, batch.attended, one).log_softmax(-1)
            total += log_p[0, batch.ids[0, place]].item()
            ids = ids.clone()
            ids[0, place] = batch.ids[0, place]
        values.append(total)
    return sum(values) / len(values)


def contextual(ids: Tensor, attended: Tensor, positions: Tensor) -> Tensor:
    """A model whose every prediction depends on every token it sees, by a fixed random table."""
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(ids.shape[1], ids.shape[1], MASK + 1, MASK, generator=generator)
    rows, columns = positions.nonzero(as_tuple=True)
    return table[columns[:, None], torch.arange(ids.shape[1]), ids[rows]].sum(1)


def one_by_one(model: Any, estimate: Any, batch: Canvas, noise: list[Noise]) -> Tensor:
    """The estimate of every draw alone [draws, rows], all of them in one batch: the same rows once more for each."""
    rows = torch.arange(len(batch.ids)).repeat(len(noise))
    many = Canvas(batch.ids[rows], batch.attended[rows], batch.corruptible[rows], batch.supervised[rows])
    together = Noise(torch.cat([one.tau for one in noise]), torch.cat([one.u for one in noise]))
    return estimate(model, many, [together], MASK).sequence.reshape(len(noise), -1)


@pytest.mark.parametrize("estimate", [elbo, elbo_coupled])
def test_a_draw_among_many_is_the_draw_alone(estimate: Any) -> None:
    batch, noise = canvas([0, 3, 1, 2], [3, 3], prompt=1), draws(40, 2, 5)
    alone = torch.stack([estimate(LogitsReader(contextual), batch, [one], MASK).sequence for one in noise])
    assert torch.allclose(one_by_one(LogitsReader(contextual), estimate, batch, noise), alone, rtol=1e-5)


@pytest.mark.parametrize("estimate", [elbo, elbo_coupled])
def test_the_mean_of_many_draws_is_the_exact_any_order_value(estimate: Any) -> None:
    """On a model small enough to write all 24 orders out; the two estimates agree within Monte-Carlo error."""
    batch = canvas([0, 3, 1, 2], prompt=1)
    exact = any_order(contextual, batch)
    values = one_by_one(LogitsReader(contextual), estimate, batch, draws(3000, 1, 5))
    error = values.std().item() / len(values) ** 0.5
    assert abs(values.mean().item() - exact) < 4 * error
    assert error < 0.05 * abs(exact)


def spread(model: Any, estimate: Any) -> float:
    return one_by_one(model, estimate, canvas([0, 1, 2, 3] * 5), draws(600, 1, 22)).std().item()


def harder_with_less_context(ids: Tensor, attended: Tensor, positions: Tensor) -> Tensor:
    """ce of every token = 4 · (the share of the answer that is masked), as a model's is that needs context."""
    ce = 4 * (ids == MASK).sum(-1) / 20
    gold = canvas([0, 1, 2, 3] * 5).ids[0][positions.nonzero()[:, 1]]
    other = torch.log((ce.exp() - 1).clamp(min=1e-9) / 3)[positions.nonzero()[:, 0]]
    return torch.where(torch.arange(4) == gold[:, None], 0.0, other[:, None])


def test_the_complement_cancels_what_context_changes() -> None:
    """Where ce grows with the share masked, a mask and its complement add up to the same every time. Where context
    makes no difference there is nothing to cancel, and the empty halves of k = 0 and n (half the value) cost more.
    """
    harder = LogitsReader(harder_with_less_context)
    assert spread(harder, elbo_coupled) < 1e-3 * spread(harder, elbo)
    assert spread(ignorant, elbo_coupled) > spread(ignorant, elbo)


@pytest.mark.parametrize("estimate", [elbo, elbo_coupled])
def test_unbiased_where_context_does_not_matter(estimate: Any) -> None:
    batch = canvas([0, 1, 2, 3], [3, 3], [1])
    values = one_by_one(ignorant, estimate, batch, draws(4000, 3, 6))
    exact = torch.tensor([LOG_P.sum().item(), 2 * LOG_P[3].item(), LOG_P[1].item()])
    error = values.std(0) / len(values) ** 0.5
    assert ((values.mean(0) - exact).abs() <= 4 * error + 1e-5).all()


@pytest.mark.parametrize("estimate", [elbo_coupled, coupled])
def test_views_of_few_rows_are_read_together_and_mean_the_same(estimate: Any) -> None:
    batch, calls = canvas([0, 1, 2, 0, 1], [2, 1, 0]), []

    def predict(ids: Tensor, attended: Tensor, positions: Tensor) -> Tensor:
        calls.append(len(ids))
        return contextual(ids, attended, positions)

    few = estimate(LogitsReader(predict), batch, draws(2, 2, batch.ids.shape[1]), MASK)
    views = 2 if estimate is elbo_coupled else 3
    assert calls == [2 * views] * 2
    calls.clear()
    rows = torch.arange(2).repeat(5)
    many = Canvas(batch.ids[rows], batch.attended[rows], batch.corruptible[rows], batch.supervised[rows])
    noise = [Noise(d.tau[rows], d.u[rows]) for d in draws(2, 2, batch.ids.shape[1])]
    apart = estimate(LogitsReader(predict), many, noise, MASK)
    assert calls == [10] * views * 2
    assert torch.allclose(apart.token, few.token[rows], atol=1e-5)


def test_several_draws_are_their_mean() -> None:
    batch, noise = canvas([0, 1, 2, 3], [2, 1]), draws(3, 2, 6)
    together = elbo(ignorant, batch, noise, MASK).token
    assert torch.allclose(together, torch.stack([elbo(ignorant, batch, [n], MASK).token for n in noise]).mean(0))


def test_every_token_is_scored_in_every_pair() -> None:
    batch = canvas([0, 1, 2, 3], [2, 1])
    for noise in draws(20, 2, 6):
        assert torch.equal(elbo_coupled(ignorant, batch, [noise], MASK).token != 0, batch.corruptible)
        assert torch.equal(coupled(ignorant, batch, [noise], MASK).token != 0, batch.corruptible)


def test_a_row_without_response_is_likely_nothing() -> None:
    batch = canvas([0, 1])
    nothing = Canvas(batch.ids, batch.attended, torch.zeros_like(batch.corruptible), batch.supervised)
    for estimate in (elbo, elbo_coupled):
        value = estimate(ignorant, nothing, draws(2, 1, 4), MASK)
        assert value.sequence.tolist() == [0.0]
        assert value.scored.tolist() == [0]


def test_no_draws_are_an_error() -> None:
    with pytest.raises(UserError, match="without draws"):
        elbo(ignorant, canvas([0]), [], MASK)


def test_a_row_in_a_batch_is_the_row_alone(random_model: Any, tiny_config: Any) -> None:
    batch, noise = canvas([10, 20, 30], [40, 50, 60]), draws(2, 2, 5)
    both = elbo(random_model, batch, noise, tiny_config.mask_token_id)
    for row in range(2):
        part = Canvas(
            *(getattr(batch, name)[row : row + 1] for name in ("ids", "attended", "corruptible", "supervised"))
        )
        alone = elbo(
            random_model,
            part,
            [Noise(n.tau[row : row + 1], n.u[row : row + 1]) for n in noise],
            tiny_config.mask_token_id,
        )
        assert torch.allclose(both.token[row], alone.token[0], atol=1e-5)


def test_the_value_carries_gradient(random_model: Any, tiny_config: Any) -> None:
    elbo(random_model, canvas([10, 20, 30]), draws(1, 1, 5), tiny_config.mask_token_id).sequence.sum().backward()
    assert random_model.lm_head.weight.grad.abs().max() > 0


@pytest.mark.shared
@pytest.mark.parametrize("number", range(4))
def test_golden(number: int, shared: Path) -> None:
    """The reference weighs a masked token (n+1)/k, for the plain estimate too."""
    from transformers import AutoModelForMaskedLM

    golden = json.loads((shared / "golden" / "espo.json").read_text())
    model: Any = AutoModelForMaskedLM.from_pretrained(shared / "golden" / golden["checkpoint"], dtype=torch.float32)
    case, prompt, n = golden["elbo"][number], golden["prompt_length"], golden["completion_length"]
    ids = torch.tensor(golden["input_ids"])
    response = torch.zeros_like(ids, dtype=torch.bool)
    response[:, prompt:] = True
    batch = Canvas(ids, torch.ones_like(response), response, response)
    mask = torch.zeros_like(response)
    mask[:, prompt:] = torch.tensor(case["mask"]).bool()
    count = mask.sum(-1)
    assert count.tolist() == case["num_masked"]
    assert torch.equal(exact_count_mask(1 - mask.float(), count, response), mask)
    mask_id, reader = golden["mask_token_id"], ModelReader(model.eval())
    whole = View(batch.ids.masked_fill(mask, mask_id), mask, ((n + 1) / count.clamp(min=1))[:, None].expand(mask.shape))
    with torch.no_grad():
        plain = token_log_p(reader, batch, [whole]).sum(-1)
        coupled = token_log_p(reader, batch, pair_views(batch, mask, mask_id)).sum(-1)
    assert plain.tolist() == pytest.approx(case["elbo_plain"], rel=1e-4)
    assert coupled.tolist() == pytest.approx(case["elbo_coupled"], rel=1e-4)
