"""A module's class, changed after it was built: transformers and peft build what they build."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn


def derive(module: nn.Module, mixin: type) -> None:
    """Put a mixin before a module's class, under the same name (by which engines find layers to shard or to place)."""
    if not isinstance(module, mixin):
        module.__class__ = _derived(type(module), mixin)  # type: ignore[arg-type]


@cache
def _derived(kind: Any, mixin: type) -> Any:
    return type(kind.__name__, (mixin, kind), {"__module__": kind.__module__})
