"""Rows from files and the hub: JSON lines, JSON, CSV, Parquet, and data sets by id or folder. No row is passed over.

Each row comes with where it stands ("rows.jsonl, line 7"), for error messages.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remask.errors import UserError, first_line

FILE_KINDS = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class Unreadable:
    """A row that could not be parsed, and why: whoever reads decides whether that is an error or is counted."""

    reason: str


def read_rows(source: str | Path, *, split: str = "train", config: str | None = None) -> Iterator[tuple[str, Any]]:
    """(where, row) for every row of `source`. `config` is taken of a folder that has it.

    `source`: a .jsonl, .json (a list), .csv or .parquet file, the first three also gzipped; or a hub id or a folder in
    the hub's layout, written `id`, `id@split` or `id:config@split` (else `split`). Raises UserError naming the source.
    """
    path = Path(source)
    if path.is_dir():
        return _hub(str(source), config if config in _configs(str(source)) else None, split)
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix in (".jsonl", ".json", ".csv"):
        text = _text(path)
        return {".jsonl": _json_lines, ".json": _json, ".csv": _csv}[suffix](path, text)
    if suffix == ".parquet":
        return _parquet(path)
    if path.is_file():
        raise UserError(
            f"unknown kind of file {path.suffix!r}", where=str(source), mend=f"give one of {', '.join(FILE_KINDS)}"
        )
    name, _, named_split = str(source).partition("@")
    name, _, named_config = name.partition(":")
    return _hub(name, named_config or None, named_split or split)


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError("no such file", where=str(path)) from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"not readable as UTF-8 text ({error})", where=str(path)) from None


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                row = Unreadable(f"not JSON ({error})")
            yield f"{path}, line {number}", row


def _json(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error})", where=str(path)) from None
    if not isinstance(rows, list):
        raise UserError("a .json file of rows is a list", where=str(path), mend="or use .jsonl, one row a line")
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, 1))


def _csv(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    usual = csv.field_size_limit(len(text) + 1)  # 131,072 characters, which a reasoning trace exceeds
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise UserError(f"not readable as CSV ({error})", where=str(path)) from None
    finally:
        csv.field_size_limit(usual)
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, 1))


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    try:
        table = parquet.read_table(path)
    except FileNotFoundError:
        raise UserError("no such file", where=str(path)) from None
    except (OSError, ArrowException) as error:
        raise UserError(f"not readable as Parquet ({error})", where=str(path)) from None
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(table.to_pylist(), 1))


def _configs(folder: str) -> list[str]:
    import datasets

    try:
        return datasets.get_dataset_config_names(folder)
    except Exception:  # loading it will say what is wrong with it
        return []


def _hub(name: str, config: str | None, split: str) -> Iterator[tuple[str, Any]]:
    import datasets

    source = f"{name}{f':{config}' if config else ''}@{split}"
    try:
        rows = datasets.load_dataset(name, config, split=split)
    except Exception as error:
        raise UserError(
            f"neither a file nor a data set that can be loaded ({first_line(error)})",
            where=source,
            mend="give a .jsonl or .parquet file, a folder in the hub's layout, or a hub id (owner/name)",
        ) from error
    yield from ((f"{source}, row {number}", row) for number, row in enumerate(rows, 1))
