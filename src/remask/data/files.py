"""Rows from files and the hub: JSON lines, JSON, CSV, Parquet, and data sets by id or folder.

No row is passed over, and no value: a key given twice, a row with more fields than its table has columns and a quote
that is not closed are errors.

Each row comes with where it stands ("rows.jsonl, line 7"), for error messages.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from itertools import chain
from pathlib import Path
from typing import Any

from remask.errors import UserError, first_line

FILE_KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
TEXT_KINDS = FILE_KINDS[:-1]
DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Unreadable:
    """A row that could not be parsed, and why: whoever reads decides whether that is an error or is counted."""

    reason: str


def read_rows(source: str | Path, *, split: str = "train", config: str | None = None) -> Iterator[tuple[str, Any]]:
    """Yield (where, row) for every row of `source`. `config` is taken of a folder that has it.

    `source`: a .jsonl, .json (a list), .csv, .tsv or .parquet file, all but the last also gzipped; a pattern of such
    files (`part-*.jsonl`, in the order of their names); a folder in the hub's layout or a hub id, written `id`,
    `id@split` or `id:config@split` (else `split`); or several of these, separated by commas. Raises UserError naming
    the source.
    """
    return chain.from_iterable(_one(place, split, config) for place in places(str(source)))


def places(source: str) -> list[str]:
    """Return the files, folders and hub ids that a source names. Raises UserError for a pattern that no file
    matches.
    """
    if Path(source).exists():
        return [source]
    found: list[str] = []
    for part in source.split(","):
        if Path(part).exists() or not any(sign in part for sign in "*?["):
            found.append(part)
            continue
        matches = sorted(match for match in glob(part, recursive=True) if Path(match).is_file())
        if not matches:
            raise UserError("no file matches this pattern", where=part, mend="quote it, and check its folder")
        found += matches
    return found


def is_there(source: str) -> bool:
    """Return whether a source names files or folders, and all of them exist."""
    return all(Path(place).exists() for place in places(source))


def _one(source: str, split: str, config: str | None) -> Iterator[tuple[str, Any]]:
    path = Path(source)
    if path.is_dir():
        return _hub(source, config if config in _configs(source) else None, split)
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix in TEXT_KINDS:
        text = _text(path)
        if suffix in DELIMITERS:
            return _table(path, text, DELIMITERS[suffix])
        return _json_lines(path, text) if suffix == ".jsonl" else _json(path, text)
    if suffix == ".parquet":
        return _parquet(path)
    if path.is_file():
        raise UserError(
            f"unknown kind of file {path.suffix!r}", where=source, mend=f"give one of {', '.join(FILE_KINDS)}"
        )
    name, _, named_split = source.partition("@")
    name, _, named_config = name.partition(":")
    return _hub(name, named_config or None, named_split or split)


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError("no such file", where=str(path), mend="check its path") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(
            f"not readable as UTF-8 text ({error})", where=str(path), mend="write it again as UTF-8"
        ) from None


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line, object_pairs_hook=_mapping)
            except (ValueError, RecursionError) as error:
                row = Unreadable(f"not JSON ({error})")
            yield f"{path}, line {number}", row


def _json(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(text, object_pairs_hook=_mapping)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error})", where=str(path), mend="correct it there") from None
    if not isinstance(rows, list):
        raise UserError("a .json file of rows is a list", where=str(path), mend="or use .jsonl, one row a line")
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, 1))


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON's own reader would keep the last of two values and say nothing."""
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} is given twice")
    return mapping


def _table(path: Path, text: str, delimiter: str) -> Iterator[tuple[str, Any]]:
    """The rows of a table whose first row names its columns; empty lines are none. Fields are quoted as RFC 4180 says.

    A row whose fields are not as many as the columns cannot be read. A quote that nothing closes takes all that follows
    into one field, so it is an error of the file.
    """
    usual = csv.field_size_limit(len(text) + 1)  # 131,072 characters, which a reasoning trace exceeds
    try:
        rows = list(_fields(path, text, delimiter))
    finally:
        csv.field_size_limit(usual)
    if not rows:
        return
    header = rows[0][1]
    if isinstance(header, Unreadable):
        raise UserError(f"the names of the columns are {header.reason}", where=str(path), mend="correct the first line")
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice or "" in header:
        what = f"two columns are named {twice[0]!r}" if twice else "a column has no name"
        raise UserError(what, where=str(path), mend="give each column a name of its own in the first line")
    for number, (line, fields) in enumerate(rows[1:], 1):
        where = f"{path}, row {number} (line {line})"
        if isinstance(fields, Unreadable):
            yield where, fields
        elif len(fields) != len(header):
            yield (
                where,
                Unreadable(
                    f"the row has {len(fields)} fields and there are {len(header)} columns; put a field with a "
                    f"{'tab' if delimiter != ',' else 'comma'} in it between double quotes"
                ),
            )
        else:
            yield where, dict(zip(header, fields, strict=True))


def _fields(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str] | Unreadable]]:
    """(the line it begins on, the fields) of each row."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise UserError(
                    f"a double quote in the row that begins on line {line} is not closed",
                    where=str(path),
                    mend="close it, or write a quote inside a field twice",
                ) from None
            yield line, Unreadable(f"not readable as CSV ({error})")
            continue
        if fields:
            yield line, fields


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    try:
        table = parquet.read_table(path)
    except FileNotFoundError:
        raise UserError("no such file", where=str(path), mend="check its path") from None
    except (OSError, ArrowException) as error:
        raise UserError(
            f"not readable as Parquet ({error})", where=str(path), mend="write it again, or give JSON lines"
        ) from None
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
            f"neither a file nor a data set that can be loaded ({_cause(error)})",
            where=source,
            mend="give a .jsonl or .parquet file, a folder in the hub's layout, or a hub id (owner/name)",
        ) from error
    yield from ((f"{source}, row {number}", row) for number, row in enumerate(rows, 1))


def _cause(error: BaseException) -> str:
    """What an error says, and what the one that caused it says: that one often names the file."""
    first, last = error, error
    while last.__cause__ is not None:
        last = last.__cause__
    said = [first_line(first), first_line(last)]
    return said[0] if said[0] == said[1] else f"{said[0]}: {said[1]}"
