"""Kernels for CUDA devices, where eager PyTorch would read and write the same memory many times: of token losses here
(`tokens.py`, in Triton), of layers Liger's (`models/fused.py`).

What they compute stands beside them in plain PyTorch, which is what runs everywhere else.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from typing import Any

ON = os.environ.get("REMASK_KERNELS") == "1"
"""Off where nothing is said: what they gain has not been measured yet."""


@cache
def triton_is_here() -> bool:
    """It comes with PyTorch's CUDA builds."""
    return find_spec("triton") is not None


def serve(tensor: Any) -> bool:
    """Whether a tensor is worked on by kernels: where they are switched on, on CUDA, with anything in it."""
    return bool(ON and tensor.is_cuda and tensor.numel() and triton_is_here())
