"""A user's reward functions in a process of their own: one that hangs, crashes or leaves others behind harms no run."""

from __future__ import annotations

import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from remask.errors import UserError
from remask.rl.completions import Batch
from remask.rl.faults import RaisedError
from remask.rl.reward_worker import HEAD, send
from remask.rl.rewards import Reward

START = (
    "import sys; sys.path[:] = {path!r}; from remask.rl.reward_worker import main; main({asked}, {answers}, {parent})"
)
READY_SECONDS = 60.0


class Apart:
    """A process for user functions, begun at once. `end` ends it together with all processes that the
    functions began.

    A call may take `timeout` seconds (0: without limit). Raises UserError, naming the function, for a call that takes
    longer or ends the process; afterwards there is no process.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._lock = threading.Lock()
        asked, answers = os.pipe(), os.pipe()
        code = START.format(path=sys.path, asked=asked[0], answers=answers[1], parent=os.getpid())
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            pass_fds=(asked[0], answers[1]),
            start_new_session=True,  # Ctrl-C is the run's
        )
        os.close(asked[0])
        os.close(answers[1])
        self._questions, self._answers = open(asked[1], "wb"), open(answers[0], "rb", buffering=0)  # noqa: SIM115
        self._read("the process of the reward functions", READY_SECONDS)

    def call(self, name: str, columns: dict[str, list[Any]]) -> Any:
        """Return what the function returns. Raises RaisedError where it raises."""
        with self._lock:
            try:
                send(self._questions, (name, columns))
            except (OSError, ValueError):
                raise self._ended(name) from None
            kind, found = self._read(name, self.timeout or float("inf"))
        if kind == "refused":
            what, where, mend = found
            raise UserError(what, where=where, mend=mend)
        if kind == "raised":
            raise RaisedError(found)
        return found

    def end(self) -> None:
        """End the process, and all that the functions began."""
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._questions, self._answers):
            with suppress(OSError):
                pipe.close()

    def _read(self, name: str, seconds: float) -> tuple[str, Any]:
        deadline = time.monotonic() + seconds
        size = int.from_bytes(self._bytes(HEAD, name, seconds, deadline), "big")
        kind, found = pickle.loads(self._bytes(size, name, seconds, deadline))
        return kind, found

    def _bytes(self, size: int, name: str, seconds: float, deadline: float) -> bytes:
        content = b""
        while len(content) < size:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._answers], [], [], max(0.0, min(left, 3600.0)))
            if ready:
                part = self._answers.read(min(size - len(content), 1 << 20))
                if not part:
                    raise self._ended(name)
                content += part
            elif left <= 0:
                self.end()
                raise UserError(
                    f"the reward function did not return within {seconds:g} s",
                    where=name,
                    mend="mend it, or give it more time: --rewards.timeout SECONDS (0: no limit)",
                )
        return content

    def _ended(self, name: str) -> UserError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        code = self._process.returncode
        how = f"with exit code {code}" if code is None or code >= 0 else f"by signal {-code}"
        self.end()
        return UserError(f"the reward function ended its process {how}", where=name, mend="run it alone to see why")


def set_apart(rewards: Sequence[Reward], timeout: float) -> tuple[list[Reward], Apart | None]:
    """Return the rewards with the user's functions called in a process, and that process, or None if there are no such
    functions.
    """
    if not any(reward.own for reward in rewards):
        return list(rewards), None
    apart = Apart(timeout)

    return [replace(one, function=partial(_called, apart, one.name)) if one.own else one for one in rewards], apart


def _called(apart: Apart, name: str, batch: Batch) -> Any:
    return apart.call(name, batch.columns())
