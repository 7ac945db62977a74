"""β: transforms and references by hand, the probe, and the permuted control."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from remask.diffusion.corruption import Canvas, importance_rate
from remask.diffusion.importance import TRANSFORMS, importance, permute_within, probe, probe_signal
from remask.diffusion.reader import LogitsReader

MASK = 9


def canvas_of_two() -> Canvas:
    """Row 0: a prompt token and three of the response. Row 1: one response token, then padding."""
    ids = torch.tensor([[1, 2, 3, 0], [3, 2, 0, 0]])
    response = torch.tensor([[False, True, True, True], [False, True, False, False]])
    attended = torch.tensor([[True, True, True, True], [True, True, False, False]])
    return Canvas(ids, attended, response, response)


@pytest.mark.parametrize(
    ("transform", "beta"),
    [
        ("sqrt", [0.5, 1.0, 1.5]),
        ("identity", [0.25, 1.0, 2.25]),
        ("log1p", [math.log(1.25), math.log(2), math.log(3.25)]),
        ("cbrt", [0.25 ** (1 / 3), 1.0, 2.25 ** (1 / 3)]),
    ],
)
def test_transforms_by_hand(transform: str, beta: list[float]) -> None:
    signal = torch.tensor([[7.0, 0.25, 1.0, 2.25]])
    response = torch.tensor([[False, True, True, True]])
    read = importance(signal, response, transform)
    assert read.beta[0, 0] == 0
    assert read.beta[0, 1:].tolist() == pytest.approx(beta)
    assert read.ratio[0, 1:].tolist() == pytest.approx([b / (sum(beta) / 3) for b in beta])


def test_times_of_three_tokens_by_hand() -> None:
    """Entropies ¼, 1, 9⁄4 → β ½, 1, 3⁄2 with mean 1 → at t = ¾: t_i = ½, ¾, ⅞."""
    response = torch.tensor([[False, True, True, True]])
    ratio = importance(torch.tensor([[0.0, 0.25, 1.0, 2.25]]), response, "sqrt").ratio
    rate = importance_rate(torch.tensor([[0.75]]), ratio, response)
    assert rate[0].tolist() == pytest.approx([0.0, 0.5, 0.75, 0.875], abs=1e-6)


def test_reference_of_the_sequence_and_of_the_batch() -> None:
    """Row 0 has β 1, 3 (mean 2), row 1 has β 8; the three tokens of the batch have mean 4."""
    signal = torch.tensor([[1.0, 3.0], [8.0, 5.0]])
    response = torch.tensor([[True, True], [True, False]])
    by_sequence = importance(signal, response, "identity", "sequence").ratio
    assert by_sequence[response].tolist() == [0.5, 1.5, 1.0]
    by_batch = importance(signal, response, "identity", "batch").ratio
    assert by_batch[response].tolist() == [0.25, 0.75, 2.0]


@pytest.mark.parametrize("reference", ["sequence", "batch"])
@pytest.mark.parametrize("transform", sorted(TRANSFORMS))
def test_all_zero_signals_fall_back_to_plain_rates(transform: str, reference: str) -> None:
    response = torch.tensor([[False, True, True, True]])
    read = importance(torch.zeros(1, 4), response, transform, reference)
    assert (read.beta == 0).all()
    assert (read.ratio[response] == 1).all()


@given(value=st.floats(1e-6, 50), length=st.integers(1, 300))
@example(value=24.0, length=9)
@settings(deadline=None)
def test_a_constant_signal_has_the_ratio_one_exactly(value: float, length: int) -> None:
    response = torch.ones(2, length, dtype=torch.bool)
    for transform, reference in itertools.product(("sqrt", "identity", "cbrt"), ("sequence", "batch")):
        assert (importance(torch.full((2, length), value), response, transform, reference).ratio == 1).all()


@pytest.mark.parametrize("length", [1, 2, 7, 9, 33, 300])
@pytest.mark.parametrize("transform", sorted(TRANSFORMS))
def test_the_constant_signal_has_the_ratio_one_exactly_under_every_transform(transform: str, length: int) -> None:
    response = torch.ones(1, length, dtype=torch.bool)
    assert (importance(torch.ones(1, length), response, transform).ratio == 1).all()


def test_a_response_of_one_token_has_the_ratio_one() -> None:
    response = torch.tensor([[False, True, False]])
    assert importance(torch.tensor([[0.3, 0.7, 0.1]]), response, "sqrt").ratio[0, 1] == 1


def test_a_row_without_response_stays_finite() -> None:
    response = torch.tensor([[False, False], [True, True]])
    for reference in ("sequence", "batch"):
        assert importance(torch.rand(2, 2), response, "sqrt", reference).ratio.isfinite().all()


def test_rounding_below_zero_is_no_nan() -> None:
    response = torch.ones(1, 2, dtype=torch.bool)
    assert importance(torch.tensor([[-1e-9, 1.0]]), response, "sqrt").ratio.tolist() == [[0.0, 2.0]]


def test_probe_masks_the_whole_response_and_reads_it() -> None:
    """A prediction that is even over two tokens has entropy ln 2; one of ¾ and ¼ has ¾ ln 4/3 + ¼ ln 4."""
    canvas, seen = canvas_of_two(), {}

    def predict(ids: torch.Tensor, attended: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        seen.update(ids=ids, attended=attended, positions=positions)
        never = -torch.inf
        return torch.tensor(
            [
                [0.0, 0.0, never, never],  # gold 2: impossible
                [never, never, math.log(0.25), math.log(0.75)],  # gold 3
                [0.0, 0.0, 0.0, 0.0],  # gold 0
                [0.0, 0.0, 0.0, 0.0],  # row 1, gold 2
            ]
        )

    signal = probe_signal(LogitsReader(predict), canvas, MASK, "entropy")
    assert seen["ids"].tolist() == [[1, MASK, MASK, MASK], [3, MASK, 0, 0]]
    assert torch.equal(seen["attended"], canvas.attended)
    assert torch.equal(seen["positions"], canvas.corruptible)
    mixed = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    assert signal.flatten().tolist() == pytest.approx([0, math.log(2), mixed, math.log(4), 0, math.log(4), 0, 0])
    nll = probe_signal(LogitsReader(predict), canvas, MASK, "nll")
    assert nll.flatten().tolist() == pytest.approx([0, math.inf, math.log(4 / 3), math.log(4), 0, math.log(4), 0, 0])


def test_a_constant_signal_asks_no_model() -> None:
    def never(*_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the model was asked")

    canvas = canvas_of_two()
    assert torch.equal(probe_signal(LogitsReader(never), canvas, MASK, "constant"), canvas.corruptible.float())


def test_a_probe_carries_no_gradient() -> None:
    weight = torch.randn(4, 10, generator=torch.Generator().manual_seed(0)).requires_grad_()
    reading = probe(LogitsReader(lambda ids, attended, positions: weight), canvas_of_two(), MASK)
    assert not reading.entropy.requires_grad
    assert not reading.nll.requires_grad


@given(seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=50)
def test_permuting_keeps_the_multiset_and_the_rest_in_place(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values, shuffle = torch.rand(3, 9, generator=generator), torch.rand(3, 9, generator=generator)
    among = torch.rand(3, 9, generator=generator) < 0.6
    permuted = permute_within(values, shuffle, among)
    assert torch.equal(permuted[~among], values[~among])
    for row in range(3):
        inside = among[row]
        assert torch.equal(permuted[row, inside].sort().values, values[row, inside].sort().values)


def test_permuting_by_hand() -> None:
    """The response 20, 30, 40 is read in the order of 0.9, 0.1, 0.5: 30, 40, 20."""
    permuted = permute_within(
        torch.tensor([[10.0, 20.0, 30.0, 40.0, 50.0]]),
        torch.tensor([[0.0, 0.9, 0.1, 0.5, 0.0]]),
        torch.tensor([[False, True, True, True, False]]),
    )
    assert permuted.tolist() == [[10.0, 30.0, 40.0, 20.0, 50.0]]


def test_every_order_is_as_likely() -> None:
    """6,000 shuffles of three tokens: each of the 6 orders about 1,000 times (standard error 29)."""
    shuffle = torch.rand(6000, 3, generator=torch.Generator().manual_seed(0))
    everything = torch.ones(6000, 3, dtype=torch.bool)
    orders = permute_within(torch.tensor([[1.0, 2.0, 3.0]]).repeat(6000, 1), shuffle, everything)
    counts = Counter(map(tuple, orders.int().tolist()))
    assert len(counts) == 6
    assert all(abs(count - 1000) < 4 * 29 for count in counts.values())


def test_the_permuted_control_has_the_same_rates_on_other_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    signal, shuffle = torch.rand(1, 12, generator=generator), torch.rand(1, 12, generator=generator)
    response = (torch.arange(12) >= 4)[None]
    time = torch.tensor([0.4])
    plain = importance_rate(time[:, None], importance(signal, response, "sqrt").ratio, response)
    control = importance_rate(time[:, None], importance(signal, response, "sqrt", shuffle=shuffle).ratio, response)
    assert not torch.equal(plain, control)
    assert torch.equal(plain.sort().values, control.sort().values)
    assert (control[~response] == 0).all()
