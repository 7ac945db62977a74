"""A block model's passes: what `Attention` says is read, as the inner model takes it.

Shapes: B rows, L length of a row, S tokens that a pass reads of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from remask.diffusion.attention import Attention, Reading, may_look
from remask.models.batch import Batch


@dataclass(frozen=True)
class Given:
    """Given are rows, and what a call says of them: ids [K·B, L], the noised versions, or the rows as they stand where
    there are no clean ones.
    """

    ids: Int[Tensor, "R L"]
    attended: Bool[Tensor, "B L"]
    clean: Int[Tensor, "B L"] | None
    answer: Bool[Tensor, "B L"]

    @classmethod
    def of(
        cls,
        ids: Int[Tensor, "R L"] | None,
        attention_mask: Int[Tensor, "B L"] | None,
        clean: Int[Tensor, "B L"] | None,
        answer: Bool[Tensor, "B L"] | None,
    ) -> Given:
        """Return the rows: all of them attended to, and nothing an answer, where a call does not say otherwise."""
        ids = clean if ids is None else ids
        assert ids is not None
        rows = ids if clean is None else clean
        attended = torch.ones_like(rows, dtype=torch.bool) if attention_mask is None else attention_mask != 0
        return cls(ids, attended, clean, torch.zeros_like(attended) if answer is None else answer)


def read_by(attention: Attention, given: Given, positions: Bool[Tensor, "B L"] | None) -> Reading:
    """The reading of noised rows beside the clean ones, or, where there are none, of rows as they stand, with the work
    in the block of the first position.
    """
    if given.clean is None:
        return attention.inference(given.ids, given.attended, given.answer, positions)
    copies = len(given.ids) // len(given.clean)
    clean, attended, answer = (x.repeat(copies, 1) for x in (given.clean, given.attended, given.answer))
    return attention.training(given.ids, clean, attended, answer)


def in_blocks(reading: Reading, positions: Bool[Tensor, "B L"] | None, at: Int[Tensor, "B q"] | None = None) -> Batch:
    """The reading with its mask written out [B, 1, S, S]. `positions` are among its first L tokens; without them all
    its tokens' outputs are given. A row starts anew where a token does not follow the one before it.

    With `at` only those tokens of it, with a mask [B, 1, q, S]: keys and values of the others are there already.
    """
    ids, places = reading.ids, reading.places
    if positions is not None:
        rest = positions.new_zeros(len(ids), ids.shape[1] - positions.shape[1])
        positions = torch.cat([positions, rest], dim=1)
    if at is not None:
        ids, places = ids.gather(1, at), places.gather(1, at)
        positions = None if positions is None else positions.gather(1, at)
    starts = torch.ones_like(ids, dtype=torch.bool)
    starts[:, 1:] = places[:, 1:] != places[:, :-1] + 1
    before = reading.before
    if before is not None:
        before = before + torch.arange(len(ids), device=ids.device)[:, None] * ids.shape[1]
    inputs = {"input_ids": ids, "position_ids": places, "attention_mask": may_look(reading, at)[:, None]}
    return Batch(inputs, positions, starts, before)
