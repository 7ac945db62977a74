"""Answers as they come, a line each, so that an interrupted evaluation loses none of them.

Beside the record `x.json` stand `x.json.answers-0.jsonl`, … : one file a process, each begun by a line that says which
evaluation it belongs to. They go when the record is written.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from remask.errors import UserError

Key = tuple[str, str]
"""Task and problem."""


@dataclass(frozen=True)
class Written:
    """One answer. `tokens` were revealed by the model; `ended` says that a stop token was among them."""

    task: str
    id: str
    text: str
    tokens: int
    ended: bool
    forwards: float
    seconds: float
    strip: dict[str, Any] | None = None

    @property
    def key(self) -> Key:
        return self.task, self.id


class Journal:
    """The answers of one evaluation. Without a path they are kept in memory alone."""

    def __init__(self, record: Path | None, fingerprint: str, *, rank: int = 0, overwrite: bool = False) -> None:
        self.record, self.fingerprint, self.rank, self.overwrite = record, fingerprint, rank, overwrite
        self.answers: dict[Key, Written] = {}
        if record is None:
            return
        self.read()
        if not self._mend(self._own):
            with self._own.open("w") as file:
                file.write(json.dumps({"evaluation": fingerprint}) + "\n")

    @property
    def _own(self) -> Path:
        assert self.record is not None
        return self.record.with_name(f"{self.record.name}.answers-{self.rank}.jsonl")

    def _files(self) -> list[Path]:
        if self.record is None:
            return []
        return sorted(self.record.parent.glob(f"{glob.escape(self.record.name)}.answers-*.jsonl"))

    def read(self) -> None:
        """Take in what all processes have written so far.

        Raises UserError for answers of another evaluation; with `overwrite` they are passed over.
        """
        for path in self._files():
            lines = path.read_text(encoding="utf-8").split("\n")
            if len(lines) < 2:
                continue  # its first line is being written
            if not self._is_ours(lines[0]):
                if self.overwrite:
                    continue
                raise UserError(
                    "unfinished answers of another evaluation (other model, tasks or settings) are there",
                    where=str(path),
                    mend="repeat that command to finish it, give another --json, or discard them with --overwrite",
                )
            for line in lines[1:-1]:  # a last line without its newline was cut off
                answer = Written(**json.loads(line))
                self.answers[answer.key] = answer

    def _is_ours(self, header: str) -> bool:
        return json.loads(header).get("evaluation") == self.fingerprint

    def _mend(self, path: Path) -> bool:
        """Cut off a half-written last line, so that the next one starts on its own. False: nothing there to go on."""
        if not path.exists():
            return False
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if not whole or not self._is_ours(whole.split(b"\n", 1)[0].decode()):
            return False
        if len(whole) < len(data):
            path.write_bytes(whole)
        return True

    def add(self, answers: list[Written]) -> None:
        self.answers |= {answer.key: answer for answer in answers}
        if self.record is not None:
            with self._own.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers)
                file.flush()
                os.fsync(file.fileno())

    def wait_for(self, keys: set[Key], *, every: float = 0.2) -> None:
        """Until the other processes have written what is missing of `keys`. (Their launcher ends all if one dies.)"""
        while keys - set(self.answers):
            time.sleep(every)
            self.read()

    def remove(self) -> None:
        for path in self._files():
            path.unlink(missing_ok=True)


def fingerprint(parts: Any) -> str:
    """One short name for everything that decides the answers."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def weights_stamp(folder: str) -> list[tuple[str, int, int]]:
    """Names, sizes and times of a local checkpoint's files: another training in the same folder is another model."""
    path = Path(folder)
    if not path.is_dir():
        return []
    names = [file for pattern in ("*.safetensors", "*.bin", "*.json") for file in path.glob(pattern)]
    stats = [(file.name, file.stat()) for file in sorted(names)]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats if name != "run.json"]
