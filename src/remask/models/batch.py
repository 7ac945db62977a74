"""A batch as a model's inner part takes it.

Shapes: B rows, L length, T tokens of a packed batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """A batch as the inner model takes it. `inputs` are its keywords, `positions` what is chosen of its tokens (None:
    all), `starts` each row's first one. Both have the shape of its tokens, [B, L], or [T] where it is packed.
    """

    inputs: dict[str, Any]
    positions: Bool[Tensor, "..."] | None
    starts: Bool[Tensor, "..."]
