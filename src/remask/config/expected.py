"""What an option takes, and what was given instead, in words for its error. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from remask.choices import values

WORDS = ((bool, "true or false"), (int, "a whole number"), (float, "a number"), (str, "text"))


def expected(hint: Any) -> str:
    """Return what a type hint asks for in words: "a whole number", "a, b or c"."""
    kinds = list(kinds_of(hint))
    if any(get_origin(kind) in (tuple, list) for kind in kinds):
        return "a list, such as [a, b]"
    if any(is_dataclass(kind) or get_origin(kind) is dict for kind in kinds):
        return "a mapping of keys to values"
    if any(get_origin(kind) is Literal for kind in kinds):
        return f"{', '.join(names[:-1])} or {names[-1]}" if len(names := values(hint)) > 1 else names[0]
    return next((words for kind, words in WORDS if kind in kinds), "another value")


def as_yaml(value: Any) -> str:
    """Return a value as YAML writes it."""
    return (
        {True: "true", False: "false"}[value] if isinstance(value, bool) else "null" if value is None else repr(value)
    )


def unlike(key: str, hint: Any, value: Any) -> str:
    """Return the error of a key whose value is of the wrong kind."""
    return f"{key}: expected {expected(hint)}, got {as_yaml(value)}"


def hint_at(kind: Any, location: tuple[int | str, ...]) -> Any:
    """Return the type hint of what stands at a place of a config, such as ("choices", "rate") or ("seeds", 1)."""
    for part in location:
        inner = [one for one in kinds_of(kind) if is_dataclass(one) or get_origin(one) in (tuple, list, dict)]
        if not inner:
            break
        (kind,) = inner[:1]
        if is_dataclass(kind):
            kind = get_type_hints(kind, include_extras=True)[str(part)]
        else:
            kind = get_args(kind)[1 if get_origin(kind) is dict else 0]
    return kind


def kinds_of(hint: Any) -> Iterator[Any]:
    """Yield a hint and all that it is made of."""
    yield hint
    for inner in get_args(hint):
        yield from kinds_of(inner)
