"""Writing files so that a process that dies leaves the old one or the new one, never half of it."""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from remask.errors import UserError


def as_json(value: Any, *, indent: int | None = None) -> str:
    """Return JSON as the standard has it: a number that is NaN or infinite, for which it has no word, is null. Letters
    are written as they are, but where half a surrogate pair is among them, which UTF-8 has not: then as their numbers.
    """
    finite = _finite(value)
    text = json.dumps(finite, ensure_ascii=False, allow_nan=False, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(finite, allow_nan=False, indent=indent)
    return text


def from_json(text: str | bytes) -> Any:
    """Return what a JSON text holds. Raises ValueError where it is none, or nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write all of it or nothing, even if the process dies on the way. Raises UserError where it cannot be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(
            f"cannot be written ({error.strerror})", where=str(path), mend="make room there, or name another place"
        ) from error


def refuse_unwritable_folder(path: str | Path) -> None:
    """Raises UserError where nothing could be written into a folder, which may yet have to be made, before the work
    that would fill it.
    """
    _refuse_dangling(path)
    place = Path(path).resolve()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise UserError("is a file, not a folder", where=str(place), mend="give another folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError("cannot be written to", where=str(place), mend="give another folder")


def _refuse_dangling(path: str | Path) -> None:
    """Raises UserError for a path that leads over a link to nothing."""
    for place in (Path(path), *Path(path).parents):
        if place.is_symlink() and not place.exists():
            raise UserError(
                f"is a link to nothing ({os.readlink(place)})",
                where=str(place),
                mend="make what it leads to, or remove it",
            )


def refuse_unwritable(path: str | None) -> None:
    """Raises UserError where a file could not be written, before the work that would fill it."""
    if path is not None:
        _refuse_dangling(path)
    if path is not None and Path(path).is_dir():
        raise UserError("is a folder, not a file", where=path, mend="give a file's name")
    if path is not None and not Path(path).resolve().parent.is_dir():
        raise UserError("its folder does not exist", where=path, mend="create it first")
    if path is not None and not os.access(Path(path).resolve().parent, os.W_OK):
        raise UserError("its folder cannot be written to", where=path, mend="give a file in another one")


def let_others_read(folder: Path) -> None:
    """Give weights the permissions that other files get: safetensors writes them for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.glob("*.safetensors"):
        with suppress(OSError):  # of a file system that knows no permissions
            path.chmod(0o666 & ~mask)
