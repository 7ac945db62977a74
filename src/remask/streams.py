"""What a command says: on streams that may be closed, full, or unable to write every character."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress

from remask.errors import UserError


def prepare_streams() -> None:
    """Make a stream that was closed before the program began go nowhere, instead of into the next file that is opened.
    A character that the terminal has not is written as its number, instead of ending a run when its work is done.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def quiet_libraries() -> None:
    """Silence what bitsandbytes says of kernels for quantised weights whenever it is imported: it is of no use without
    them.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def say(line: str) -> None:
    """Print on stderr, if anybody reads it."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def flush() -> None:
    """Raises UserError where what was written to stdout cannot be delivered."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        drop_output()
        raise UserError(
            f"results cannot be written ({error.strerror})",
            where="standard output",
            mend="make room there, or send the output elsewhere",
        ) from error


def drop_output() -> None:
    """Send what is left of the output nowhere, as nobody reads any more, and say nothing when the program ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
