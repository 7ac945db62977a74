"""A task of the user's own: `file.py:Class`, a subclass of `remask.tasks.Task`."""

from __future__ import annotations

import inspect

from remask.errors import UserError
from remask.own_code import from_file
from remask.tasks.base import Task


def load(name: str) -> Task:
    """Return the task of `path/to/file.py:Class`. Raises UserError saying why it cannot be loaded."""
    place, _, attribute = name.rpartition(":")
    module = from_file(name, place)
    found = getattr(module, attribute, None)
    if not (inspect.isclass(found) and issubclass(found, Task)):
        known = [key for key, value in vars(module).items() if inspect.isclass(value) and issubclass(value, Task)]
        known = [key for key in known if vars(module)[key].__module__ == module.__name__]
        raise UserError(
            f"there is no task {attribute} in it",
            where=place,
            mend=f"its subclasses of Task are {', '.join(known) or 'none'}",
        )
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing or not isinstance(getattr(found, "name", None), str):
        raise UserError(
            f"{attribute} lacks {', '.join([*missing, *([] if hasattr(found, 'name') else ['name'])])}",
            where=place,
            mend="a task has a name, read, prompt and grade (docs/evaluation.md)",
        )
    return found()
