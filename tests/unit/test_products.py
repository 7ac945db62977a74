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
def test_values_are_pytorchs_own_and_gradients_nearer_to_the_exact_ones(n: int, m: int, masked: bool) -> None:
    inputs = drawn(n, m)
    allowed = (torch.arange(m) <= torch.arange(n)[:, None] + m // 2).expand(3, 1, n, m) if masked else None
    out = attend(*inputs, allowed=allowed, scaling=0.3)
    repeated = [inputs[0], *(x.repeat_interleave(3, 1) for x in inputs[1:])]
    own = scaled_dot_product_attention(*repeated, attn_mask=allowed, scale=0.3)
    assert "_Attention" in type(out.grad_fn).__name__
    assert torch.equal(out, own)
    asked = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    found, theirs, right = (
        torch.autograd.grad((of * asked).sum(), inputs) for of in (out, own, exact(*inputs, allowed, 0.3))
    )
    for one, other, expected in zip(found, theirs, right, strict=True):
        near, reference = ((x.double() - expected.double()).norm() for x in (one, other))
        assert near <= 1.05 * reference + 1e-12
        assert near <= 0.01 * expected.double().norm()


def test_what_is_computed_does_not_depend_on_gradients() -> None:
    """The policy before an update is read without gradients, the one in it with them: their ratio is exactly 1."""
    inputs = drawn(40, 40)
    with torch.no_grad():
        before = attend(*inputs)
    assert torch.equal(before, attend(*inputs))


def test_a_query_that_may_look_at_nothing_spoils_no_other() -> None:
    inputs = drawn(6, 6)
    allowed = torch.ones(3, 1, 6, 6, dtype=torch.bool)
    allowed[0, :, 2] = False
    out = attend(*inputs, allowed=allowed)
    found = torch.autograd.grad(out[1:].sum() + out[0, :, 3:].sum(), inputs)
    assert all(bool(torch.isfinite(each).all()) for each in found)


@pytest.mark.parametrize("why", ["float32", "long", "dropout", "nothing to learn"])
def test_otherwise_it_is_pytorchs_own(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = drawn(9, 9)
    if why == "float32":
        inputs = [x.detach().float().requires_grad_() for x in inputs]
    if why == "long":
        monkeypatch.setattr(products, "LONGEST", 8)
    if why == "nothing to learn":
        inputs = [x.detach() for x in inputs]
    assert not products.pay(*inputs, 0.5 if why == "dropout" else 0.0)
    q, k, v = inputs[0], *(x.repeat_interleave(3, 1) for x in inputs[1:])
    if why != "dropout":
        assert torch.equal(attend(*inputs), scaled_dot_product_attention(q, k, v))


def test_autocast_decides_on_the_precision() -> None:
    inputs = [x.detach().float().requires_grad_() for x in drawn(9, 9)]
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(*inputs)
    assert "_Attention" in type(found.grad_fn).__name__
    assert torch.equal(found, attend(*(x.bfloat16() for x in inputs)))
    assert all(each.dtype == torch.float32 for each in torch.autograd.grad(found.sum(), inputs))
