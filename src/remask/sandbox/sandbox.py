"""Running many programs at once, and making sure first that it is safe."""

from __future__ import annotations

import compileall
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

from remask.errors import UserError
from remask.sandbox.box import INSIDE, Limits, check_bubblewrap
from remask.sandbox.run import Outcome, Program, StartError, run


class Sandbox:
    """A sandbox runs programs in boxes, `workers` at once. See the package's docstring for what that protects from."""

    def __init__(self, limits: Limits | None = None, workers: int | None = None) -> None:
        self.limits = limits or Limits()
        self.workers = workers or os.cpu_count() or 1
        self._checked = False

    def check(self) -> None:
        """Raises UserError, with the reason and what to do, where this machine cannot run programs safely."""
        if not self._checked:
            check_bubblewrap()
            if not sys.dont_write_bytecode:  # boxes cannot write it: each would compile what it imports
                compileall.compile_dir(INSIDE, quiet=2)
            _trial(self.limits)
            self._checked = True

    def run(self, program: Program, *, limits: Limits | None = None) -> Outcome:
        """Run one program and return its outcome."""
        self.check()
        return _run(program, limits or self.limits, threading.Event())

    def run_all(
        self,
        programs: Sequence[Program],
        *,
        limits: Limits | None = None,
        on_done: Callable[[int], None] | None = None,
    ) -> list[Outcome]:
        """Return the outcomes in order. `on_done` is called, in the calling thread, with how many are done."""
        self.check()
        stop = threading.Event()
        with ThreadPoolExecutor(self.workers, "sandbox") as pool:
            futures: list[Future[Outcome]] = []
            try:
                futures += [pool.submit(_run, program, limits or self.limits, stop) for program in programs]
                for done, future in enumerate(as_completed(futures), 1):
                    future.result()
                    if on_done is not None:
                        on_done(done)
            except BaseException:
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return [future.result() for future in futures]


def _run(program: Program, limits: Limits, stop: threading.Event) -> Outcome:
    """One program; a box that fails to start (a machine short of memory for a moment) is tried a second time."""
    try:
        return run(program, limits, stop)
    except StartError:
        try:
            return run(program, limits, stop)
        except StartError as error:
            raise UserError(
                f"the sandbox did not start: {error}", mend="use fewer workers, or allow programs more memory"
            ) from None


PROBE = '''
import os, socket, threading

def doors():
    """What is open to this process that must not be."""
    def opens(attempt):
        try:
            attempt()
            return True
        except OSError:
            return False
    attempts = {
        "starting processes": lambda: os.fork() or os._exit(0),
        "sockets": socket.socket,
        "writing to /": lambda: open("/mark", "w"),
        "writing to the libraries": lambda: open(os.__file__, "a"),
        "other processes": lambda: os.listdir("/proc"),
        "the network": lambda: os.listdir("/sys"),
    }
    found = [name for name, attempt in attempts.items() if opens(attempt)]
    return found + ["being root"] * (os.getuid() == 0)

def works():
    import decimal
    thread = threading.Thread(target=lambda: open("/tmp/mark", "w").write("written"))
    thread.start()
    thread.join()
    return open("/tmp/mark").read()
'''


def _trial(limits: Limits) -> None:
    """Raises UserError where a box cannot be made, or is not shut."""
    tests = "assert doors() == [], doors()\nassert works() == 'written'"
    try:
        outcome = run(Program(PROBE, tests, ("doors", "works")), limits, threading.Event())
    except StartError as error:
        raise UserError(f"bubblewrap cannot make a sandbox here ({error})", mend=MEND) from None
    if not outcome.passed:
        raise UserError(
            f"the sandbox made here is not shut or does not work ({outcome.message or outcome.status})", mend=MEND
        )


MEND = (
    "user namespaces may be switched off (`sysctl user.max_user_namespaces kernel.unprivileged_userns_clone "
    "kernel.apparmor_restrict_unprivileged_userns`), and in a container they need `--privileged` or "
    "`--security-opt seccomp=unconfined`"
)
