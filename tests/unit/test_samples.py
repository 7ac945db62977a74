"""Sample files of HumanEval and EvalPlus: every layout, pass@k by hand, and what is refused."""

from __future__ import annotations

import gzip
import json
import math
import os
import shutil
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from remask.cli import main
from remask.errors import UserError
from remask.tasks import HumanEval, HumanEvalPlus, Mbpp, MbppPlus, Problem, get
from remask.tasks.samples import is_samples, ks, pass_at_k, read_samples

needs_bubblewrap = pytest.mark.skipif(
    shutil.which("bwrap") is None and os.environ.get("REMASK_REQUIRE_SANDBOX") != "1",
    reason="bubblewrap is not installed (apt-get install bubblewrap)",
)

HALF = {
    "task_id": "HumanEval/7",
    "prompt": "from math import floor\n\n\ndef half(x: int) -> int:\n    '''Half of x.'''\n",
    "entry_point": "half",
    "canonical_solution": "    return floor(x / 2)\n",
    "test": "def check(candidate):\n    assert candidate(4) == 2\n    assert candidate(5) == 2\n",
}
TWICE = HALF | {
    "task_id": "HumanEval/8",
    "prompt": "def twice(x: int) -> int:\n    '''Twice x.'''\n",
    "entry_point": "twice",
    "test": "def check(candidate):\n    assert candidate(4) == 8\n",
}
PLUS = {"base_input": [[4]], "plus_input": [[5]], "atol": 0, "contract": ""}
ADDED = {
    "task_id": 601,
    "prompt": "Add two numbers.",
    "code": "def add(a, b): return a + b",
    "test_imports": [],
    "test_list": ["assert add(2, 3) == 5"],
}
RIGHT = "    return x // 2\n"
WHOLE = "def half(x):\n    return x // 2\n"


def write(path: Path, rows: list[Any]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(json.dumps(rows) if path.suffix == ".json" else text)
    return path


@pytest.fixture
def problems(tmp_path: Path) -> str:
    return f"humaneval={write(tmp_path / 'HumanEval.jsonl', [HALF, TWICE])}"


def graded(capsys: pytest.CaptureFixture[str], tmp_path: Path, *words: str) -> dict[str, Any]:
    """The scores of the last block, as the record has them."""
    record = tmp_path / "grades.json"
    assert main(["grade", *words, "--allow-code-execution", "--json", str(record)]) == 0, capsys.readouterr().err
    scores: dict[str, Any] = json.loads(record.read_text())["scores"][-1]
    return scores


# ---- pass@k -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("right", range(6))
@pytest.mark.parametrize("k", range(1, 6))
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(right: int, k: int) -> None:
    draws = list(combinations([True] * right + [False] * (5 - right), k))
    assert pass_at_k(5, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_of_many_samples_by_hand() -> None:
    assert pass_at_k(200, 1, 100) == pytest.approx(0.5)
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert pass_at_k(2000, 5, 100) == pytest.approx(1 - math.comb(1995, 100) / math.comb(2000, 100))
    for samples, right, k in ((1, 0, 2), (2, 3, 1), (2, 0, 0)):
        with pytest.raises(ValueError, match="pass@"):
            pass_at_k(samples, right, k)


def test_the_k_that_every_problem_has_samples_for() -> None:
    assert ks([1]) == [1]
    assert ks([3, 5]) == [1, 3]
    assert ks([200, 100]) == [1, 10, 100]
    assert ks([20, 30]) == [1, 10, 20]


# ---- reading ------------------------------------------------------------------------------------------------------


def sources(task: HumanEval | Mbpp, path: Path, rows: list[dict[str, Any]], *, find: bool = False) -> list[str | None]:
    return [one.source for one in read_samples(task, path, [task.read(row) for row in rows], find=find)]


@pytest.mark.parametrize("name", ["s.jsonl", "s.jsonl.gz", "s.json"])
def test_completions_go_on_after_the_prompt_and_solutions_stand_alone(name: str, tmp_path: Path) -> None:
    rows = [
        {"task_id": "HumanEval/7", "completion": RIGHT},
        {"task_id": "HumanEval/7", "solution": WHOLE, "completion": "no"},
        {"task_id": "HumanEval/7", "solution": None, "completion": RIGHT, "_identifier": "x"},
        {"task_id": "HumanEval/7", "completion": f"```python\n{WHOLE}```"},
    ]
    path = write(tmp_path / name, rows)
    assert is_samples(path)
    fenced = f"{HALF['prompt']}```python\n{WHOLE}```"
    assert sources(HumanEval(), path, [HALF]) == [HALF["prompt"] + RIGHT, WHOLE, HALF["prompt"] + RIGHT, fenced]
    found = sources(HumanEval(), path, [HALF], find=True)
    assert found[3] == found[1] == HALF["prompt"] + "\n" + WHOLE.rstrip("\n")


def test_a_folder_of_programs(tmp_path: Path) -> None:
    for number, text in enumerate((WHOLE, "x = 1\n")):
        file = tmp_path / "HumanEval_7" / f"{number}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert sources(HumanEval(), tmp_path, [HALF]) == [WHOLE, "x = 1\n"]


@pytest.mark.parametrize("task_id", [601, "601", "Mbpp/601", "MBPP/601"])
def test_numbers_of_mbpp_are_read_however_they_are_written(task_id: Any, tmp_path: Path) -> None:
    code = "def add(a, b): return b + a"
    for kind in ("completion", "solution"):
        path = write(tmp_path / "s.jsonl", [{"task_id": task_id, kind: code}])
        assert sources(Mbpp(), path, [ADDED]) == [code]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"task_id": "HumanEval/9", "completion": "x"}, "line 2: humaneval has no problem 'HumanEval/9' among the 2"),
        ({"task_id": "Mbpp/7", "completion": "x"}, "line 2: humaneval has no problem 'Mbpp/7'"),
        ({"task_id": "HumanEval/7"}, "line 2: is no sample; a row has task_id and either completion"),
        ({"completion": "x"}, "line 2: is no sample; a row has task_id and either completion"),
        ({"task_id": "HumanEval/7", "completion": 3}, "line 2: its completion is a int, not text"),
        ([1], "line 2: is no sample; a row has task_id"),
    ],
)
def test_a_row_that_cannot_be_read_is_one_line(
    row: Any,
    said: str,
    problems: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("remask.sandbox.Sandbox.check", lambda self: None)
    path = write(tmp_path / "s.jsonl", [{"task_id": "HumanEval/7", "completion": RIGHT}, row])
    assert main(["grade", problems, str(path), "--allow-code-execution"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("task", "row", "said"),
    [
        ("humaneval", {"answer": "x"}, "line 1: is no stored answer; a row has task_id and either completion"),
        (
            "humaneval",
            {"question": "?", "generations": "x", "ground_truth": 1},
            "line 1: humaneval has no answers",
        ),
        ("sudoku", {"task_id": "HumanEval/7", "completion": "x"}, "line 1: is no stored answer; a row has question"),
        ("gsm8k", {"answer": "x"}, "or give a record of `remask eval`"),
    ],
)
def test_the_forms_that_a_task_reads_are_named(
    task: str, row: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remask.sandbox.Sandbox.check", lambda self: None)
    path = write(tmp_path / "s.jsonl", [row])
    assert main(["grade", task, str(path), "--allow-code-execution"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert ("completion" in error) == (task == "humaneval")


def test_what_is_no_samples(tmp_path: Path) -> None:
    assert not is_samples(tmp_path / "none.jsonl")
    assert not is_samples(write(tmp_path / "d1.jsonl", [{"question": "?"}]))
    (tmp_path / "record.json").write_text(json.dumps({"tasks": {}}))
    assert not is_samples(tmp_path / "record.json")
    with pytest.raises(UserError, match=r"HumanEval_0/0\.py"):
        sources(HumanEval(), tmp_path, [HALF])


def test_problems_are_given_with_samples_only(
    tmp_path: Path, problems: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"question": "?", "generations": r"\boxed{3}", "ground_truth": 3.0}]
    path = write(tmp_path / "a.jsonl", rows)
    assert main(["grade", f"gsm8k={path}", str(path)]) == 2
    assert "bring their problems along; give gsm8k alone" in capsys.readouterr().err
    assert main(["grade", "humaneval=none.jsonl", str(path)]) == 2
    assert "none.jsonl: no such file" in capsys.readouterr().err


def test_where_the_hub_is_out_of_reach_a_file_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise UserError("cannot be loaded", where="openai/openai_humaneval@test", mend="give a .jsonl file")

    monkeypatch.setattr("remask.sandbox.Sandbox.check", lambda self: None)
    monkeypatch.setattr("remask.tasks.base.read_problems", unreachable)
    path = write(tmp_path / "s.jsonl", [{"task_id": "HumanEval/7", "completion": RIGHT}])
    assert main(["grade", "humaneval", str(path), "--allow-code-execution"]) == 2
    assert "openai_humaneval@test: cannot be loaded; give the file that" in capsys.readouterr().err


# ---- grading ------------------------------------------------------------------------------------------------------


@needs_bubblewrap
def test_one_sample_a_problem(problems: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "s.jsonl.gz", [{"task_id": "HumanEval/7", "completion": RIGHT}])
    scores = graded(capsys, tmp_path, problems, str(path))
    assert scores["n"] == 1
    assert scores["metrics"]["pass@1"] == scores["metrics"]["accuracy"]
    assert (scores["metrics"]["pass@1"]["right"], scores["metrics"]["pass@1"]["mean"]) == (1, 1.0)
    assert scores["problems"] == {"with_samples": 1, "without": 1, "not_python": 0}
    printed = capsys.readouterr().out
    assert "pass@1 *" in printed
    assert "the 1 problems without a sample" in " ".join(printed.split())


@pytest.mark.slow
@needs_bubblewrap
def test_several_samples_a_problem(problems: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of half one of three is right, of twice two of two: pass@1 = (1/3 + 1)/2, pass@2 = (1 − 1/3 + 1)/2."""
    texts = [RIGHT, "    return x\n", f"```python\n{WHOLE}```"]
    rows = [{"task_id": "HumanEval/7", "completion": text} for text in texts]
    rows += [{"task_id": "HumanEval/8", "completion": f"    return {text}\n"} for text in ("2 * x", "x + x")]
    path = str(write(tmp_path / "s.jsonl", rows))
    scores = graded(capsys, tmp_path, problems, path)
    metrics = scores["metrics"]
    assert (metrics["accuracy"]["right"], metrics["accuracy"]["of"]) == (3, 5)
    assert metrics["accuracy"]["mean"] == pytest.approx(3 / 5)
    assert metrics["pass@1"]["mean"] == pytest.approx(2 / 3)
    assert metrics["pass@2"]["mean"] == pytest.approx(5 / 6)
    assert "pass@3" not in metrics
    assert scores["problems"] == {"with_samples": 2, "without": 0, "not_python": 1}
    assert "1 samples are not Python as they stand" in " ".join(capsys.readouterr().out.split())
    metrics = graded(capsys, tmp_path, problems, path, "--extract")["metrics"]
    assert metrics["accuracy"]["right"] == 4
    metrics = graded(capsys, tmp_path, problems, path, path)["metrics"]  # the same again, together
    assert (metrics["accuracy"]["of"], metrics["pass@1"]["mean"]) == (10, pytest.approx(2 / 3))


@needs_bubblewrap
def test_programs_are_run_as_they_stand(problems: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As HumanEval's and EvalPlus's own programs run them: a solution has nothing of the prompt's."""
    rows = [
        {"task_id": "HumanEval/7", "completion": "return x // 2\n"},  # its indentation is lost
        {"task_id": "HumanEval/7", "completion": f"    pass\n\n{WHOLE}"},
        {"task_id": "HumanEval/7", "solution": "def half(x):\n    return floor(x / 2)\n"},  # the prompt's import
        {"task_id": "HumanEval/7", "solution": f"{WHOLE}assert half(2) == 2\n"},
    ]
    scores = graded(capsys, tmp_path, problems, str(write(tmp_path / "s.jsonl", rows)))
    assert scores["metrics"]["accuracy"]["right"] == 1


@needs_bubblewrap
def test_every_code_benchmark_reads_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plus = {"task_id": "Mbpp/601", "prompt": '"""\nAdd.\nassert add(1, 2) == 3\n"""\n', "entry_point": "add"}
    plus |= PLUS | {"canonical_solution": "\ndef add(a, b=1): return a + b\n"}
    add = "def add(a, b=1): return b + a"
    for task, problem, samples in (
        (HumanEvalPlus, HALF | PLUS, [("HumanEval/7", "completion", RIGHT), ("HumanEval/7", "solution", WHOLE)]),
        (Mbpp, ADDED, [("Mbpp/601", "solution", add), (601, "completion", add)]),
        (MbppPlus, plus, [("Mbpp/601", "solution", add), ("Mbpp/601", "completion", add)]),
    ):
        given = write(tmp_path / "problems.jsonl", [problem])
        rows = [{"task_id": task_id, kind: text} for task_id, kind, text in samples]
        scores = graded(capsys, tmp_path, f"{task.name}={given}", str(write(tmp_path / "s.jsonl", rows)))
        assert scores["metrics"]["accuracy"]["right"] == 2, task.name
        assert scores["metrics"]["pass@2"]["mean"] == 1.0


@pytest.mark.slow
@pytest.mark.shared
@needs_bubblewrap
def test_published_solutions_pass_as_samples(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shared / "data" / "humaneval" / "HumanEval.jsonl.gz"
    with gzip.open(path, "rt") as file:
        rows = [json.loads(line) for line in file][::8]
    samples = [{"task_id": row["task_id"], "completion": row["canonical_solution"]} for row in rows]
    samples += [{"task_id": row["task_id"], "solution": row["prompt"] + row["canonical_solution"]} for row in rows]
    scores = graded(capsys, tmp_path, f"humaneval={path}", str(write(tmp_path / "s.jsonl", samples)))
    assert scores["metrics"]["accuracy"]["mean"] == scores["metrics"]["pass@2"]["mean"] == 1.0
    assert scores["problems"]["without"] == 164 - len(rows)


def test_the_problem_of_a_sample_is_the_data_sets(tmp_path: Path) -> None:
    (sample,) = read_samples(
        HumanEval(),
        write(tmp_path / "s.jsonl", [{"task_id": "HumanEval/7", "completion": RIGHT}]),
        [HumanEval().read(HALF)],
    )
    assert isinstance(sample.problem, Problem)
    assert sample.problem == get("humaneval").read(HALF)
    assert sample.where.endswith("s.jsonl, line 1")
