"""How a command ends: what it says, its exit code, and what it does on SIGTERM."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from remask.progress import duration

if TYPE_CHECKING:
    from remask.training.run import Outcome


def tell(outcome: Outcome, *, command: str, objective: str, names: Sequence[str]) -> int:
    """Print how the run ended, with the metrics of the given names. Return 0, or 128 + the signal that
    stopped the run.
    """
    if outcome.signal is not None:
        from remask.training.saving import go_on_with

        print(
            f"stopped by signal {outcome.signal}; a checkpoint is saved. "
            f"Go on with: {go_on_with(command, outcome.folder)}",
            file=sys.stderr,
        )
        return 128 + outcome.signal
    if not outcome.metrics:
        print(f"{outcome.folder} is already finished", file=sys.stderr)
        return 0
    if os.environ.get("RANK", "0") != "0":
        return 0
    numbers = "  ".join(f"{name} {outcome.metrics[name]:.4f}" for name in names if name in outcome.metrics)
    print(f"{outcome.folder}: {objective} finished in {duration(outcome.seconds)}  {numbers}")
    return 0


@contextmanager
def leaving_on_sigterm() -> Iterator[None]:
    """Make SIGTERM end the command by way of `finally`, so that no process that it began outlives it (exit
    code 143).
    """

    def leave(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
