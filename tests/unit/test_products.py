"""Attention by products: the values and gradients of PyTorch's own, in the precision that it is for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from remask.models import products
from remask.models.products import attend


def drawn(n: int, m: int, heads: int = 6, shared: int = 2, groups: int = 3) -> list[Tensor]:
    draw = torch.Generator().manual_seed(n * m)
    shapes = [(groups, heads, n, 16), (groups, shared, m, 16), (groups, shared, m, 16)]
    return [torch.randn(shape, generator=draw).bfloat16().requires_grad_() for shape in shapes]


def exact(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, scaling: float) -> Tensor:
    """In float64, head by head."""
    q, k, v = query.double(), *(x.double().repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    scores = q @ k.transpose(-1, -2) * scaling
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    return scores.softmax(-1) @ v


@pytest.mark.parametrize(("n", "m", "masked"), [(5, 5, False), (7, 30, True), (64, 64, True), (1, 9, False)])
def test_values_and_gradients_are_those_of_attention(n: int, m: int, masked: bool) -> None:
    inputs = drawn(n, m)
    allowed = (torch.arange(m) <= torch.arange(n)[:, None] + m // 2).expand(3, 1, n, m) if masked else None
    out = attend(*inputs, allowed=allowed, scaling=0.3)
    expected = exact(*inputs, allowed, 0.3)
    assert out.dtype == torch.bfloat16
    assert (out - expected).abs().max() < 0.03
    asked = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad((out * asked).sum(), inputs)
    for one, other in zip(found, torch.autograd.grad((expected * asked).sum(), inputs), strict=True):
        assert (one - other).float().norm() < 0.02 * other.float().norm()


def test_what_is_computed_does_not_hang_on_gradients() -> None:
    """The policy before an update is read without gradients, the one in it with them: their ratio is exactly 1."""
    inputs = drawn(40, 40)
    with torch.no_grad():
        before = attend(*inputs)
    assert torch.equal(before, attend(*inputs))


def test_float32_and_long_rows_are_pytorchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [x.detach().float() for x in drawn(9, 9)]
    q, k, v = inputs[0], *(x.repeat_interleave(3, 1) for x in inputs[1:])
    assert torch.equal(attend(*inputs), scaled_dot_product_attention(q, k, v))
    monkeypatch.setattr(products, "LONGEST", 8)
    q, k, v = (x.bfloat16() for x in (q, k, v))
    assert torch.equal(attend(*(x.bfloat16() for x in inputs)), scaled_dot_product_attention(q, k, v))


def test_autocast_decides_on_the_precision() -> None:
    inputs = [x.detach().float() for x in drawn(9, 9)]
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(*inputs)
    assert torch.equal(found, attend(*(x.bfloat16() for x in inputs)))
