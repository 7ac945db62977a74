"""Kernels for CUDA devices, where eager PyTorch would read and write the same memory many times: of token losses here
(`tokens.py`, in Triton), of layers Liger's (`models/fused.py`).

What they compute stands beside them in plain PyTorch, which is what runs everywhere else.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from typing import Any

ON = os.environ.get("REMASK_KERNELS", "").lower() in ("1", "on", "true", "yes")
"""Kernels are off where nothing is said: what they gain has not been measured yet."""


@cache
def triton_is_here() -> bool:
    """Return whether Triton is installed: it comes with PyTorch's CUDA builds."""
    return find_spec("triton") is not None


@cache
def liger_is_here() -> bool:
    """Return whether Liger's kernels are installed, and Triton, which they need."""
    return triton_is_here() and find_spec("liger_kernel") is not None


def in_use() -> list[str]:
    """Return whose kernels run on CUDA: a number depends on them by its rounding."""
    there = {"remask": triton_is_here(), "liger": liger_is_here()}
    return [name for name, here in there.items() if ON and here]


def serve(tensor: Any) -> bool:
    """Return whether kernels work on a tensor: where they are switched on, on CUDA, with anything in it."""
    return bool(ON and tensor.is_cuda and tensor.numel() and triton_is_here())
