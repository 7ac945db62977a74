"""Writing files so that a process that dies leaves the old one or the new one, never half of it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from remask.errors import UserError


def write_atomically(path: Path, content: str | bytes) -> None:
    """All of it or nothing, even if the process dies on the way. Raises UserError where it cannot be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"cannot be written ({error.strerror})", where=str(path)) from error
