"""Attention whose gradient is computed by matrix products written out, where that is faster than PyTorch's own.

On a CPU, in half precision, PyTorch's attention is quick forward and slow backward for rows of some hundred tokens
(docs/speed.md). So its forward is kept, to the last bit, and of the backward only the inputs are: scores and
probabilities are computed again, in float32,

    P = softmax(Q · Kᵀ · scaling),  dV = Pᵀ · dO,  dP = dO · Vᵀ,  dS = P ∘ (dP − rowsum(dP ∘ P)),
    dQ = dS · K · scaling,  dK = dSᵀ · Q · scaling.

Shapes: g groups, H heads of queries, h heads of keys (H is a multiple of h), n queries, m keys, d a head's width.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import repeat_kv

from remask.diffusion.precision import HALF, computed_in

LONGEST = 128
"""The most queries and keys with which products are used: with 300 they take twice the time of PyTorch's."""


def attend(
    query: Float[Tensor, "g H n d"],
    key: Float[Tensor, "g h m d"],
    value: Float[Tensor, "g h m d"],
    *,
    allowed: Bool[Tensor, "g 1 n m"] | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
) -> Float[Tensor, "g H n d"]:
    """Return softmax(query · keyᵀ · scaling) · value, over the keys that each query is allowed to look at (None: all).

    scaling: what scores are multiplied by (None: 1/√d).
    """
    if pay(query, key, value, dropout):
        dtype = computed_in(query)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        found: Tensor = _Attention.apply(*(x.to(dtype) for x in (query, key, value)), allowed, scale)
        return found
    key, value = (repeat_kv(x, query.shape[1] // key.shape[1]) for x in (key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout, scale=scaling)


def pay(query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0) -> bool:
    """Return whether the gradient is computed by products."""
    short = max(query.shape[2], key.shape[2]) <= LONGEST and value.shape[-1] == query.shape[-1]
    learned = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    return learned and short and not dropout and query.device.type == "cpu" and computed_in(query) in HALF


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, scaling: float) -> Tensor:
        ctx.save_for_backward(query, key, value, allowed)
        ctx.scaling = scaling
        keys, values = (repeat_kv(x, query.shape[1] // key.shape[1]) for x in (key, value))
        return scaled_dot_product_attention(query, keys, values, attn_mask=allowed, scale=scaling)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, asked: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, allowed = ctx.saved_tensors
        groups, heads, n, width = query.shape
        shared, m = key.shape[1], key.shape[2]
        of, out = (x.float().reshape(groups * shared, heads // shared * n, width) for x in (query, asked))
        to, said = (x.float().reshape(groups * shared, m, width) for x in (key, value))
        scores = torch.bmm(of * ctx.scaling, to.transpose(1, 2))
        if allowed is not None:
            apart = scores.view(groups, shared, heads // shared, n, m)
            scores = apart.masked_fill(~allowed[:, :, None], torch.finfo(scores.dtype).min).view_as(scores)
        likely = scores.softmax(-1)
        of_likely = torch.bmm(out, said.transpose(1, 2))
        of_scores = likely * (of_likely - (of_likely * likely).sum(-1, keepdim=True)) * ctx.scaling
        to_query = torch.bmm(of_scores, to).view(query.shape).to(query.dtype)
        to_key = torch.bmm(of_scores.transpose(1, 2), of).view(key.shape).to(key.dtype)
        to_value = torch.bmm(likely.transpose(1, 2), out).view(value.shape).to(value.dtype)
        return to_query, to_key, to_value, None, None
