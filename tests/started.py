"""Commands as processes of their own, each a fork of one that has imported what commands need.

A new interpreter takes some four seconds to import torch and transformers; a fork takes none. It can be killed, told to
stop and waited for as well, its streams and its exit code are those of `remask …`, and it runs `remask.cli.main`. What
a fork cannot show is how an interpreter starts: streams that are closed before, launchers, the loading of modules.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.reduction import DupFd
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

from remask.study import schedule

Program = Callable[[Sequence[str]], int]
_begun: list[Started] = []


class Started:
    """A command under way, with those names of `subprocess.Popen` that tests use; what it says on stderr is text.
    `program` is run in its place where one is given, a function of a module that the process can import.
    """

    def __init__(self, *arguments: str, program: Program | None = None, **environment: str) -> None:
        self._stdout = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read when the process has ended
        reader, writer = os.pipe()
        streams = [DupFd(self._stdout.fileno()), DupFd(writer)]
        whole = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self._process = schedule.process_context().Process(
            target=_carry_out, args=(program, arguments, whole, os.getcwd(), streams)
        )
        self._process.start()
        os.close(writer)
        self.stderr = open(reader)  # noqa: SIM115
        self.pid = self._process.pid or 0
        _begun.append(self)

    @property
    def returncode(self) -> int | None:
        """The exit code, -n where signal n ended the process, None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise TimeoutExpired("remask", timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it printed, and what is left to read on stderr, when it has ended and all that it began."""
        said = self._read(timeout)
        self.wait(timeout)
        self._stdout.seek(0)
        return self._stdout.read(), said

    def _read(self, timeout: float | None) -> str:
        """Up to the end of stderr; a process that does not end is killed in time, as `wait` then finds."""
        if timeout is None:
            return self.stderr.read()

        def late(number: int, frame: Any) -> None:
            raise TimeoutExpired("remask", timeout)

        before = signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, timeout)
        try:
            return self.stderr.read()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def ranks(*arguments: str, count: int = 2, program: Program | None = None, **environment: str) -> list[Started]:
    """The same command in several processes, told of each other as launchers do."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    numbers = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    return [Started(*arguments, program=program, **environment, **number) for number in numbers]


def told_by_accelerate(launch: Sequence[str]) -> dict[str, str]:
    """The environment in which accelerate's launcher would start processes, called with these arguments."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    told, _, _ = _validate_launch_command(launch_command_parser().parse_args(list(launch)))
    return {name: value for name, value in prepare_multi_gpu_env(told).items() if name not in os.environ}


def finished(begun: Sequence[Started], timeout: float = 240) -> str:
    """What several processes said, when all have ended well."""
    said = [process.communicate(timeout)[1] for process in begun]
    assert [process.returncode for process in begun] == [0] * len(begun), "\n".join(said)[-3000:]
    return "".join(said)


def _carry_out(
    program: Program | None, arguments: Sequence[str], environment: dict[str, str], folder: str, streams: list[Any]
) -> None:
    for number, stream in enumerate(streams, 1):
        descriptor = stream.detach()
        os.dup2(descriptor, number)
        os.close(descriptor)
    # As an interpreter makes them of what they are now; those of before may take a pipe for a file.
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    import torch

    from remask.cli import main

    # What it begins in its turn is a fork of itself: a server of its own would import all anew.
    schedule.process_context = lambda: get_context("fork")  # type: ignore[assignment,return-value]
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.argv = [str(Path(sys.executable).with_name("remask")), *arguments]
    sys.exit((program or main)(arguments))


@atexit.register
def _end_all() -> None:
    """A test that failed may have left some: they are not waited for."""
    for process in _begun:
        process.kill()
