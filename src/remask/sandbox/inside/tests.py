"""The trusted side: runs the tests, with stand-ins for the program's functions, and reports how many passed.

Every `assert` counts by itself: one that fails does not end the tests. An assertion of a constant is not counted.
Tests may also call `record(passed, group, note)` for a test of their own, `limit(seconds)` for the time of each further
call and `alive()` to ask whether the program still answers, and read what they were given as `DATA` and `reference`.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
import sys
import time
from collections.abc import Callable

from .limits import settings
from .wire import DEEP, STARTED, LateError, WireError, read, receive, send, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LOAD_SECONDS = 10.0
"""The seconds that a program may take before its functions can be called."""

STOPPERS = (StopIteration, StopAsyncIteration)
"""The errors that are never raised for the program: they would end a loop of the tests as if it had come to its end."""

LENGTHS = {"ready": 1, "value": 2}
BROKEN = "the program does not keep to the protocol"


class ProgramError(Exception):
    """The program raised something that is not a built-in exception, or cannot be talked to."""


class Program:
    """A program stands for the functions at the other end of two pipes."""

    def __init__(self, requests: int, answers: int) -> None:
        self.requests, self.answers = requests, answers
        self.seconds: float | None = None
        self.late = False
        self.lost: str | None = None

    def wait_until_ready(self, seconds: float) -> str | None:
        """Return None, or what kept the program from loading."""
        try:
            answer = self._answer("ready", seconds)
        except ProgramError as error:
            return str(error)
        return None if answer[0] == "ready" else f"{answer[1]}: {answer[2]}"

    def has_started(self) -> bool:
        """Return whether the box at the other end came up; it waits for it as long as it takes."""
        try:
            return read(self.answers, 1) == STARTED
        except WireError:
            return False

    def limit(self, seconds: float | None) -> None:
        """Set the seconds that each further call may take (None: no limit)."""
        self.seconds = seconds

    def stand_in(self, name: str) -> Callable[..., Any]:
        """Return a function that calls the program's function of that name."""

        def call(*arguments: Any, **keywords: Any) -> Any:
            if self.lost is not None:
                raise ProgramError(self.lost)
            try:
                send(self.requests, (name, arguments, keywords))
            except OSError:
                raise self._lose("the program is gone") from None
            answer = self._answer("value", self.seconds)
            if answer[0] == "value":
                return answer[1]
            kind = getattr(builtins, answer[1], None)
            if not (isinstance(kind, type) and issubclass(kind, Exception)) or issubclass(kind, STOPPERS):
                raise ProgramError(f"{answer[1]}: {answer[2]}")
            try:
                error = kind(answer[2])
            except Exception:  # some take other arguments
                error = ProgramError(f"{answer[1]}: {answer[2]}")
            raise error

        call.__name__ = name
        return call

    def _answer(self, expected: str, seconds: float | None) -> tuple[Any, ...]:
        """The next answer: the expected one, or what was raised.

        A program that breaks the protocol or the clock is never asked again.
        """
        try:
            read(self.answers, 1, None if seconds is None else time.monotonic() + seconds)
            answer = receive(self.answers)
        except LateError as error:
            self.late = True
            raise self._lose(str(error)) from None
        except WireError as error:
            raise self._lose(str(error)) from None
        if type(answer) is tuple and answer[:1] == (expected,) and len(answer) == LENGTHS[expected]:
            return answer
        if type(answer) is tuple and answer[:1] == ("raised",) and [*map(type, answer[1:])] == [str, str]:
            return answer
        raise self._lose(BROKEN)

    def _lose(self, why: str) -> ProgramError:
        self.lost = why
        return ProgramError(why)


class Tally:
    """A tally counts how many tests passed, by group."""

    def __init__(self) -> None:
        self.groups: dict[str, list[int]] = {}
        self.first = ""

    def record(self, passed: bool, group: str = "tests", note: str = "") -> None:
        """Count one test, and keep the note of the first that failed."""
        counts = self.groups.setdefault(group, [0, 0])
        counts[0] += bool(passed)
        counts[1] += 1
        if not passed and not self.first:
            self.first = note

    def at_least(self, count: int, group: str = "tests") -> None:
        """Count tests that were never reached as failed."""
        if count:
            counts = self.groups.setdefault(group, [0, 0])
            counts[1] = max(counts[1], count)


class Soften(ast.NodeTransformer):
    """A transformer that makes each `assert a` try it, record whether it held, and go on."""

    def __init__(self) -> None:
        self.count = 0

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        if isinstance(node.test, ast.Constant):
            return node
        self.count += 1
        note = ast.unparse(node.test)[:300]
        template = ast.parse(
            "try:\n    pass\n"
            f"except Exception as _error_:\n    _record_(False, 'tests', {note!r} + ': ' + repr(_error_)[:200])\n"
            "else:\n    _record_(True)"
        )
        guarded = template.body[0]
        assert isinstance(guarded, ast.Try)
        guarded.body = [node]
        return ast.copy_location(guarded, node)


def main() -> None:
    """Run the tests against the program, and report what came of them."""
    given = settings()
    sys.setrecursionlimit(DEEP)
    report = given["report"]
    write(report, STARTED)
    program, tally = Program(given["requests"], given["answers"]), Tally()
    result: dict[str, Any] = {"started": program.has_started(), "error": ""}
    if result["started"]:
        result["error"] = program.wait_until_ready(LOAD_SECONDS) or ""
        result["loaded"] = not result["error"]
    if result.get("loaded"):
        try:
            run(given, program, tally)
            result["finished"] = True
        except BaseException as error:
            result["error"] = f"{type(error).__name__}: {error}"
    result |= {"groups": tally.groups, "late": program.late, "lost": program.lost}
    result["error"] = (result["error"] or tally.first)[:1000]
    write(report, json.dumps(result).encode())
    os._exit(0)


def run(given: dict[str, Any], program: Program, tally: Tally) -> None:
    """Run the tests with each assertion counted, whether it holds or not."""
    tree = ast.parse(given["tests"], "tests.py")
    soften = Soften()
    tree = ast.fix_missing_locations(soften.visit(tree))
    reference: dict[str, Any] = {"__name__": "setup"}  # apart: what it defines must never call the program
    exec(compile(given["setup"], "setup.py", "exec"), reference)
    space = reference | {"__name__": "tests", "reference": reference, "DATA": given["data"], "limit": program.limit}
    space |= {"record": tally.record, "_record_": tally.record, "alive": lambda: program.lost is None}
    space |= {name: program.stand_in(name) for name in given["names"]}
    try:
        exec(compile(tree, "tests.py", "exec"), space)
    finally:
        tally.at_least(soften.count)
