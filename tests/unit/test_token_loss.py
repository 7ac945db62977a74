"""Cross-entropy and entropy of chosen tokens: numbers by hand, precision, chunks."""

from __future__ import annotations

import math

import pytest
import torch

from remask.diffusion import token_loss
from remask.diffusion.token_loss import read_tokens, token_cross_entropy

LOGITS = torch.tensor([[math.log(1.0), math.log(2.0), math.log(5.0)], [0.0, 0.0, 0.0]])
GOLD = torch.tensor([2, 0])


def test_cross_entropy_by_hand() -> None:
    """Probabilities ⅛, ¼, ⅝ and ⅓ each: −log ⅝ and −log ⅓."""
    assert token_cross_entropy(LOGITS, GOLD).tolist() == pytest.approx([-math.log(0.625), math.log(3)])


def test_cross_entropy_carries_the_gradient_by_hand() -> None:
    """∂ce/∂logits = p − onehot."""
    logits = LOGITS.clone().requires_grad_()
    token_cross_entropy(logits, GOLD).sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([0.125, 0.25, -0.375])


def test_reading_by_hand() -> None:
    reading = read_tokens(LOGITS, GOLD)
    entropy = -sum(p * math.log(p) for p in (0.125, 0.25, 0.625))
    assert reading.entropy.tolist() == pytest.approx([entropy, math.log(3)])
    assert reading.nll.tolist() == pytest.approx([-math.log(0.625), math.log(3)])


def test_impossible_tokens_add_no_entropy() -> None:
    reading = read_tokens(torch.tensor([[0.0, 0.0, -torch.inf]]), torch.tensor([0]))
    assert reading.entropy.item() == pytest.approx(math.log(2))


def test_half_precision_logits_are_read_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, gold = torch.randn(50, 200, generator=generator).bfloat16(), torch.arange(50)
    assert torch.equal(token_cross_entropy(logits, gold), token_cross_entropy(logits.float(), gold))
    half, full = read_tokens(logits, gold), read_tokens(logits.float(), gold)
    assert half.entropy.dtype == half.nll.dtype == torch.float32
    assert torch.equal(half.entropy, full.entropy)
    assert torch.equal(half.nll, full.nll)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, gold = torch.randn(23, 40, generator=generator), torch.arange(23)
    whole = read_tokens(logits, gold)
    monkeypatch.setitem(token_loss.BLOCK_ELEMENTS, "cpu", 4 * 40)
    assert len(list(token_loss.blocks(logits))) == 6
    parts = read_tokens(logits, gold)
    assert torch.equal(whole.entropy, parts.entropy)
    assert torch.equal(whole.nll, parts.nll)


def test_no_position_is_no_loss() -> None:
    none = torch.zeros(0, dtype=torch.long)
    assert token_cross_entropy(torch.zeros(0, 5), none).shape == (0,)
    assert read_tokens(torch.zeros(0, 5), none).entropy.shape == (0,)


def test_a_reading_carries_no_gradient() -> None:
    reading = read_tokens(LOGITS.clone().requires_grad_(), GOLD)
    assert not reading.entropy.requires_grad
    assert not reading.nll.requires_grad


def test_the_root_of_entropy_bounds_the_logit_gradient() -> None:
    """E‖∂ce/∂z‖² = 1 − Σp² ≤ H when the gold token is drawn from the prediction."""
    logits = (3 * torch.randn(6, 5, generator=torch.Generator().manual_seed(0))).requires_grad_()
    p = logits.detach().softmax(-1)
    size = torch.zeros(6)
    for gold in range(5):
        (gradient,) = torch.autograd.grad(token_cross_entropy(logits, torch.full((6,), gold)).sum(), logits)
        size += p[:, gold] * gradient.square().sum(-1)
    assert torch.allclose(size, 1 - p.square().sum(-1), atol=1e-6)
    assert (size <= read_tokens(logits.detach(), torch.zeros(6, dtype=torch.long)).entropy).all()
