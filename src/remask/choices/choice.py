"""How a choice carries the meanings of its values, and how they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, get_args, get_origin

from remask.errors import UserError


class Meanings:
    """The meanings of a choice's values, one line for each value."""

    def __init__(self, lines: Mapping[str, str]) -> None:
        self.lines = dict(lines)


def meanings(choice: Any) -> dict[str, str]:
    """Return the meaning of each value of a choice, or of a type hint that holds one (`RateName | None`); empty where
    there is none.
    """
    return next((mark.lines for mark in _marks(choice)), {})


def values(choice: Any) -> tuple[str, ...]:
    """Return the values of a choice, in the order in which they are listed."""
    return tuple(meanings(choice))


def refuse_unknown(what: str, value: object, choice: Any) -> None:
    """Raises UserError with the values there are, where `value` is none of them."""
    if value not in values(choice):
        raise UserError(f"unknown {what} {value!r}", mend=f"the choices are {', '.join(values(choice))}")


def _marks(hint: Any) -> Iterator[Meanings]:
    """The meanings in a hint, the outermost first."""
    if get_origin(hint) is Annotated:
        yield from (mark for mark in hint.__metadata__ if isinstance(mark, Meanings))
    for inner in get_args(hint):
        yield from _marks(inner)
