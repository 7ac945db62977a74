"""What a pass computes in."""

from __future__ import annotations

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)


def computed_in(tensor: Tensor) -> torch.dtype:
    """Of the matrix products that a tensor goes into: autocast's dtype where that is on, else its own."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype
