"""The math-verify library's verdict, from a process of its own: whatever an answer makes it do, grading goes on."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

from remask.errors import UserError

LONGEST = 20_000
"""The most characters of a completion that are read, from its end."""


class Verifier:
    """A verifier asks one worker process, which is started when first needed and anew whenever it ends.

    An answer may take `seconds` of processor time, after which it counts as not verified; `patience` seconds by the
    clock are the same for a worker that waits instead of working. One verifier may be shared by threads; a process
    forked from this one starts another worker.
    """

    def __init__(self, seconds: float = 0.6, patience: float = 20.0) -> None:
        self.seconds, self.patience = seconds, patience
        self._lock = threading.Lock()
        self._worker: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return Verifier, (self.seconds, self.patience)

    def agrees(self, reference: str, completion: str) -> bool:
        """Return whether the answer that the library finds in a completion equals the reference.

        Raises UserError where the library cannot be used at all.
        """
        question = json.dumps([reference, completion[-LONGEST:]]).encode() + b"\n"
        with self._lock:
            worker = self._started()
            try:
                return self._ask(worker, question) == b"1\n"
            except OSError:  # it is gone
                return False

    def _started(self) -> subprocess.Popen[bytes]:
        worker = self._worker
        if worker is not None and self._owner == os.getpid() and worker.poll() is None:
            return worker
        worker = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("verifier_worker.py")), str(self.seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._worker, self._owner = worker, os.getpid()
        weakref.finalize(self, _end, worker, self._owner)
        assert worker.stdout is not None
        if worker.stdout.readline() != b"ready\n":
            _end(worker, self._owner)
            raise UserError("math-verify cannot be loaded", mend="install it: pip install math-verify")
        return worker

    def _ask(self, worker: subprocess.Popen[bytes], question: bytes) -> bytes:
        """The worker's line; nothing, where it ended instead."""
        assert worker.stdin is not None
        assert worker.stdout is not None
        timer = threading.Timer(self.patience, worker.kill)
        timer.start()
        try:
            worker.stdin.write(question)
            worker.stdin.flush()
            answer = worker.stdout.readline()
        except BaseException:  # its answer would be taken for the next one's
            _end(worker, self._owner)
            raise
        finally:
            timer.cancel()
        if not answer:
            _end(worker, self._owner)
        return answer


def _end(worker: subprocess.Popen[bytes], owner: int) -> None:
    if owner != os.getpid():
        return
    worker.kill()
    worker.wait()
    for pipe in (worker.stdin, worker.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
