"""A block model's passes: what `Attention` says is read, as the inner model takes it.

Shapes: B rows, L length of a row, S tokens that a pass reads of it.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from remask.diffusion.attention import Attention, Reading, may_look
from remask.models.packing import Batch


def read_by(
    attention: Attention,
    ids: Int[Tensor, "B L"],
    attention_mask: Int[Tensor, "B L"] | None,
    clean: Int[Tensor, "B L"] | None,
    answer: Bool[Tensor, "B L"] | None,
) -> Reading:
    """The reading of noised rows beside the clean ones, or of rows as they stand where there are none."""
    attended = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask != 0
    answer = torch.zeros_like(attended) if answer is None else answer
    if clean is None:
        return attention.inference(ids, attended, answer, None)
    return attention.training(ids, clean, attended, answer)


def in_blocks(reading: Reading, positions: Bool[Tensor, "B L"] | None) -> Batch:
    """The reading with its mask written out [B, 1, S, S]. `positions` are among its first L tokens; without them all
    its tokens' outputs are given. A row starts anew where a token does not follow the one before it.
    """
    B, S = reading.ids.shape
    starts = torch.ones(B, S, dtype=torch.bool, device=reading.ids.device)
    starts[:, 1:] = reading.places[:, 1:] != reading.places[:, :-1] + 1
    if positions is not None:
        rest = torch.zeros(B, S - positions.shape[1], dtype=torch.bool, device=positions.device)
        positions = torch.cat([positions, rest], dim=1)
    inputs = {
        "input_ids": reading.ids,
        "position_ids": reading.places,
        "attention_mask": may_look(reading)[:, None],
    }
    return Batch(inputs, positions, starts)
