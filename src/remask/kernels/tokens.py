"""−log p of a target, the error of the prediction, and its entropy, from a row of logits in one reading (two where the
error is formed): eager PyTorch reads and writes it a dozen times. Rows of any width, in any floating dtype; all
arithmetic is in float32. Targets are within the vocabulary: nothing checks that.

Shapes: n rows, V vocabulary.
"""
# Without `from __future__ import annotations`: Triton reads its kernels' annotations.

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 8192, 16
"""The logits taken at once, and the warps that do so."""


def losses(logits: Tensor, targets: Tensor, *, overwrite: bool) -> Tensor:
    """Return ce [n] of logits [n, V], whose rows are contiguous. With `overwrite` they become p − onehot(target)."""
    ce = torch.empty(len(logits), device=logits.device)
    _launch(_losses, logits, targets, ce, overwrite)
    return ce


def readings(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return (entropy [n], −log p of the target [n]) in nats."""
    entropy, nll = (torch.empty(len(logits), device=logits.device) for _ in range(2))
    _launch(_readings, logits, targets, entropy, nll)
    return entropy, nll


def _launch(kernel: Any, logits: Tensor, targets: Tensor, *more: Any) -> None:
    assert logits.stride(-1) == 1
    with torch.cuda.device_of(logits):
        kernel[(len(logits),)](
            logits, logits.stride(0), targets.contiguous(), *more, logits.shape[-1], BLOCK=BLOCK, num_warps=WARPS
        )


@triton.jit
def _losses(logits, stride, targets, ce, overwrite: tl.constexpr, V, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    peak, total = -1e30, 0.0  # the largest logit so far, and the sum of e^(z − peak)
    for start in range(0, V, BLOCK):
        at = start + tl.arange(0, BLOCK)
        z = tl.load(logits + at, mask=at < V, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(peak, tl.max(z, 0))
        total = total * tl.exp(peak - higher) + tl.sum(tl.exp(z - higher), 0)
        peak = higher
    target = tl.load(targets + row)
    of_target = tl.load(logits + target).to(tl.float32)
    tl.store(ce + row, tl.log(total) - (of_target - peak))
    if overwrite:
        tl.debug_barrier()  # the target's logit has been read by all
        for start in range(0, V, BLOCK):
            at = start + tl.arange(0, BLOCK)
            z = tl.load(logits + at, mask=at < V, other=float("-inf")).to(tl.float32)
            error = tl.exp(z - peak) / total - (at == target).to(tl.float32)
            tl.store(logits + at, error.to(logits.dtype.element_ty), mask=at < V)


@triton.jit
def _readings(logits, stride, targets, entropy, nll, V, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    peak, total, weighed = -1e30, 0.0, 0.0  # as above, and the sum of (z − peak)·e^(z − peak)
    for start in range(0, V, BLOCK):
        at = start + tl.arange(0, BLOCK)
        z = tl.load(logits + at, mask=at < V, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(peak, tl.max(z, 0))
        kept = tl.exp(peak - higher)
        below = z - higher
        below = tl.where(below < -1e30, -1e30, below)  # an impossible token adds 0·(−1e30), not NaN
        e = tl.exp(below)
        weighed = kept * (weighed + (peak - higher) * total) + tl.sum(e * below, 0)
        total = total * kept + tl.sum(e, 0)
        peak = higher
    of_target = tl.load(logits + tl.load(targets + row)).to(tl.float32)
    found = tl.log(total) - weighed / total
    tl.store(entropy + row, tl.where(found < 0.0, 0.0, found))
    tl.store(nll + row, tl.log(total) - (of_target - peak))
