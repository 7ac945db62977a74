"""Code of the user's own, named on a command line or in YAML: `path/to/file.py:Name`."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from remask.errors import UserError, first_line


def is_own(name: str) -> bool:
    """Return whether a name is `file.py:Name`."""
    return ".py:" in name


def load_class(name: str, what: str, methods: tuple[str, ...]) -> Any:
    """Return the class of `file.py:Class`. Raises UserError where there is none, or it lacks one of the methods.

    what: what it is, for the message ("a sampler's rule").
    """
    place, _, attribute = name.rpartition(":")
    module = from_file(name, place)
    found = getattr(module, attribute, None)
    if not inspect.isclass(found):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        classes = [key for key in own if inspect.isclass(vars(module)[key])]
        raise UserError(
            f"there is no class {attribute} in {place}",
            where=name,
            mend=f"its classes are {', '.join(classes)}" if classes else "it defines no class",
        )
    missing = [method for method in methods if not callable(getattr(found, method, None))]
    if missing:
        raise UserError(f"{attribute} lacks {', '.join(missing)}", where=name, mend=f"{what} has {', '.join(methods)}")
    return found


def from_file(name: str, place: str) -> ModuleType:
    """Return the module of a file, run once a process. The current folder and the file's folder are put on the path.

    Raises UserError where there is no such file, or it cannot be imported.
    """
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise UserError(f"no such file: {path}", where=name, mend="give the path of the file that defines it")
    known = sys.modules.get(str(path))
    if known is not None:
        return known
    spec = importlib.util.spec_from_file_location(str(path), path)
    assert spec is not None
    assert spec.loader is not None
    for folder in (Path.cwd(), path.parent):
        put_on_path(folder)
    module = sys.modules[str(path)] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[str(path)]
        if isinstance(error, (Exception, SystemExit)):
            raise not_imported(name, place, error) from error
        raise
    return module


def put_on_path(folder: Path) -> None:
    """Put a folder first on Python's path, unless it is there."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def not_imported(name: str, place: str, error: BaseException) -> UserError:
    """Return the error for a place that cannot be imported."""
    return UserError(
        f"{place} cannot be imported ({type(error).__name__}: {first_line(error)})",
        where=name,
        mend="run it with Python to see where it stops",
    )


def stamp(name: str) -> str:
    """Return which version of the file of `file.py:Name` it is, for records."""
    return hashlib.sha256(Path(name.rpartition(":")[0]).expanduser().read_bytes()).hexdigest()[:8]
