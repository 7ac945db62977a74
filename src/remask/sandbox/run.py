"""One program against its tests: two boxes, the pipes between them, and a watch over both."""

from __future__ import annotations

import json
import os
import selectors
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import IO, Any, Literal

from remask.sandbox.box import Box, Limits
from remask.sandbox.inside.wire import STARTED

Status = Literal["passed", "failed", "error", "timeout", "output", "died"]

GRACE = 3.0
"""The seconds that the tests have to report after the program has been stopped."""

KEPT_OUTPUT = 4096
"""The number of bytes of what a program prints that are kept."""

MOST_REPORT = 1 << 20
TICK = 0.1


@dataclass(frozen=True)
class Program:
    """A program comes with what is asked of it.

    `source` is not trusted. `tests` is Python that calls the functions `names` of the program, with plain data, and
    asserts; it never shares a process with `source`. `setup` runs before the tests, and its names are theirs to use
    (as `reference["…"]` where a stand-in has taken the name); `data` is theirs as `DATA`.
    """

    source: str
    tests: str
    names: tuple[str, ...]
    setup: str = ""
    data: Any = None


@dataclass(frozen=True)
class Outcome:
    """An outcome says what came of a program.

    `passed` and `failed` are verdicts of the tests; `error`: it did not load; `timeout`, `output`: stopped for using
    too much of it; `died`: it ended before the tests did.
    """

    status: Status
    groups: dict[str, tuple[int, int]] = field(default_factory=dict)
    """The tests passed and the tests in all, by group (`tests`: assertions). Empty where the tests did not run to their
    end."""
    message: str = ""
    """The first thing that went wrong, in the program's or the tests' words."""
    output: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Return whether all tests passed."""
        return self.status == "passed"

    def share(self, *groups: str) -> float:
        """Return the share of tests passed, of these groups or of all."""
        counts = [self.groups.get(group, (0, 0)) for group in groups or self.groups]
        total = sum(count for _, count in counts)
        return sum(passed for passed, _ in counts) / total if total else 0.0


class StartError(Exception):
    """The box failed, not what is in it."""


class StoppedError(Exception):
    """Other runs have been given up, and this one with them."""


def run(program: Program, limits: Limits, stop: threading.Event) -> Outcome:
    """Run a program and its tests in two boxes; `stop` gives the run up."""
    started = time.monotonic()
    with ExitStack() as stack:
        (requested, requests), (answers, answered), (reported, report) = (stack.enter_context(_pipe()) for _ in "123")
        ends = {"requests": requested, "answers": answered}
        untrusted = _box("program", ends, {"source": program.source}, limits, stack)
        ends = {"requests": requests, "answers": answers, "report": report}
        asked = {"tests": program.tests, "setup": program.setup, "names": program.names, "data": program.data}
        tests = _box("tests", ends, asked, replace(limits, cpu_seconds=limits.cpu_seconds + round(GRACE)), stack)
        for end in (requested, requests, answers, answered, report):  # so that each side sees when the other has ended
            end.close()
        watch = Watch(untrusted, tests, reported.fileno(), started, limits)
        watch.until_reported(stop)
        return watch.outcome(time.monotonic() - started)


@contextmanager
def _pipe() -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as read_end, open(writer, "wb", buffering=0) as write_end:
        yield read_end, write_end


def _box(script: str, ends: dict[str, IO[bytes]], given: dict[str, Any], limits: Limits, stack: ExitStack) -> Box:
    numbers = {name: end.fileno() for name, end in ends.items()}
    box = Box(script, numbers | given, tuple(numbers.values()), limits)
    stack.callback(box.close)
    return box


class Watch:
    """A watch reads what the two boxes write, keeps little of it, and stops the program where it goes too far."""

    def __init__(self, program: Box, tests: Box, report: int, started: float, limits: Limits) -> None:
        self.program, self.tests, self.limits = program, tests, limits
        self.deadline = started + limits.wall_seconds
        self.report, self.printed, self.complaint = bytearray(), bytearray(), bytearray()
        self.printed_bytes = 0
        self.stopped: Status | None = None
        self.reporting = report
        self.readers: dict[int, Callable[[bytes], None]] = {
            report: self._take_report,
            program.output.fileno(): self._take_output,
            tests.output.fileno(): self._take_complaint,
        }

    def until_reported(self, stop: threading.Event) -> None:
        """Wait until the tests' side has closed its report, or has had the time to."""
        with selectors.DefaultSelector() as selector:
            for fd in self.readers:
                selector.register(fd, selectors.EVENT_READ)
            while self.reporting in selector.get_map():
                if stop.is_set():
                    raise StoppedError
                if time.monotonic() > self.deadline:
                    if self.stopped is not None:
                        return
                    self._stop("timeout")
                for key, _ in selector.select(TICK):
                    data = os.read(key.fd, 1 << 16)
                    if data:
                        self.readers[key.fd](data)
                    else:
                        selector.unregister(key.fd)

    def _stop(self, why: Status) -> None:
        if self.stopped is None:
            self.stopped = why
            self.deadline = time.monotonic() + GRACE
            self.program.kill()

    def _take_report(self, data: bytes) -> None:
        self.report += data[: MOST_REPORT - len(self.report)]

    def _take_output(self, data: bytes) -> None:
        self.printed += data[: KEPT_OUTPUT - len(self.printed)]
        self.printed_bytes += len(data)
        if self.printed_bytes > self.limits.output_kb << 10:
            self._stop("output")

    def _take_complaint(self, data: bytes) -> None:
        self.complaint += data[: KEPT_OUTPUT - len(self.complaint)]

    def outcome(self, seconds: float) -> Outcome:
        """Return the verdict, which is the tests' side's alone to give. Raises StartError where a box did not
        come up.
        """
        if not self.report.startswith(STARTED):
            raise StartError(self.complaint.decode(errors="replace").strip() or f"nothing in {seconds:.0f} s")
        output = self.printed.decode(errors="replace")
        try:
            report: dict[str, Any] = json.loads(self.report.removeprefix(STARTED))
        except ValueError:  # what the program answered was too much for the tests' box
            report = {"started": True, "loaded": True, "error": "the tests did not come to an end"}
        if not report["started"]:
            raise StartError(output.strip() or f"nothing in {seconds:.0f} s")
        finished = report.get("finished", False)
        groups = {name: (passed, total) for name, (passed, total) in report["groups"].items()} if finished else {}
        status: Status = "failed"
        if groups and all(passed == total > 0 for passed, total in groups.values()):
            status = "passed"
        elif self.stopped is not None or report.get("late"):
            status = self.stopped or "timeout"
        elif report.get("lost"):
            status = "died" if seconds < self.limits.cpu_seconds else "timeout"
        elif not report.get("loaded"):
            status = "error"
        return Outcome(status, groups, str(report.get("error", "")), output, seconds)
