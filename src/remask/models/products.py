"""Attention by matrix products written out, where that is faster than PyTorch's own.

On a CPU the backward of PyTorch's attention takes a time of its own for rows of some hundred tokens: with 9 heads of
width 64, five times that of batched products in bfloat16 (docs/speed.md). Scores are held in half precision, as in the
eager attention of transformers, and the softmax is computed in float32. Whether products are used depends on the
device, the precision and the lengths alone, never on whether gradients are wanted: the policy before an update and the
policy in it are then read by the same arithmetic.

Shapes: g groups, H heads of queries, h heads of keys (H is a multiple of h), n queries, m keys, d a head's width.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import repeat_kv

from remask.diffusion.precision import HALF, computed_in

LONGEST = 320
"""The most queries and keys with which products are used: from some 400 on they are slower."""


def pay(query: Tensor, key: Tensor, dropout: float = 0.0) -> bool:
    """Return whether products are used."""
    short = max(query.shape[2], key.shape[2]) <= LONGEST
    return short and not dropout and query.device.type == "cpu" and computed_in(query) in HALF


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
    if not pay(query, key, dropout):
        key, value = (repeat_kv(x, query.shape[1] // key.shape[1]) for x in (key, value))
        return scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout, scale=scaling)
    dtype = computed_in(query)
    groups, heads, n, width = query.shape
    shared, m = key.shape[1], key.shape[2]
    scaled = query.to(dtype) * (width**-0.5 if scaling is None else scaling)
    of = scaled.reshape(groups * shared, heads // shared * n, width)
    to, said = (x.to(dtype).reshape(groups * shared, m, width) for x in (key, value))
    scores = torch.bmm(of, to.transpose(1, 2))
    if allowed is not None:
        apart = scores.view(groups, shared, heads // shared, n, m)
        scores = apart.masked_fill(~allowed[:, :, None], torch.finfo(dtype).min).view_as(scores)
    return torch.bmm(scores.softmax(-1), said).view(groups, heads, n, width)
