"""Rows in blocks: what a block model writes one after the other, and each block's share of counts and times.

A block model says log p(y | x) = Σ_b log p(y_b | x, y_<b), and each summand is a masked diffusion of its own: what is
said of a row elsewhere is said of a block here.

Shapes: B batch, L length.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from remask.diffusion.attention import Attention, BlockCausal, Full
from remask.diffusion.corruption import Canvas, exact_count_mask


def in_blocks(canvas: Canvas, attention: Attention) -> Canvas:
    """Return the canvas with the number of each token's block, from 0 at the answer's first. Under full attention the
    canvas is returned unchanged.
    """
    if not isinstance(attention, BlockCausal):
        return canvas
    block = attention.blocks(canvas.attended, canvas.corruptible)
    far = torch.iinfo(block.dtype).max
    first = torch.where(canvas.corruptible, block, far).amin(-1, keepdim=True)
    return replace(canvas, block=torch.where(canvas.corruptible.any(-1, keepdim=True), block - first, block))


def attention_of(model: Any) -> Attention:
    """Return the attention of a model: which of its tokens attend to which."""
    found = getattr(getattr(model, "module", model), "attention", None)  # DDP and DeepSpeed wrap a model as `module`
    return found if isinstance(found, Attention) else Full()


def counts(among: Bool[Tensor, "B L"], block: Int[Tensor, "B L"] | None) -> Int[Tensor, "B #L"]:
    """Return how many of the tokens in `among` each token's block has, [B, L], or each row where there are no blocks,
    [B, 1].
    """
    if block is None:
        return among.sum(-1, keepdim=True)
    index = torch.where(among, block, 0)
    found = torch.zeros(len(index), int(index.max()) + 1, dtype=torch.long, device=index.device)
    found.scatter_add_(1, index, among.long())
    return found.gather(1, block.clamp(0, found.shape[1] - 1)) * among


def lowest_of_each(
    score: Float[Tensor, "B L"],
    count: Int[Tensor, "B #L"],
    among: Bool[Tensor, "B L"],
    block: Int[Tensor, "B L"] | None,
) -> Bool[Tensor, "B L"]:
    """Choose the `count` positions of lowest score of each block (of each row where there are no blocks) among the
    given ones; ties go to the left.
    """
    if block is None:
        return exact_count_mask(score, count[:, 0], among)
    last = torch.iinfo(block.dtype).max
    by_score = torch.where(among, score, torch.inf).argsort(dim=-1, stable=True)
    by_block = torch.where(among, block, last).gather(1, by_score).argsort(dim=-1, stable=True)
    order = by_score.gather(1, by_block)
    everyone = torch.arange(order.shape[1], device=order.device).expand_as(order)
    number = torch.empty_like(order).scatter_(1, order, everyone)
    first = torch.where(among, number, last)
    size = int(torch.where(among, block, 0).max()) + 1
    starts = torch.full((len(order), size), last, device=order.device)
    starts.scatter_reduce_(1, torch.where(among, block, 0), first, "amin")
    return (number - starts.gather(1, block.clamp(0, size - 1)) < count) & among


def places(batch: Canvas) -> Int[Tensor, "B L"]:
    """Return each token's place in the answer, from 0 at its first; below 0 before it."""
    first = batch.corruptible.long().argmax(-1, keepdim=True)
    return torch.arange(batch.ids.shape[1], device=batch.ids.device) - first


def answer_blocks(batch: Canvas, length: int) -> Int[Tensor, "B L"]:
    """Return the number of each token's block of the answer, of `length` tokens each (0: one block). A block model has
    its own.
    """
    if batch.block is not None:
        return batch.block
    place = places(batch)
    return place.div(length, rounding_mode="floor") if length else torch.zeros_like(place)
