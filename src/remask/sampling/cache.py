"""What a step computes: all tokens, or those alone whose keys and values are not kept from an earlier step.

In a bidirectional model every token's keys and values change with every token that is written; a cache pretends that
those far from the block at work do not (Fast-dLLM, arXiv 2505.22618). They are read anew by a whole forward whenever a
block begins. `prefix` keeps what stands before the block; `dual` also the masks after it. Both are approximate.

In a block model a token looks at its own block and at those before it, so that what is kept of a finished block is
exact. It must be computed of the finished block: with its last mask still in it, keys and values are others. The pass
that does so is the first one of the next block, which reads both.

Shapes: B rows of the batch, b rows of a forward, L prompt and canvas, q tokens of a forward, H heads, d their width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from remask.choices import CacheName
from remask.models.bidirectional import counted_positions

Inputs = Mapping[str, Tensor]
"""What a model is given of whole rows, by name: `input_ids`, `attention_mask`, `positions`, …, each [b, L]."""
Part = tuple[Tensor, Callable[[Inputs], dict[str, Any]]]
"""Rows (bool [b]) that are computed together, and what to give the model instead of the whole rows."""


@runtime_checkable
class Reads(Protocol):
    """A way to read the rows of a step."""

    def parts(self, rows: Int[Tensor, "b"], starts: Int[Tensor, "b"]) -> Iterator[Part]:
        """Forwards that make up a step of these rows of the batch, whose blocks at work begin at those columns. Each
        part is to be computed before the next one is asked for.
        """


class Everything:
    """Every token at every step; with a `width`, no more than the prompt and the blocks of so many tokens up to those
    at work, as later ones are looked at by nobody.
    """

    def __init__(self, width: int | None = None) -> None:
        self.width = width

    def parts(self, rows: Int[Tensor, "b"], starts: Int[Tensor, "b"]) -> Iterator[Part]:
        """Yield all rows as one part."""
        end = None if self.width is None else int(starts.max()) + self.width
        yield torch.ones_like(rows, dtype=torch.bool), partial(up_to, end)


def up_to(end: int | None, inputs: Inputs) -> dict[str, Any]:
    """The first columns of the rows."""
    return {name: given[:, :end] for name, given in inputs.items()}


@dataclass(frozen=True)
class Window:
    """The tokens of a forward: places [b, q], and which of them renew [b, q] what is kept. Others only fill up."""

    places: Int[Tensor, "b q"]
    renew: Bool[Tensor, "b q"]


def whole(rows: int, length: int, device: torch.device) -> Window:
    """Return the window of whole rows, all of it renewed."""
    places = torch.arange(length, device=device).expand(rows, -1)
    return Window(places, torch.ones_like(places, dtype=torch.bool))


def of_blocks(name: CacheName, starts: Int[Tensor, "b"], width: int, length: int, *, shift: bool) -> Window:
    """Return what to compute where each row's block begins at `starts` and is up to `width` long: with `dual` the
    block, with `prefix` all from it on. With a shift, the token before as well: its output predicts the block's first.
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
        """Return what to give the model for these tokens of the rows instead of the whole rows."""
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
        """Keep what the window renews, and return the keys and values of whole rows."""
        self._make_room(key, value, layer_idx)
        row, query = self.window.renew.nonzero(as_tuple=True)
        place = self.window.places[row, query]
        keys, values = self.layers[layer_idx]
        keys[self.rows[row], :, place] = key[row, :, query]
        values[self.rows[row], :, place] = value[row, :, query]
        return keys[self.rows], values[self.rows]

    def _make_room(self, key: Tensor, value: Tensor, layer_idx: int) -> None:
        B, L = self.shape
        if layer_idx == len(self.layers):
            H, d = key.shape[1], key.shape[3]
            self.layers.append((key.new_zeros(B, H, L, d), value.new_zeros(B, H, L, value.shape[3])))


class AroundBlocks(KeyValues):
    """Approximate: a row is read whole when it begins a block, and then in part (`of_blocks`)."""

    def __init__(self, name: CacheName, rows: int, length: int, width: int, device: torch.device, *, shift: bool):
        super().__init__(rows, length)
        self.name, self.width, self.shift = name, width, shift
        self.begun = torch.full((rows,), -1, device=device)

    def parts(self, rows: Int[Tensor, "b"], starts: Int[Tensor, "b"]) -> Iterator[Part]:
        """Rows that begin a block are read whole, the others in part."""
        begins = self.begun[rows] != starts
        self.begun[rows] = starts
        length = self.shape[1]
        for among, window in (
            (begins, lambda: whole(int(begins.sum()), length, rows.device)),
            (~begins, lambda: of_blocks(self.name, starts[~begins], self.width, length, shift=self.shift)),
        ):
            if among.any():
                yield among, partial(self._read, rows[among], window())

    def _read(self, rows: Tensor, window: Window, inputs: Inputs) -> dict[str, Any]:
        return self.inputs(rows, window, **inputs)


class FinishedBlocks(KeyValues):
    """Exact, of block models: keys and values of finished blocks. What is not stored of them is computed together with
    the block at work: the prompt's before the first one, and after it the block that was finished last.

    stored [B]: the columns of each row whose keys and values are those of finished blocks.
    """

    def __init__(self, rows: int, length: int, width: int, device: torch.device) -> None:
        super().__init__(rows, length)
        self.width = width
        self.stored = torch.zeros(rows, dtype=torch.long, device=device)

    def parts(self, rows: Int[Tensor, "b"], starts: Int[Tensor, "b"]) -> Iterator[Part]:
        """Rows of which as many tokens are to be computed go together."""
        widths = starts + self.width - self.stored[rows]
        for width in widths.unique().tolist():
            among = widths == width
            some = rows[among]
            places = self.stored[some, None] + torch.arange(width, device=rows.device)
            yield among, partial(self._read, some, places)
            self.stored[some] = starts[among]

    def _read(self, rows: Tensor, places: Tensor, inputs: Inputs) -> dict[str, Any]:
        self.rows, self.places, self.end = rows, places, int(places.max()) + 1
        return {**up_to(self.end, inputs), "at": places, "past_key_values": self}

    def update(
        self, key: Float[Tensor, "b H q d"], value: Float[Tensor, "b H q d"], layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Float[Tensor, "b H k d"], Float[Tensor, "b H k d"]]:
        """Keys and values of the columns up to the last one that is read."""
        self._make_room(key, value, layer_idx)
        kept = self.layers[layer_idx]
        for of_all, new in zip(kept, (key, value), strict=True):
            of_all[self.rows[:, None], :, self.places] = new.transpose(1, 2)
        keys, values = (of_all[:, :, : self.end] for of_all in kept)
        return (keys, values) if len(self.rows) == self.shape[0] else (keys[self.rows], values[self.rows])
