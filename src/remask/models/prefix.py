"""The clean text before a canvas, as its keys and values, and which of them each token may look at.

Encoder layers with a sliding window of W look at a token and the W−1 before it; a canvas looks at all of itself and, in
such a layer, at the W−1 clean tokens before it (NeMo Automodel's joint mask says the same).

Shapes: B rows, T clean tokens, n new ones of them, A kept ones, C tokens of a canvas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from remask.diffusion.attention import counted


class Layer:
    """A layer's keys and values [B, H, A, d], as transformers' decoder reads them."""

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None) -> None:
        self.keys, self.values = keys, values


class Prefix:
    """Each layer's keys and values of the clean tokens. It stands where transformers expects its cache.

    windows: each layer's sliding window, None where it sees all. attended [B, T]: which clean tokens may be looked at.
    A layer with a window keeps its last W−1 tokens. A `whole` prefix is of one pass, in training: it keeps every token
    with its history, and what is computed again is not kept again.
    """

    is_compileable = False

    def __init__(self, windows: Sequence[int | None]) -> None:
        self.windows, self.is_whole = list(windows), False
        self.layers = [Layer() for _ in windows]
        self.attended = torch.zeros(0, 0, dtype=torch.bool)

    def whole(self) -> Prefix:
        """Return this prefix, to be filled by one pass."""
        self.is_whole = True
        return self

    def taken(self, attended: Bool[Tensor, "B n"]) -> int:
        """Note which of the tokens that come next may be looked at; return how many there were before."""
        before = self.attended.shape[1]
        self.attended = torch.cat([self.attended, attended], dim=1) if before else attended
        return before

    def update(
        self, key: Float[Tensor, "B H n d"], value: Float[Tensor, "B H n d"], layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Float[Tensor, "B H A d"], Float[Tensor, "B H A d"]]:
        """Add an encoder layer's keys and values; return them with the kept ones before."""
        layer, window = self.layers[layer_idx], self.windows[layer_idx]
        if self.is_whole:
            if layer.keys is None:
                layer.keys, layer.values = key, value
            return key, value
        if layer.keys is not None and layer.values is not None:
            key, value = torch.cat([layer.keys, key], dim=2), torch.cat([layer.values, value], dim=2)
        first = 0 if window is None else max(0, key.shape[2] - window + 1)
        layer.keys, layer.values = key[:, :, first:], value[:, :, first:]
        return key, value

    def of(self, rows: Int[Tensor, "b"]) -> Prefix:
        """Return the prefix of some of the rows."""
        found = Prefix(self.windows)
        found.attended = self.attended[rows]
        found.layers = [
            Layer(*(None if of_all is None else of_all[rows] for of_all in (layer.keys, layer.values)))
            for layer in self.layers
        ]
        return found

    def masks_before(self, start: Int[Tensor, "B 1"], inside: Bool[Tensor, "B C"]) -> dict[str, Tensor | None]:
        """Return what a canvas at the column `start` may look at of a whole prefix and of itself, by kind of layer."""
        column = torch.arange(self.attended.shape[1], device=start.device)
        before = self.attended & (column < start)
        masks: dict[str, Tensor | None] = {}
        for kind, window in self._kinds().items():
            near = before if window is None else before & (column >= start - window + 1)
            masks[kind] = torch.cat([near, inside], dim=1)[:, None, None]
        return masks

    def _kinds(self) -> dict[str, int | None]:
        return {"full_attention" if window is None else "sliding_attention": window for window in self.windows}


def canvas_masks(prefix: Prefix, length: int) -> dict[str, Tensor | None]:
    """Return what a canvas of so many tokens after a prefix may look at, by kind of layer; None is everything."""
    attended = prefix.attended
    masks: dict[str, Tensor | None] = {}
    for kind, window in prefix._kinds().items():
        kept = attended if window is None else attended[:, max(0, attended.shape[1] - window + 1) :]
        own = kept.new_ones(len(kept), length)
        masks[kind] = None if bool(kept.all()) else torch.cat([kept, own], dim=1)[:, None, None]
    return masks


def causal_mask(attended: Bool[Tensor, "B T"], before: int, window: int | None) -> Bool[Tensor, "B 1 n A"]:
    """Return what the tokens after the first `before` may look at: themselves and those to their left, in the window.

    Padding looks at itself: an attention over nothing is no number.
    """
    T = attended.shape[1]
    first = 0 if window is None else max(0, before - window + 1)
    query = torch.arange(before, T, device=attended.device)[:, None]
    key = torch.arange(first, T, device=attended.device)
    near = key <= query if window is None else (key <= query) & (key > query - window)
    return ((near & attended[:, None, first:]) | (key == query))[:, None]


def places_of(attended: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Return each token's number among its row's attended ones, so that padding on the left does not move a row."""
    return counted(attended)
