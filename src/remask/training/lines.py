"""Files of JSON lines that grow with a run, and of which a checkpoint remembers what they held when it was written."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from remask.errors import UserError
from remask.files import as_json, write_atomically


class Lines:
    """A file of JSON lines that grows with a run. A run that goes on from a checkpoint cuts off what came after it,
    which it will write again.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.bytes = path, 0
        self._digest = hashlib.blake2b(digest_size=16)

    @property
    def name(self) -> str:
        """Return the file's name."""
        return self.path.name

    def append(self, values: Iterable[dict[str, Any]]) -> None:
        """Add a line for each value. Raises UserError where they cannot be written; the file then ends as it did."""
        added = "".join(as_json(each) + "\n" for each in values).encode()
        try:
            with self.path.open("ab") as handle:
                handle.write(added)
        except OSError as error:
            self._cut()
            raise UserError(
                f"cannot be written ({error.strerror})",
                where=str(self.path),
                mend="make room there; --resume auto then goes on from the newest checkpoint",
            ) from error
        self._count(added)

    def mark(self) -> dict[str, Any]:
        """Write the file to the disk, then return how far it goes and a digest of it."""
        if self.path.exists():
            with self.path.open("rb") as handle:
                os.fsync(handle.fileno())
        return {"bytes": self.bytes, "blake2b": self._digest.hexdigest()}

    def check(self, mark: dict[str, Any]) -> None:
        """Raises UserError where the file exists and no longer begins with what it held at the mark."""
        if self.path.exists() and _digest(self._beginning(mark)).hexdigest() != mark["blake2b"]:
            raise UserError(
                "is not what it was when the checkpoint was written",
                where=str(self.path),
                mend="bring it back, or delete it to go on without what it said of the steps before",
            )

    def go_back(self, mark: dict[str, Any] | None) -> None:
        """Cut the file off at the mark; without one it begins empty."""
        begins = b""
        if mark is not None and self.path.exists():
            self.check(mark)
            begins = self._beginning(mark)
        elif mark is not None and mark["bytes"]:
            print(f"{self.path} is gone: it begins anew after the checkpoint's step", file=sys.stderr)
        write_atomically(self.path, begins)
        self.bytes, self._digest = 0, _digest()
        self._count(begins)

    def _beginning(self, mark: dict[str, Any]) -> bytes:
        with self.path.open("rb") as handle:
            return handle.read(mark["bytes"])

    def _count(self, added: bytes) -> None:
        self.bytes += len(added)
        self._digest.update(added)

    def _cut(self) -> None:
        """Leave no half of a line behind."""
        try:
            os.truncate(self.path, self.bytes)
        except OSError:
            return


def _digest(content: bytes = b"") -> Any:
    return hashlib.blake2b(content, digest_size=16)
