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
from remask.files import from_json
from remask.models.gguf import gguf_file, gguf_parts

MODEL_FILES = (
    *("*.safetensors", "*.bin", "*config.json"),
    *("*token*.json", "vocab.*", "merges.txt", "*.model", "*.jinja"),
)
"""The files that decide a checkpoint's answers: weights and configs, tokenizer and chat template."""

Key = tuple[str, str]
"""The key of an answer: its task and its problem."""


@dataclass(frozen=True)
class Written:
    """An answer as it was written. `tokens` were revealed by the model; `ended` says that a stop token was among them;
    `confidence` is a `calibration.Sureness`; `row_forwards` is 0 where an engine or an older journal does not say it.
    """

    task: str
    id: str
    text: str
    tokens: int
    ended: bool
    forwards: float
    seconds: float
    strip: dict[str, Any] | None = None
    confidence: dict[str, Any] | None = None
    row_forwards: float = 0.0

    @property
    def key(self) -> Key:
        """Return the answer's task and problem."""
        return self.task, self.id


class Journal:
    """A journal keeps the answers of one evaluation. Without a path they are kept in memory alone."""

    def __init__(self, record: Path | None, fingerprint: str, *, rank: int = 0, overwrite: bool = False) -> None:
        self.record, self.fingerprint, self.rank, self.overwrite = record, fingerprint, rank, overwrite
        self.answers: dict[Key, Written] = {}
        self.begun = False
        if record is not None:
            self.read()
            self.begun = self._mend(self._own)

    @property
    def _own(self) -> Path:
        assert self.record is not None
        return self.record.with_name(f"{self.record.name}.answers-{self.rank}.jsonl")

    def _files(self) -> list[Path]:
        if self.record is None:
            return []
        return sorted(self.record.parent.glob(f"{glob.escape(self.record.name)}.answers-*.jsonl"))

    def read(self) -> None:
        """Read what all processes have written so far.

        Raises UserError for answers of another evaluation; with `overwrite` they are passed over.
        """
        for path in self._files():
            lines = _whole(path).decode("utf-8", "replace").split("\n")[:-1]
            if not lines:
                continue  # its first line is being written
            if not self._is_ours(lines[0]):
                if self.overwrite:
                    continue
                raise UserError(
                    "unfinished answers of another evaluation (other model, tasks or settings) are there",
                    where=str(path),
                    mend="repeat that command to finish it, give another --json, or discard them with --overwrite",
                )
            for line in lines[1:]:
                try:
                    answer = Written(**from_json(line))
                except (ValueError, TypeError):  # a damaged line: its problem is asked again
                    continue
                self.answers[answer.key] = answer

    def _is_ours(self, header: str) -> bool:
        try:
            begun = from_json(header)
        except ValueError:
            return False
        return isinstance(begun, dict) and begun.get("evaluation") == self.fingerprint

    def _mend(self, path: Path) -> bool:
        """Cut off a half-written last line, so that the next one starts on its own. False: nothing there to go on."""
        if not path.exists():
            return False
        whole = _whole(path)
        if not whole or not self._is_ours(whole.split(b"\n", 1)[0].decode("utf-8", "replace")):
            return False
        os.truncate(path, len(whole))
        return True

    def add(self, answers: list[Written]) -> None:
        """Add answers, and write them to this process's file."""
        self.answers |= {answer.key: answer for answer in answers}
        if self.record is not None:
            head = [] if self.begun else [{"evaluation": self.fingerprint}]
            lines = [*head, *map(asdict, answers)]
            self._write("a" if self.begun else "w", "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines))
            self.begun = True

    def _write(self, mode: str, text: str) -> None:
        try:
            with self._own.open(mode, encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"answers cannot be written ({error.strerror})",
                where=str(self._own),
                mend="make room there or give another --json; the same command goes on from the answers that are there",
            ) from None

    def wait_for(self, keys: set[Key], *, every: float = 0.2) -> None:
        """Wait until the other processes have written what is missing of `keys`. Their launcher ends all if
        one dies.
        """
        while keys - set(self.answers):
            time.sleep(every)
            self.read()

    def remove(self) -> None:
        """Delete the journal's files."""
        for path in self._files():
            path.unlink(missing_ok=True)


def _whole(path: Path) -> bytes:
    """The lines of a file. A last one without its newline, perhaps cut inside a character, is being written or torn."""
    data = path.read_bytes()
    return data[: data.rfind(b"\n") + 1]


def fingerprint(parts: Any) -> str:
    """Return one short name for everything that decides the answers."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def weights_stamp(folder: str) -> list[tuple[str, int, int]]:
    """Return names, sizes and times of the files of a local checkpoint: a folder, or a GGUF file and what lies beside
    it.

    Another training in the same folder is another model. What else people keep there (records of evaluations, logs)
    makes no difference.
    """
    path = Path(folder)
    if not path.exists():
        return []
    stored = gguf_file(path)
    beside, patterns = (path, MODEL_FILES) if path.is_dir() else (path.parent, MODEL_FILES[2:])
    files = {file for pattern in patterns for file in beside.glob(pattern)} | set(gguf_parts(stored) if stored else ())
    stats = [(file.name, file.stat()) for file in sorted(files)]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
