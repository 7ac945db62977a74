"""Rows of one's own as a task: what is compared, by which rule, and which rows can be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from remask.errors import UserError
from remask.tasks import get
from remask.tasks.benchmark import Asking, Benchmark
from remask.tasks.match import final, last_number, normalised, whole_number


def graded(task: str, reference: str, completion: str) -> bool:
    one = get(task)
    grade = one.grade(one.read({"question": "?", "answer": reference}), completion)
    assert grade.score == float(grade.correct)
    return grade.correct


@pytest.mark.parametrize(
    ("reference", "right", "wrong"),
    [
        (
            "Paris",
            ["Paris", "paris.", " **Paris** ", "<answer>PARIS</answer>", r"\boxed{Paris}"],
            ["Paris, France", ""],
        ),
        ("72", ["72", "72.0", "$72", "It is 72.", "7 + 65 = 72", "#### 72"], ["73", "72 or 73", "seventy-two", ""]),
        ("1,234", ["1234", "1,234.00"], ["1", "234"]),
        ("50 %", ["50", "50%"], ["0.5"]),
        ("-2.5", ["-2.5", "−2.5", "-5/2"], ["2.5"]),
        ("She sold 48/2 = 24. #### 24", ["24", "so 24", "#### 24"], ["48"]),
        ("a  b\nc", ["A b c"], ["abc"]),
        ("1 2 3", ["1 2 3"], ["3", "123"]),
        ("ﬁne ½", ["fine 1⁄2"], ["fine"]),
        ("yes", ["<think>no</think>yes", "<think>no\nno</think>\n<answer>Yes</answer>"], ["<think>yes</think>no"]),
    ],
)
def test_match(reference: str, right: list[str], wrong: list[str]) -> None:
    assert [graded("match", reference, text) for text in right] == [True] * len(right)
    assert [graded("match", reference, text) for text in wrong] == [False] * len(wrong)


def test_exact_numeric_and_regex() -> None:
    assert graded("match_exact", "Paris", " Paris\n")
    assert not graded("match_exact", "Paris", "paris")
    assert graded("match_numeric", "about 72 km", "I think 72")
    assert not graded("match_numeric", "about 72 km", "I think")
    assert graded("match_regex", r"(?i)\bparis\b", "The capital is Paris, of course")
    assert not graded("match_regex", r"^paris$", "Paris")
    assert not graded("match_regex", r"(a+)+$", "a" * 60 + "b")  # which would search for ever


def test_what_is_compared_by_hand() -> None:
    assert final("<think>a</think> x <answer>1</answer> <answer> 2") == "2"
    assert final(r"so \boxed{3}") == "3"
    assert final("a #### b #### c ") == "c"
    assert normalised("  “Hello,  World!” ") == "hello, world"
    assert last_number("from 1 to 1,000.5e2") == 100050.0
    assert last_number("3/4") == 0.75
    assert last_number("1/0") is last_number("none.") is last_number("-") is None
    assert whole_number("$1,000") == 1000.0
    assert whole_number("72 apples") is None


@pytest.mark.parametrize(
    ("task", "row", "said"),
    [
        ("match", {"question": "?"}, "no columns Remask knows"),
        ("match", {"question": "?", "answer": "…!"[1:]}, "its answer is empty"),
        ("match_numeric", {"question": "?", "answer": "none"}, "its answer holds no number"),
        ("match_regex", {"question": "?", "answer": "("}, "no regular expression"),
        ("match", {"prompt": "?", "completion": "x", "label": False}, "an answer that is not wanted"),
    ],
)
def test_rows_that_cannot_be_compared_are_named(task: str, row: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "?", "answer": "4"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=rf"rows\.jsonl, line 2: .*{said}"):
        Benchmark.parse(f"{task}={path}", count=None, split="test", seed=0)


def test_conversations_are_asked_whole(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": [*turns, {"role": "assistant", "content": "4"}]}) + "\n")
    benchmark = Benchmark.parse(f"match={path}", count=None, split="test", seed=0)
    (problem,) = benchmark.problems
    assert Asking("compact").turns(benchmark.task, problem) == turns
    assert Asking("compact", system="x").turns(benchmark.task, problem) == turns
    assert Asking("compact", template="Say {answer}").turns(benchmark.task, problem) == [
        {"role": "user", "content": "Say 4"}
    ]
    path.write_text(json.dumps({"question": "2+2?", "answer": "4"}) + "\n")
    (problem,) = Benchmark.parse(f"match={path}", count=None, split="test", seed=0).problems
    assert Asking("compact", system="x").turns(benchmark.task, problem)[0] == {"role": "system", "content": "x"}


OWN = """
from remask.tasks import Grade, Problem, Task

class Reverse(Task):
    name = "reverse"
    def read(self, row):
        return Problem(self.name, row["word"], {"word": row["word"]})
    def prompt(self, problem, style):
        return "reverse " + problem.fields["word"]
    def grade(self, problem, completion):
        right = completion.strip() == problem.fields["word"][::-1]
        return Grade(right, float(right), completion.strip())

class Half(Task):
    name = "half"

class Taken(Reverse):
    name = "sudoku"
"""


def test_a_task_of_ones_own(tmp_path: Path) -> None:
    file, rows = tmp_path / "mine.py", tmp_path / "rows.jsonl"
    file.write_text(OWN)
    rows.write_text('{"word": "abc"}\n')
    benchmark = Benchmark.parse(f"{file}:Reverse={rows}", count=None, split="test", seed=0)
    assert benchmark.task.name == "reverse"
    assert benchmark.task.grade(benchmark.problems[0], "cba").correct
    before = benchmark.source
    file.write_text(OWN + "\n")
    assert Benchmark.parse(f"{file}:Reverse={rows}", count=None, split="test", seed=0).source != before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mine.py:None", "no task None in it.*Reverse, Half, Taken"),
        ("mine.py:Half", "Half lacks grade, prompt, read"),
        ("mine.py:Taken", "is that of a task of Remask's"),
        ("gone.py:Task", "no such file"),
        ("broken.py:Task", r"cannot be imported \(ZeroDivisionError: division by zero\)"),
    ],
)
def test_what_is_no_task_is_named(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(UserError, match=said):
        get(str(tmp_path / name))
