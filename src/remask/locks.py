"""One process at a time at a folder or a file: an advisory lock on a file that says who holds it.

The system lets go of the lock when its process ends, however it ends: a file that was left behind locks nothing and is
taken over. Locks reach over the machines of a network file system where that passes them on, as NFS does unless it is
mounted with `nolock` or `local_lock`; where a file system knows no locks, that is said and the work goes on.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from remask.environment import command
from remask.errors import UserError

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
TAKEN = {errno.EACCES, errno.EAGAIN}
TRIES = 100
COMMAND = 100
"""The most characters of the holder's command line that an error shows."""
_HELD: set[Path] = set()
"""The locks that this process holds: the system would open any lock a second time for it."""


class HeldError(UserError):
    """The error where another process, or another use in this one, holds what is asked for."""


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a run's folder, which may have to be made; if nothing is put into it, it is deleted again.

    Of processes that train together the first one alone does. Raises UserError where another process holds it.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        with locked(folder / ".remask.lock", holding=folder, make=True):
            yield
    finally:
        for place in made:
            with suppress(OSError):  # something is in it
                place.rmdir()


@contextmanager
def locked(lock: Path, *, holding: Path, make: bool = False) -> Iterator[None]:
    """Hold what `lock` stands for, called `holding` in messages. The file is deleted when it is let go of.

    Raises HeldError where another process holds it, with its number, machine and time of start. `make` the folder that
    the lock is to be in.
    """
    lock = lock.absolute()
    if lock in _HELD:
        raise HeldError("is being worked on by this process", where=str(holding), mend="let the first use end")
    descriptor = _taken(lock, holding, make)
    _HELD.add(lock)
    try:
        _describe(descriptor)
        yield
    finally:
        _HELD.discard(lock)
        with suppress(OSError):
            lock.unlink()  # before it is let go of: who comes next makes another
        os.close(descriptor)


def is_held(lock: Path) -> bool:
    """Return whether a process holds `lock`. A lock that is free is taken for a moment to find out."""
    if lock.absolute() in _HELD:  # to close the file once more would let go of it
        return True
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in TAKEN
    finally:
        os.close(descriptor)
    return False


def _taken(lock: Path, holding: Path, make: bool) -> int:
    """The lock's file, open and locked. One that was removed before it could be locked is another's past."""
    while True:
        descriptor = _opened(lock, make)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                print(f"{holding}: no locks on this file system, nothing keeps a second process out", file=sys.stderr)
                return descriptor
            said = _said(descriptor)
            os.close(descriptor)
            if error.errno not in TAKEN:
                raise
            raise HeldError(
                f"is being worked on by {said}", where=str(holding), mend="wait for its end, or end it first"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                return descriptor
        os.close(descriptor)


def _opened(lock: Path, make: bool) -> int:
    """Its folder may go away just now, with the one who made it."""
    for last in (False,) * TRIES + (True,):
        try:
            if make:
                lock.parent.mkdir(parents=True, exist_ok=True)
            return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            if last or not make:
                raise
    raise AssertionError


def _describe(descriptor: int) -> None:
    holder = {
        "process": os.getpid(),
        "machine": platform.node(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": " ".join(command())[:COMMAND],
    }
    with suppress(OSError):  # no room: it is held all the same
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _said(descriptor: int) -> str:
    """Who holds it. It may just have been taken, and not be described yet."""
    for _ in range(20):
        try:
            found: dict[str, Any] = json.loads(os.pread(descriptor, 1 << 16, 0))
            return f"process {found['process']} on {found['machine']} since {found['since']} ({found['command']})"
        except (ValueError, KeyError, TypeError):
            time.sleep(0.05)
    return "another process"
