"""Batches without their padding: the attended tokens of all rows as one sequence, in which each row attends to itself.

Every layer but attention works on tokens alone. Attention is given where rows begin and end, and works on one after the
other; on CUDA, in half precision, PyTorch's variable-length kernel does so at once.

Shapes: B rows, L length, T attended tokens of all rows, H heads, D width.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from remask.diffusion.precision import HALF, computed_in
from remask.models.batch import Batch
from remask.models.products import attend, pay
from remask.models.streams import Streams
from remask.models.streams import attention as by_streams

NAME = "sdpa_packed"
"""The name of an attention of transformers: its `sdpa`, but for packed batches."""
LEAST_PADDING = 0.1
"""The share of padding in a batch from which on it is packed."""


def attention_of(config: Any) -> str:
    """Return the name of the attention that a model computes with. transformers has a public setter only."""
    return str(config._attn_implementation)


def pays(ids: Tensor, weight: Tensor, head_width: int) -> bool:
    """Return whether a packed batch is the faster one for a model of such weights, as far as was measured
    (docs/speed.md): on a CPU, and on CUDA for a pass with gradient, where attention has a kernel for it.
    """
    if ids.device.type == "cpu":
        return True
    return torch.is_grad_enabled() and ids.is_cuda and _kernel_takes(ids.device, computed_in(weight), head_width)


@cache
def _kernel_takes(device: torch.device, dtype: torch.dtype, head_width: int) -> bool:
    """Variable-length attention: in PyTorch, with a scale, since 2.11; on devices since Ampere."""
    if device.type != "cuda" or dtype not in HALF or head_width % 8 or head_width > 256:
        return False
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return "scale" in inspect.signature(varlen_attn).parameters and torch.cuda.get_device_capability(device) >= (8, 0)


def packed(ids: Int[Tensor, "B L"], attention_mask: Int[Tensor, "B L"], positions: Bool[Tensor, "B L"]) -> Batch | None:
    """Return the batch without its padding, or None where there is too little of that to matter, or some of it is asked
    for.
    """
    if attention_mask.dim() != 2:
        return None
    where = attention_mask != 0
    lengths = where.sum(-1).tolist()
    total = sum(lengths)
    if total > (1 - LEAST_PADDING) * ids.numel() or min(lengths) == 0 or bool((positions & ~where).any()):
        return None
    places = (attention_mask.long().cumsum(-1) - 1)[where]
    ends = torch.tensor([0, *lengths], device=ids.device).cumsum(0).int()
    # A mask of four dimensions is passed on as it is, whatever it says: transformers makes none of [T, T].
    unused = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=ids.device)
    inputs = {
        "input_ids": ids[where][None],
        "position_ids": places[None],
        "attention_mask": unused,
        "row_lengths": lengths,
        "row_ends": ends,
    }
    return Batch(inputs, positions[where], places == 0)


def attention(
    module: torch.nn.Module,
    query: Float[Tensor, "B H L d"],
    key: Float[Tensor, "B h L d"],
    value: Float[Tensor, "B h L d"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    row_lengths: Sequence[int] | None = None,
    row_ends: Tensor | None = None,
    streams: Streams | None = None,
    **keywords: Any,
) -> tuple[Tensor, None]:
    """Compute transformers' sdpa; in a packed batch ([1, H, T, d], `row_lengths`), each row by itself; in a block
    model's pass (`streams`), each block by what it may look at.
    """
    if streams is not None:
        return by_streams(query, key, value, streams, dropout, scaling), None
    if row_lengths is None or row_ends is None:
        all_said = keywords.get("is_causal") is False if attention_mask is None else attention_mask.dtype == torch.bool
        if all_said and pay(query, key, value, dropout):
            found = attend(query, key, value, allowed=attention_mask, scaling=scaling)
            return found.transpose(1, 2).contiguous(), None
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **keywords
        )
    dtype = computed_in(query)
    if not dropout and _kernel_takes(query.device, dtype, query.shape[-1]):
        from torch.nn.attention.varlen import varlen_attn

        key, value = (repeat_kv(x, query.shape[1] // key.shape[1]) for x in (key, value))
        longest = max(row_lengths)
        q, k, v = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))
        out: Any = varlen_attn(q, k, v, row_ends, row_ends, longest, longest, scale=scaling)
        return out[None], None
    rows = zip(*(x.split(list(row_lengths), dim=2) for x in (query, key, value)), strict=True)
    each = [attend(q, k, v, dropout=dropout, scaling=scaling) for q, k, v in rows]
    return torch.cat(each, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
