"""The exact any-order likelihood and ELBO, against all orders written out; bounds between the two."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from remask.diffusion.any_order import drawn_orders, exact, multi_sample_bound, order_log_p, subset_log_p
from remask.diffusion.corruption import Canvas
from remask.diffusion.likelihood import elbo
from remask.diffusion.noise import Noise
from remask.diffusion.reader import LogitsReader
from remask.diffusion.times import MIN_TIME
from remask.errors import UserError

MASK = 3


def by_table(ids: Tensor, attended: Tensor, positions: Tensor) -> Tensor:
    """A model whose predictions depend on every token it sees."""
    weights = torch.randn(ids.shape[1], ids.shape[1], MASK + 1, MASK, generator=torch.Generator().manual_seed(3)) * 2
    rows, columns = positions.nonzero(as_tuple=True)
    places = torch.arange(ids.shape[1])
    return torch.stack([weights[c, places, ids[r]].sum(0) for r, c in zip(rows, columns, strict=True)])


table = LogitsReader(by_table)


def row(*tokens: int) -> Canvas:
    ids = torch.tensor([[0, *tokens]])
    response = torch.ones_like(ids, dtype=torch.bool)
    response[0, 0] = False
    return Canvas(ids, torch.ones_like(response), response, response)


def written_out(canvas: Canvas) -> list[float]:
    """log p of the answer in each of its n! orders, a token at a time."""
    n = canvas.ids.shape[1] - 1
    values = []
    for order in itertools.permutations(range(1, n + 1)):
        ids, total = canvas.ids.masked_fill(canvas.corruptible, MASK), 0.0
        for place in order:
            one = torch.zeros_like(canvas.corruptible)
            one[0, place] = True
            total += by_table(ids, canvas.attended, one).log_softmax(-1)[0, canvas.ids[0, place]].item()
            ids = ids.clone()
            ids[0, place] = canvas.ids[0, place]
        values.append(total)
    return values


def test_two_tokens_by_hand() -> None:
    """p = ½·(p(a)p(b|a) + p(b)p(a|b)), and the ELBO is the mean of the two logarithms."""
    half, third, fifth, seventh = (math.log(x) for x in (1 / 2, 1 / 3, 1 / 5, 1 / 7))
    log_p = torch.tensor([[half, third], [0, fifth], [seventh, 0], [0, 0]], dtype=torch.float64)
    found = exact(log_p)
    assert found.log_likelihood == pytest.approx(math.log((1 / 2 * 1 / 5 + 1 / 3 * 1 / 7) / 2))
    assert found.elbo == pytest.approx((half + fifth + third + seventh) / 2)


def test_subsets_say_what_all_orders_say() -> None:
    canvas = row(0, 2, 1, 1)
    every = written_out(canvas)
    found = exact(subset_log_p(table, canvas, MASK, batch_size=5))
    assert found.elbo == pytest.approx(sum(every) / len(every), rel=1e-5)
    assert found.log_likelihood == pytest.approx(multi_sample_bound(every), rel=1e-5)
    assert found.elbo < found.log_likelihood - 0.1


def test_a_part_of_an_answer_is_written_while_the_rest_stays_hidden() -> None:
    canvas = row(0, 2, 1)
    kept = canvas.supervised.clone()
    kept[0, 3] = False
    seen: list[Tensor] = []

    def watching(ids: Tensor, attended: Tensor, positions: Tensor) -> Tensor:
        seen.append(ids)
        return by_table(ids, attended, positions)

    log_p = subset_log_p(LogitsReader(watching), Canvas(canvas.ids, canvas.attended, canvas.corruptible, kept), MASK)
    assert log_p.shape == (4, 2)
    assert all((ids[:, 3] == MASK).all() for ids in seen)


def test_orders_drawn_are_read_as_written_out() -> None:
    canvas = row(0, 2, 1, 1)
    orders = torch.tensor(list(itertools.permutations(range(4))))
    assert order_log_p(table, canvas, MASK, orders, batch_size=7).tolist() == pytest.approx(
        written_out(canvas), rel=1e-5
    )
    drawn = drawn_orders(500, 4, torch.Generator().manual_seed(0))
    assert {tuple(order) for order in drawn.tolist()} == set(itertools.permutations(range(4)))


def test_bounds_rise_from_the_elbo_to_the_likelihood() -> None:
    canvas = row(0, 2, 1, 1)
    found = exact(subset_log_p(table, canvas, MASK))
    values = order_log_p(table, canvas, MASK, drawn_orders(4096, 4, torch.Generator().manual_seed(1)))
    means = {m: torch.tensor([multi_sample_bound(g) for g in values.split(m)]).mean().item() for m in (1, 8, 1024)}
    assert means[1] == pytest.approx(found.elbo, abs=4 * values.std().item() / 64)
    assert means[1] < means[8] < means[1024] < found.log_likelihood + 0.2
    assert means[1024] == pytest.approx(found.log_likelihood, abs=0.2)


def test_the_exact_count_estimate_is_of_this_elbo() -> None:
    """Mean over all k and over many u of the estimate is the exact ELBO."""
    canvas, generator = row(0, 2, 1, 1), torch.Generator().manual_seed(0)
    noise = [
        Noise.at(torch.tensor([MIN_TIME + (1 - MIN_TIME) * (k + 0.5) / 4]), torch.rand(1, 5, generator=generator))
        for _ in range(400)
        for k in range(4)
    ]
    values = torch.tensor([elbo(table, canvas, [n], MASK).sequence.item() for n in noise])
    error = values.std().item() / len(values) ** 0.5
    assert abs(values.mean().item() - exact(subset_log_p(table, canvas, MASK)).elbo) < 4 * error


def test_too_long_is_refused() -> None:
    with pytest.raises(UserError, match="15 tokens to write"):
        subset_log_p(table, row(*[0] * 15), MASK)
