"""The untrusted side: runs the program, then calls its functions when asked, until nobody asks any more.

Nothing here is relied on: the program can change all of it, and gains only the freedom to answer what it likes.
"""

from __future__ import annotations

import os
import sys
import types

from .limits import settings
from .wire import DEEP, STARTED, WireError, receive, send, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def main() -> None:
    """Load the program, then answer calls of its functions until nobody sends any."""
    given = settings()
    requests, answers = given["requests"], given["answers"]
    module = types.ModuleType("program")
    sys.modules["program"] = module
    write(answers, STARTED)
    answer: tuple[Any, ...]
    try:
        exec(compile(given["source"], "program.py", "exec"), module.__dict__)
        answer = ("ready",)
    except BaseException as error:
        answer = raised(error)
    while True:
        write(answers, b".")  # the clock of the call stops here; what follows is its answer's transport
        limit = sys.getrecursionlimit()  # the program may have set its own
        sys.setrecursionlimit(max(limit, DEEP))
        try:
            send(answers, answer)
        except (TypeError, ValueError, RecursionError, MemoryError) as error:
            send(answers, raised(error))
        try:
            name, arguments, keywords = receive(requests)
        except WireError:
            break
        sys.setrecursionlimit(limit)
        try:
            answer = ("value", getattr(module, name)(*arguments, **keywords))
        except BaseException as error:
            answer = raised(error)
    os._exit(0)


def raised(error: BaseException) -> tuple[str, str, str]:
    """Return an error as a frame: its type's name, and its message cut to 500 characters."""
    try:
        message = str(error)[:500]
    except BaseException:
        message = ""
    return "raised", type(error).__name__, message
