"""Approximate decoding: tokens whose keys and values are kept from an earlier step are not computed again.

In a bidirectional model every token's keys and values change with every token that is written; a cache pretends that
those far from the block at work do not (Fast-dLLM, arXiv 2505.22618). They are read anew by a whole forward whenever a
block begins. `prefix` keeps what stands before the block; `dual` also the masks after it.

Shapes: B rows of the batch, b rows of a forward, L prompt and canvas, q tokens of a forward, H heads, d their width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from remask.choices import CacheName
from remask.models.bidirectional import counted_positions


@dataclass(frozen=True)
class Window:
    """The tokens of a forward: places [b, q], and which of them renew [b, q] what is kept. Others only fill up."""

    places: Int[Tensor, "b q"]
    renew: Bool[Tensor, "b q"]


def whole(rows: int, length: int, device: torch.device) -> Window:
    places = torch.arange(length, device=device).expand(rows, -1)
    return Window(places, torch.ones_like(places, dtype=torch.bool))


def of_blocks(name: CacheName, starts: Int[Tensor, "b"], width: int, length: int, *, shift: bool) -> Window:
    """What to compute where each row's block begins at `starts` and is up to `width` long: with `dual` the block, with
    `prefix` all from it on. With a shift, the token before as well: its output predicts the block's first.
    """
    if name == "prefix":
        places = torch.arange(int(starts.min()) - shift, length, device=starts.device).expand(len(starts), -1)
    else:
        first = starts.clamp(max=length - width)[:, None] - int(shift)
        places = first + torch.arange(width + shift, device=starts.device)
    return Window(places, places >= starts[:, None] - int(shift))


class KeyValues:
    """Each layer's keys and values [B, H, L, d] of every token, as the last forward that renewed it left them. Stands
    where transformers' attention expects its cache: what is new is written in, that of whole rows is given back.
    """

    def __init__(self, rows: int, length: int) -> None:
        self.shape = (rows, length)
        self.layers: list[tuple[Tensor, Tensor]] = []

    def inputs(
        self,
        rows: Int[Tensor, "b"],
        window: Window,
        *,
        input_ids: Int[Tensor, "b L"],
        attention_mask: Int[Tensor, "b L"],
        positions: Bool[Tensor, "b L"],
    ) -> dict[str, Any]:
        """What to give the model for these tokens of the rows instead of the whole rows."""
        self.rows, self.window = rows, window
        numbers, places = counted_positions(attention_mask), window.places
        assert numbers is not None
        return {
            "input_ids": input_ids.gather(1, places),
            "attention_mask": attention_mask.bool()[:, None, None, :].expand(-1, 1, places.shape[1], -1),
            "position_ids": numbers.gather(1, places),
            "positions": positions.gather(1, places),
            "past_key_values": self,
        }

    def update(
        self, key: Float[Tensor, "b H q d"], value: Float[Tensor, "b H q d"], layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Float[Tensor, "b H L d"], Float[Tensor, "b H L d"]]:
        B, L = self.shape
        if layer_idx == len(self.layers):
            H, d = key.shape[1], key.shape[3]
            self.layers.append((key.new_zeros(B, H, L, d), value.new_zeros(B, H, L, value.shape[3])))
        row, query = self.window.renew.nonzero(as_tuple=True)
        place = self.window.places[row, query]
        keys, values = self.layers[layer_idx]
        keys[self.rows[row], :, place] = key[row, :, query]
        values[self.rows[row], :, place] = value[row, :, query]
        return keys[self.rows], values[self.rows]
