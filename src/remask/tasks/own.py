"""A task of the user's own: `file.py:Class`, a subclass of `remask.tasks.Task`."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from pathlib import Path

from remask.errors import UserError, first_line
from remask.tasks.base import Task


def is_own(name: str) -> bool:
    return ".py:" in name


def load(name: str) -> Task:
    """The task of `path/to/file.py:Class`. Raises UserError saying why it cannot be had."""
    place, _, attribute = name.rpartition(":")
    path = Path(place)
    if not path.is_file():
        raise UserError("no such file", where=place, mend="write file.py:Class")
    spec = importlib.util.spec_from_file_location(
        f"remask_task_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}", path
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises
        raise UserError(
            f"the file cannot be imported ({type(error).__name__}: {first_line(error)})",
            where=place,
            mend="run it with Python to see where it stops",
        ) from error
    finally:
        sys.path.pop(0)
    found = getattr(module, attribute, None)
    if not (inspect.isclass(found) and issubclass(found, Task)):
        known = [key for key, value in vars(module).items() if inspect.isclass(value) and issubclass(value, Task)]
        known = [key for key in known if vars(module)[key].__module__ == spec.name]
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


def stamp(name: str) -> str:
    """Which version of the file it is, for records."""
    return hashlib.sha256(Path(name.rpartition(":")[0]).read_bytes()).hexdigest()[:8]
