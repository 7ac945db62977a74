"""The math-verify library's verdict, from a process of its own: whatever an answer makes it do, grading goes on."""

from __future__ import annotations

from typing import Any

from remask.errors import UserError
from remask.tasks.worker import LONGEST, Worker


class Verifier(Worker):
    """A verifier asks one worker process. An answer that uses up its `seconds` or its `patience` counts as not
    verified.
    """

    kind = "math-verify"

    def __init__(self, seconds: float = 0.6, patience: float = 20.0) -> None:
        super().__init__(seconds, patience)

    def __reduce__(self) -> tuple[Any, ...]:
        return Verifier, (self.seconds, self.patience)

    def missing(self) -> UserError:
        return UserError("math-verify cannot be loaded", mend="install it: pip install math-verify")

    def agrees(self, reference: str, completion: str) -> bool:
        """Return whether the answer that the library finds in a completion's last `LONGEST` characters equals the
        reference.

        Raises UserError where the library cannot be used at all.
        """
        return self.ask(reference, completion[-LONGEST:]) == 1
