"""What a user's reward function raised, in one line: the error, and the user's own line that it came from."""

from __future__ import annotations

import traceback
from pathlib import Path

from remask.errors import first_line

WITHIN = str(Path(__file__).parents[1])


class RaisedError(Exception):
    """A function raised an error in the process that it runs in; the message is what `said_of` said of it there."""


def said_of(error: BaseException) -> str:
    """Return a message that names an error, its text, and the line of the user's file that raised it."""
    if isinstance(error, RaisedError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    line = next((frame for frame in frames if not frame.filename.startswith(WITHIN)), None)
    place = f" ({Path(line.filename).name}, line {line.lineno})" if line else ""
    return f"raised {type(error).__name__}: {first_line(error)}{place}"
