"""Progress with time left: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol


class Tracker(Protocol):
    """A function that reports progress."""

    def __call__(self, done: float, note: str = "") -> None:
        """Report how many units are done in all; part of one under way counts for the time that is left."""


LINE_SECONDS = 5.0


def duration(seconds: float) -> str:
    """Return seconds as text in seconds, minutes or hours."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60}:{seconds % 60:02d} min"
    return f"{seconds // 3600}:{seconds % 3600 // 60:02d} h"


@contextmanager
def progress(label: str, total: int, *, enabled: bool = True) -> Iterator[Tracker]:
    """Show progress on stderr: `with progress("training", 100) as tick: tick(10, "loss 1.2")`; silent where not
    enabled.
    """
    if not enabled:
        yield lambda done, note="": None
        return
    if sys.stderr.isatty():
        yield from _bar(label, total)
    else:
        yield from _lines(label, total)


def _bar(label: str, total: int) -> Iterator[Tracker]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total, note="")
        yield lambda done, note="": bar.update(task, completed=done, note=note)


def _lines(label: str, total: int) -> Iterator[Tracker]:
    started = last = time.monotonic()

    def tick(done: float, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if (done or note) and (now - last >= LINE_SECONDS or done >= total):
            last = now
            left = f", {duration((now - started) / done * (total - done))} left" if done else ""
            tail = f"  {note}" if note else ""
            with suppress(OSError):  # nobody reads it any more: no reason to stop
                print(
                    f"{label}: {int(done)}/{total}  {duration(now - started)} gone{left}{tail}",
                    file=sys.stderr,
                    flush=True,
                )

    yield tick


@contextmanager
def working(label: str, *, enabled: bool = True) -> Iterator[None]:
    """Say every few seconds, on stderr, that something whose end cannot be foreseen is still being done."""
    if not enabled:
        yield
        return
    done, started = threading.Event(), time.monotonic()

    def say() -> None:
        while not done.wait(LINE_SECONDS):
            with suppress(OSError):
                print(f"{label}: {duration(time.monotonic() - started)} gone", file=sys.stderr, flush=True)

    teller = threading.Thread(target=say, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()
