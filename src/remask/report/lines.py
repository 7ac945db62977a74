"""JSON lines as a run writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from remask.errors import UserError
from remask.files import from_json


def json_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return (line number, object) of each line; none where there is no file. Raises UserError naming file and line.

    A run still going may be in the middle of its last line, even of a character: that line is left out.
    """
    if not path.is_file():
        return []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=str(path), mend="check the path") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = from_json(line)
            if not isinstance(row, dict):
                raise ValueError("not an object")
        except ValueError as error:
            if number == len(lines):
                break
            raise UserError(f"is not JSON ({error})", where=f"{path}, line {number}", mend="remove the line") from error
        rows.append((number, row))
    return rows
