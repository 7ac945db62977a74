"""A process that grades answers: whatever an answer makes it do, grading goes on. It is asked and answers in lines."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import weakref
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from remask.errors import UserError

LONGEST = 20_000
"""The most characters of an answer that are read."""
PROCESS = Path(__file__).with_name("worker_process.py")
SURROUNDINGS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
"""Numerical libraries reserve memory for each thread, of which a worker has little; and sets have one order."""


class Worker(ABC):
    """A process of its own answers, which is started when first needed and anew whenever it ends.

    An answer may take `seconds` of processor time (0: any), after which the process ends; `patience` seconds by the
    clock are the same for a process that waits instead of working. One worker may be shared by threads; a process
    forked from this one starts another.
    """

    kind: ClassVar[str]
    """The kind of question that is asked (`worker_process.KINDS`)."""

    def __init__(self, seconds: float, patience: float) -> None:
        self.seconds, self.patience = seconds, patience
        self._lock = threading.Lock()
        self._worker: subprocess.Popen[bytes] | None = None
        self._owner = 0

    @abstractmethod
    def missing(self) -> UserError:
        """Return the error for a process that cannot be started."""

    def ask(self, *question: Any) -> Any:
        """Return the answer to a question, whose parts JSON can hold; None where the process ended instead.

        Raises the error of `missing` where it cannot be started.
        """
        line = json.dumps(question).encode() + b"\n"
        with self._lock:
            process = self._started()
            try:
                answer = self._asked(process, line)
            except OSError:  # it is gone
                return None
        return json.loads(answer) if answer else None

    def _started(self) -> subprocess.Popen[bytes]:
        process = self._worker
        if process is not None and self._owner == os.getpid() and process.poll() is None:
            return process
        process = subprocess.Popen(
            [sys.executable, "-P", str(PROCESS), self.kind, str(self.seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, **SURROUNDINGS},
        )
        self._worker, self._owner = process, os.getpid()
        weakref.finalize(self, _end, process, self._owner)
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            _end(process, self._owner)
            raise self.missing()
        return process

    def _asked(self, process: subprocess.Popen[bytes], question: bytes) -> bytes:
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(self.patience, process.kill)
        timer.start()
        try:
            process.stdin.write(question)
            process.stdin.flush()
            answer = process.stdout.readline()
        except BaseException:  # its answer would be taken for the next one's
            _end(process, self._owner)
            raise
        finally:
            timer.cancel()
        if not answer:
            _end(process, self._owner)
        return answer


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if owner != os.getpid():
        return
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
