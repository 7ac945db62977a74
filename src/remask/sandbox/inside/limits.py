"""The limits a process in a box puts on itself before it reads anything that is not Remask's."""

from __future__ import annotations

import os
import resource
import sys
from typing import Any

NOBODY = 65534
NAMES = {
    "memory": resource.RLIMIT_AS,
    "cpu": resource.RLIMIT_CPU,
    "file": resource.RLIMIT_FSIZE,
    "processes": resource.RLIMIT_NPROC,
}


def settings() -> dict[str, Any]:
    """What was handed over on standard input, with its limits put into force and standard input closed."""
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
    if os.getuid() == 0:  # bubblewrap run by root without a user namespace: become nobody for good
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    sys.set_int_max_str_digits(0)
    return given
