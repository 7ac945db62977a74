"""The checks of shapes that tests run with: beartype, without checking anew what a function has defined before.

A function that is defined within another one is a new function at every call of that one, and each would get checks of
its own: text that Python compiles, a millisecond each time. Its annotations are the same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beartype import beartype

_made: dict[Any, Callable[..., Any]] = {}


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """`beartype(function)`, for the functions without a body that jaxtyping makes of a signature."""
    hints = tuple(function.__annotations__.items())
    try:
        key = (function.__module__, function.__qualname__, function.__code__.co_varnames, hints)
        if key not in _made:
            _made[key] = beartype(function)
        return _made[key]
    except TypeError:  # an annotation that has no hash
        return beartype(function)
