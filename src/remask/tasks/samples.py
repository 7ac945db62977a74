"""Sample files of code benchmarks, as HumanEval's and EvalPlus's own programs read them.

A row is `{"task_id", "completion"}`, which goes on after the problem's prompt, or `{"task_id", "solution"}`, a whole
program, with as many rows for a problem as there are samples. A folder in EvalPlus's layout (`HumanEval_0/0.py`) holds
whole programs. They are run as they stand, as those programs do; answers with words or fences around the code would
fail there too, unless the code is looked for (`find`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from remask.data.files import Unreadable, read_rows
from remask.errors import UserError
from remask.tasks.base import Problem
from remask.tasks.code import CodeTask
from remask.tasks.code_extraction import extract
from remask.tasks.stored import SAMPLE_ROWS, Stored

NUMBERED = re.compile(r"([A-Za-z]+)[/_](\d+)")
TEXTS = ("solution", "completion")
"""The columns that hold a program; EvalPlus takes the first where a row has both."""

COMMON_K = (1, 10, 100)
"""The k of pass@k that are reported where there are samples enough, as Chen et al. 2021 do."""


def is_samples(path: str | Path) -> bool:
    """Return whether a source holds samples: it is a folder, or a file whose first row has a task_id."""
    if Path(path).is_dir():
        return True
    if not Path(path).is_file() or (Path(path).suffix == ".json" and not _is_list(Path(path))):
        return False
    first = next(iter(read_rows(path)), None)
    return first is not None and isinstance(first[1], dict) and "task_id" in first[1]


def read_samples(task: CodeTask, path: str | Path, problems: Sequence[Problem], *, find: bool = False) -> list[Stored]:
    """Return every sample of a file or folder, with its problem and its program. With `find` the code is searched for
    in each.

    Raises UserError naming the row that cannot be read, or whose problem is not among `problems`.
    """
    known = {_number(task, problem.fields["task_id"]): problem for problem in problems}
    samples = []
    for where, task_id, kind, text in _folder(Path(path)) if Path(path).is_dir() else _rows(path):
        problem = known.get(_number(task, task_id))
        if problem is None:
            raise UserError(
                f"{task.name} has no problem {task_id!r} among the {len(known)} of its data set",
                where=where,
                mend=f"check the task, or give the samples' own problems: {task.name}=FILE",
            )
        samples.append(Stored(where, text, problem=problem, source=_source(task, problem, kind, text, find=find)))
    if not samples:
        raise UserError("holds no samples", where=str(path), mend=SAMPLE_ROWS)
    return samples


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Return the chance that of k samples, drawn from all of a problem's without putting back, one is right: 1 − C(n−c,
    k) / C(n, k), the unbiased estimate of Chen et al. 2021 (arXiv:2107.03374, equation 1).
    """
    if not 0 < k <= samples or not 0 <= right <= samples:
        raise ValueError(f"pass@{k} of {right} right among {samples} samples")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def ks(counts: Sequence[int]) -> list[int]:
    """Return the k for which every problem has samples enough: the usual ones, and the most there are."""
    least = min(counts)
    return sorted({k for k in COMMON_K if k <= least} | {least})


def _source(task: CodeTask, problem: Problem, kind: str, text: str, *, find: bool) -> str:
    if find:
        code = extract(text, *task.names(problem))
        return "" if code is None else task.source(problem, code)
    return text if kind == "solution" else task.continued(problem, text)


def _rows(path: str | Path) -> Iterator[tuple[str, Any, str, str]]:
    for where, row in read_rows(path):
        if isinstance(row, Unreadable):
            raise UserError(row.reason, where=where, mend="correct it there")
        given = [name for name in TEXTS if isinstance(row, dict) and row.get(name) is not None]
        if not given or row.get("task_id") is None:
            raise UserError("is no sample", where=where, mend=SAMPLE_ROWS)
        if not isinstance(row[given[0]], str):
            raise UserError(
                f"its {given[0]} is a {type(row[given[0]]).__name__}, not text", where=where, mend=SAMPLE_ROWS
            )
        yield where, row["task_id"], given[0], row[given[0]]


def _folder(path: Path) -> Iterator[tuple[str, Any, str, str]]:
    files = sorted(path.glob("*/*.py"))
    if not files:
        raise UserError("holds no samples", where=str(path), mend="a folder holds HumanEval_0/0.py, Mbpp_2/0.py, …")
    for file in files:
        try:
            yield str(file), file.parent.name, "solution", file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"not readable as UTF-8 text ({error})", where=str(file), mend="write it again as UTF-8"
            ) from None


def _number(task: CodeTask, task_id: Any) -> str:
    """A problem's number, however it is written (601, "Mbpp/601", "Mbpp_601"); of another benchmark, as it is."""
    named = NUMBERED.fullmatch(str(task_id))
    own = named is not None and task.name.startswith(named[1].lower())
    return named[2] if named is not None and own else str(task_id)


def _is_list(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1024).lstrip()[:1] == b"["
