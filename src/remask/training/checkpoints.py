"""Checkpoints one can trust: a manifest is written last; one without it, or unlike it, is not resumed from."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from remask.errors import UserError
from remask.files import from_json, let_others_read, write_atomically

MANIFEST = "remask_manifest.json"


def digest_of_file(path: Path) -> str:
    """Return a digest of a file's content."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as handle:
        while chunk := handle.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def seal(folder: Path) -> None:
    """Write the manifest: size and digest of every file of a finished checkpoint."""
    let_others_read(folder)
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "blake2b": digest_of_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    write_atomically(folder / MANIFEST, json.dumps({"files": files}, indent=1))


def fault(folder: Path) -> str | None:
    """Return what is wrong with a sealed checkpoint, or None."""
    try:
        files = dict(from_json((folder / MANIFEST).read_text())["files"])
    except FileNotFoundError:
        return "it was never finished"
    except (ValueError, KeyError, TypeError, OSError) as error:
        return f"its manifest cannot be read ({error})"
    if not all(isinstance(entry, dict) and {"bytes", "blake2b"} <= entry.keys() for entry in files.values()):
        return "its manifest was altered"
    for name, entry in files.items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}"
        if digest_of_file(path) != entry["blake2b"]:
            return f"{name} was altered"
    return None


def step_of(folder: Path) -> int:
    """Return the step that a checkpoint folder's name says; −1 where it says none."""
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoint folders of a run, oldest first."""
    return sorted((p for p in run.glob("checkpoint-*") if p.is_dir() and step_of(p) >= 0), key=step_of)


def refuse_files(run: Path) -> None:
    """Raises UserError for a file where a checkpoint's folder would be."""
    for path in sorted(run.glob("checkpoint-*")):
        if step_of(path) >= 0 and not path.is_dir():
            raise UserError("is a file, where a checkpoint will be", where=str(path), mend="move it elsewhere")


def find(run: Path, resume: str) -> Path | None:
    """Return the checkpoint to resume from: the one named, or with `auto` the newest (None where there is none yet).

    A checkpoint that was being written when the process died is passed over with a note. One that was finished and is
    no longer what it was is refused: UserError, offering the newest good one.
    """
    if resume != "auto":
        folder = Path(resume)
        if not folder.is_dir():
            raise UserError("no such checkpoint", where=resume, mend=_offer(run, exclude=folder))
        wrong = fault(folder)
        if wrong is not None:
            raise UserError(f"cannot resume: {wrong}", where=resume, mend=_offer(run, exclude=folder))
        return folder
    for folder in reversed(checkpoints(run)):
        if not (folder / MANIFEST).exists():
            print(f"{folder} was never finished; looking at the one before it", file=sys.stderr)
            continue
        wrong = fault(folder)
        if wrong is not None:
            raise UserError(f"cannot resume: {wrong}", where=str(folder), mend=_offer(run, exclude=folder))
        return folder
    return None


def _offer(run: Path, *, exclude: Path) -> str:
    for folder in reversed(checkpoints(run)):
        if folder.resolve() != exclude.resolve() and fault(folder) is None:
            return f"the newest good one is {folder}: --resume {folder}"
    return "there is no other good checkpoint; --overwrite starts anew"
