"""What is told of a canvas while it is written, and what is kept of it.

Shapes: B rows of the batch, b rows still written, C places of an answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """A step as whoever watches is told of it: canvases of the rows still written, where tokens are new, where they
    were masked again (None: nowhere), which of the new ones replaced others, and which places are of the block at work.
    """

    number: int
    rows: Int[Tensor, "b"]
    canvas: Int[Tensor, "b C"]
    revealed: Bool[Tensor, "b C"]
    masked_again: Bool[Tensor, "b C"] | None = None
    replaced: Bool[Tensor, "b C"] | None = None
    at_work: Bool[Tensor, "b C"] | None = None


@dataclass(frozen=True)
class Earlier:
    """A token that did not stay: where it stood in the answer, the step that wrote it, and the step that replaced it or
    masked its place again.
    """

    place: int
    token: int
    written_at: int
    until: int


@dataclass(frozen=True)
class Denoised:
    """The canvases that were written. ids [B, C]; revealed_at [B, C], the step that wrote each token (−1: filled after
    the row stopped); confidence [B, C], p(x̂) when revealed (NaN where filled); block [B, C], the number of the block
    that each place was written with; earlier, what did not stay in each row; forwards and row_forwards, model calls and
    rows in them; seconds.
    """

    ids: Int[Tensor, "B C"]
    revealed_at: Int[Tensor, "B C"]
    confidence: Float[Tensor, "B C"]
    block: Int[Tensor, "B C"]
    earlier: list[list[Earlier]]
    forwards: int
    row_forwards: int
    seconds: float
