"""What a pass computes in."""

from __future__ import annotations

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)


def autocast_is_on(device: torch.device) -> bool:
    """Return whether autocast is on for a device's kind."""
    kind = device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)  # meta has none


def computed_in(tensor: Tensor) -> torch.dtype:
    """Return the dtype of the matrix products that a tensor goes into: autocast's dtype where that is on, else the
    tensor's.
    """
    return torch.get_autocast_dtype(tensor.device.type) if autocast_is_on(tensor.device) else tensor.dtype
