"""The checks of shapes that tests run with: what `jaxtyping.jaxtyped` does, but in less time.

jaxtyping checks a function's parameters twice, binds its arguments for the message of an error, and compiles the checks
anew for each function that another one defines when it is called. Here they are compiled once for each place in the
source, the parameters are checked once, and what is defined while checks are off is left as it is. In each test the
first calls of a function are checked, `MOST` of them: a loop that goes on for hundreds has shown its shapes by then.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

import jaxtyping
import torch
from beartype import BeartypeConf, beartype

Check = Callable[..., None]
_check = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))
_checks: dict[CodeType, tuple[Check, Check | None]] = {}
_calls: dict[CodeType, int] = {}
MOST = 50
"""The calls of a function that are checked in one test."""

_jaxtyped = jaxtyping.jaxtyped


def jaxtyped(function: Any = None, *, typechecker: Any = None) -> Any:
    """A function whose arguments and result must have the shapes of its annotations, where a size of one name is one
    size; dataclasses are left to jaxtyping.
    """
    if function is None:
        return lambda found: jaxtyped(found, typechecker=typechecker)
    if not isinstance(function, FunctionType):
        return _jaxtyped(function, typechecker=typechecker)
    if jaxtyping.config.jaxtyping_disable and "<locals>" in function.__qualname__:
        return function
    code = function.__code__
    if code not in _checks:
        _checks[code] = _checks_of(function)
    parameters, returned = _checks[code]

    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        __tracebackhide__ = True
        if torch.compiler.is_compiling():  # counts are no part of a graph
            return function(*arguments, **keywords)
        number = _calls.get(code, 0)
        if number >= MOST or jaxtyping.config.jaxtyping_disable:
            return function(*arguments, **keywords)
        _calls[code] = number + 1
        with _jaxtyped("context"):
            parameters(*arguments, **keywords)
            result = function(*arguments, **keywords)
            if returned is not None:
                returned(result)
            return result

    return call


def begin_anew() -> None:
    """Another test: its first calls are checked again."""
    _calls.clear()


def _checks_of(function: FunctionType) -> tuple[Check, Check | None]:
    """Functions without a body, of the same parameters and of the result."""
    hints = {name: _resolved(hint, function) for name, hint in function.__annotations__.items()}
    signature = inspect.signature(function, follow_wrapped=False)
    bare = [
        p.replace(annotation=p.empty, default=p.empty if p.default is p.empty else None)
        for p in signature.parameters.values()
    ]
    returned = _without_a_body(function, "(result)", {"result": hints["return"]}) if "return" in hints else None
    return _without_a_body(function, str(inspect.Signature(bare)), hints | {"return": None}), returned


def _without_a_body(function: FunctionType, parameters: str, hints: dict[str, Any]) -> Check:
    made: dict[str, Check] = {}
    exec(f"def empty{parameters}: pass", made)
    empty = made["empty"]
    empty.__name__, empty.__qualname__, empty.__module__ = function.__name__, function.__qualname__, function.__module__
    empty.__annotations__ = hints
    return _check(empty)


def _resolved(hint: Any, function: FunctionType) -> Any:
    """What an annotation's text stands for; anything, where it names what is imported for type checkers only."""

    def holder() -> None: ...

    holder.__annotations__ = {"hint": hint}
    try:
        return typing.get_type_hints(holder, function.__globals__, include_extras=True)["hint"]
    except Exception:
        return Any


jaxtyping.jaxtyped = jaxtyped
