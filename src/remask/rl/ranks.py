"""What several processes do together: fail as one, and speak once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object

from remask.errors import UserError

T = TypeVar("T")


def agreed(work: Callable[[], T], *, when: str) -> T:
    """Return what `work` returns. A UserError of one process is raised by all, so that none waits for it; its message
    begins with `when`.
    """
    given: list[T] = []
    refused: list[UserError] = []
    try:
        given.append(work())
    except UserError as error:
        refused.append(error)
    for refusal in gather_object(refused):
        raise UserError(f"{when}{refusal.what}", where=refusal.where, mend=refusal.mend)
    return given[0]


def tell(line: str) -> None:
    """Write a line to stderr, once for all processes."""
    if PartialState().is_main_process:
        print(line, file=sys.stderr)
