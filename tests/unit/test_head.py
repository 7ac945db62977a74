"""Losses and entropies from hidden states, in chunks: equal to those of whole logits, in the memory of a chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from remask.diffusion import head as heads
from remask.diffusion import token_loss
from remask.diffusion.head import (
    look_at,
    two_pass_cross_entropy,
    weighted_cross_entropy,
    with_gradient_of,
)
from remask.diffusion.token_loss import TokenReading, read_tokens

N, D, V = 23, 16, 61


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five positions at a time: four chunks and a rest."""
    monkeypatch.setattr(token_loss, "CHUNK_ELEMENTS", 5 * V)


def case(*, bias: bool = False, frozen: bool = False, seed: int = 0) -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    """A head, hidden states, targets, and what the loss weighs each with."""
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(D, V, bias=bias)
    for parameter in head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    head.requires_grad_(not frozen)
    hidden = torch.randn(N, D, generator=generator).requires_grad_()
    return head, hidden, torch.randint(V, (N,), generator=generator), torch.rand(N, generator=generator) + 0.5


def gradients(head: nn.Linear, hidden: Tensor, loss: Tensor) -> list[Tensor]:
    wanted = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    return list(torch.autograd.grad(loss, wanted))


def reading(head: nn.Linear, hidden: Tensor, targets: Tensor) -> TokenReading:
    return TokenReading(*look_at(head, hidden, lambda logits, part: read_tokens(logits, targets[part])))


def plain(head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(head(hidden).float(), targets, reduction="none")


Loss = Callable[[nn.Linear, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def one_pass(head: nn.Linear, hidden: Tensor, targets: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(Σ w·ce, ce)."""
    return weighted_cross_entropy(head, hidden, targets, weight)


def two_passes(head: nn.Linear, hidden: Tensor, targets: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    ce = two_pass_cross_entropy(head, hidden, targets)
    return (ce * weight).sum(), ce


def handed_on(head: nn.Linear, hidden: Tensor, targets: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights that are known up to the factor 1/70."""
    ce = with_gradient_of(*weighted_cross_entropy(head, hidden, targets, 70 * weight), 70 * weight)
    return (ce * weight).sum(), ce


every_way = pytest.mark.parametrize("way", [one_pass, two_passes, handed_on])


@every_way
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("factor", [1.0, -3.0, 0.0])
def test_losses_and_gradients_are_those_of_whole_logits(way: Loss, bias: bool, frozen: bool, factor: float) -> None:
    head, hidden, targets, weight = case(bias=bias, frozen=frozen)
    whole = plain(head, hidden, targets)
    loss, ce = way(head, hidden, targets, weight)
    torch.testing.assert_close(ce, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, (whole * weight).sum(), rtol=1e-5, atol=1e-5)
    right = gradients(head, hidden, factor * (whole * weight).sum())
    for found, value in zip(gradients(head, hidden, factor * loss), right, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-5)


@every_way
@pytest.mark.parametrize("size", [1e-18, 1e-30, 1e30])
def test_tiny_and_huge_weights_have_their_gradient(way: Loss, size: float) -> None:
    """The gradient of a ratio of likelihoods is the ratio, which may be e^−80 of a whole answer."""
    head, hidden, targets, weight = case()
    right = gradients(head, hidden, (plain(head, hidden, targets) * weight).sum())
    loss, _ = way(head, hidden, targets, size * weight)
    for found, value in zip(gradients(head, hidden, loss), right, strict=True):
        torch.testing.assert_close(found / size, value, rtol=1e-4, atol=1e-5)


@every_way
def test_weights_of_nothing_are_no_gradient(way: Loss) -> None:
    head, hidden, targets, weight = case()
    loss, _ = way(head, hidden, targets, torch.zeros_like(weight))
    assert all((g == 0).all() for g in gradients(head, hidden, loss))


@pytest.mark.parametrize(
    ("way", "frozen", "passes"),
    [(one_pass, False, 1), (one_pass, True, 1), (handed_on, False, 1), (two_passes, False, 2), (two_passes, True, 1)],
)
def test_how_often_logits_are_computed(way: Loss, frozen: bool, passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, walk = [], heads._walk
    monkeypatch.setattr(heads, "_walk", lambda *a: calls.append(a) or walk(*a))
    head, hidden, targets, weight = case(frozen=frozen)
    (3 * way(head, hidden, targets, weight)[0]).backward()
    assert len(calls) == passes


def test_a_loss_that_weighs_otherwise_than_was_said_is_refused() -> None:
    head, hidden, targets, weight = case()
    ce = with_gradient_of(*weighted_cross_entropy(head, hidden, targets, weight), weight)
    with pytest.raises(RuntimeError, match="weighed otherwise"):
        (ce * weight.flip(0)).sum().backward()


@pytest.mark.parametrize("frozen", [False, True])
def test_the_losses_themselves_have_no_gradient_beside_their_sum(frozen: bool) -> None:
    loss, ce = one_pass(*case(frozen=frozen))
    assert loss.requires_grad
    assert not ce.requires_grad
    with torch.no_grad():
        loss, same = one_pass(*case(frozen=frozen))
    assert not loss.requires_grad
    torch.testing.assert_close(ce, same)


class Largest(TorchDispatchMode):
    """Remembers the most elements any tensor that was made had."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return out


@every_way
@pytest.mark.parametrize("frozen", [True, False])
def test_no_tensor_is_larger_than_a_chunk_or_the_head(way: Loss, frozen: bool) -> None:
    head, hidden, targets, weight = case(frozen=frozen)
    allowed = max(D * V, 5 * V, N * D)
    assert allowed < N * V
    with Largest() as largest:
        way(head, hidden, targets, weight)[0].backward()
        reading(head, hidden, targets)
    assert largest.elements <= allowed
    with Largest() as largest:
        plain(head, hidden, targets)
    assert largest.elements == N * V  # the test can fail


def test_readings_are_those_of_whole_logits() -> None:
    head, hidden, targets, _ = case(bias=True)
    found, right = reading(head, hidden, targets), read_tokens(head(hidden), targets)
    torch.testing.assert_close(found.entropy, right.entropy)
    torch.testing.assert_close(found.nll, right.nll)
    assert not found.nll.requires_grad


@every_way
def test_half_precision_is_reduced_in_float32(way: Loss) -> None:
    """Weights and hidden states bf16; losses float32 and equal to those of the same bf16 logits."""
    head, hidden, targets, weight = case()
    head, hidden = head.bfloat16(), hidden.detach().bfloat16().requires_grad_()
    whole, (loss, parts) = plain(head, hidden, targets), way(head, hidden, targets, weight)
    assert parts.dtype == torch.float32
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    for found, right in zip(
        gradients(head, hidden, loss), gradients(head, hidden, (whole * weight).sum()), strict=True
    ):
        assert found.dtype == right.dtype == torch.bfloat16
        torch.testing.assert_close(found, right, rtol=2e-2, atol=2e-2)


@every_way
def test_under_autocast_the_products_are_in_its_dtype(way: Loss) -> None:
    head, hidden, targets, weight = case()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole, (loss, parts) = plain(head, hidden, targets), way(head, hidden, targets, weight)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    for found, right in zip(
        gradients(head, hidden, loss), gradients(head, hidden, (whole * weight).sum()), strict=True
    ):
        assert found.dtype == right.dtype == torch.float32
        torch.testing.assert_close(found, right, rtol=2e-2, atol=2e-2)


@every_way
@pytest.mark.parametrize("trained", [True, False])
def test_no_position_is_no_loss_and_no_gradient(way: Loss, trained: bool) -> None:
    head, hidden, targets, weight = case(frozen=not trained)
    loss, ce = way(head, hidden[:0], targets[:0], weight[:0])
    assert ce.shape == (0,)
    found = gradients(head, hidden, loss)
    assert all((g == 0).all() for g in found)
    assert reading(head, hidden[:0], targets[:0]).entropy.shape == (0,)


def test_a_head_that_is_more_than_a_matrix_is_called() -> None:
    """Adapters and hooks change what a head says."""
    head, hidden, targets, _ = case()
    head.register_forward_hook(lambda module, inputs, output: 2 * output)
    right = cross_entropy(2 * nn.functional.linear(hidden, head.weight), targets, reduction="none")
    torch.testing.assert_close(two_pass_cross_entropy(head, hidden, targets), right)
    torch.testing.assert_close(reading(head, hidden, targets).nll, right.detach())


def test_the_gradient_may_be_taken_by_hand_written_losses() -> None:
    """Σ log p in an exponent, as a policy's ratio has it: no weights are known beforehand."""
    head, hidden, targets, _ = case()
    whole, parts = plain(head, hidden, targets), two_pass_cross_entropy(head, hidden, targets)
    for found, right in zip(
        gradients(head, hidden, torch.exp(-parts.mean())),
        gradients(head, hidden, torch.exp(-whole.mean())),
        strict=True,
    ):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-6)
