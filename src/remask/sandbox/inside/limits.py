"""The limits a process in a box puts on itself before it reads anything that is not Remask's."""

from __future__ import annotations

import os
import resource
import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NOBODY = 65534
PAGE = 4096
SMALLEST_STACK, LARGEST_STACK = 256 << 10, 8 << 20
NAMES = {
    "memory": resource.RLIMIT_AS,
    "cpu": resource.RLIMIT_CPU,
    "file": resource.RLIMIT_FSIZE,
    "processes": resource.RLIMIT_NPROC,
}


def settings() -> dict[str, Any]:
    """Return what was handed over on standard input, with its limits put into force and standard input closed."""
    import json

    with open(0, "rb", closefd=False) as source:
        given: dict[str, Any] = json.load(source)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    for name, value in given["limits"].items():
        resource.setrlimit(NAMES[name], (value, value))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    os.environ.pop("MALLOC_ARENA_MAX", None)  # read by the C library before this; not the program's to see
    threading.stack_size(stack_size(**given["limits"]))
    if os.getuid() == 0:  # bubblewrap run by root without a user namespace
        become(given["user"])
    sys.set_int_max_str_digits(0)
    return given


def stack_size(memory: int, processes: int, **others: int) -> int:
    """Return the bytes of a thread's stack: as many threads as are allowed take no more than half of the memory for
    theirs.
    """
    return max(SMALLEST_STACK, min(LARGEST_STACK, memory // 2 // processes // PAGE * PAGE))


def become(user: int) -> None:
    """Stop being root, for good; where this machine has no such user (a container has few), become nobody."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    try:
        os.setresuid(user, user, user)
    except OSError:
        os.setresuid(NOBODY, NOBODY, NOBODY)
