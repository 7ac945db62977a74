"""Published grading: each rule by hand, texts made to break it, the published counts; and stored answers regraded."""

from __future__ import annotations

import json
import os
import pickle
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remask.cli import main
from remask.errors import UserError
from remask.tasks import TASKS, Countdown, Grade, Gsm8k, Math500, Problem, Sudoku, Task, get
from remask.tasks.base import fill_template
from remask.tasks.countdown import read_expression
from remask.tasks.extraction import boxes, first_answer, format_score, is_wordless, last_boxed, with_stop
from remask.tasks.gsm8k import read_number
from remask.tasks.math500 import is_equivalent, normal_form, read_answer
from remask.tasks.stored import problem_of, published_count, read_stored, regrade
from remask.tasks.sudoku import published_grid
from remask.tasks.verifier import Verifier

END = "<|eot_id|><|endoftext|>"
GRID = "1234341221434321"
DUCKS = Gsm8k().from_stored("How many ducks?", 18.0)
HALF = Problem("math500", "math500:half", {"question": "Half of one?", "answer": r"\frac{1}{2}"})
THREE = Countdown().problem([3, 5, 7], 26)
PUZZLE = Sudoku().from_stored("Solve the following Sudoku puzzle: 0034341221434321\n", GRID)


class Mute(Verifier):
    """Verifies nothing, at once."""

    def agrees(self, reference: str, completion: str) -> bool:
        return False


@pytest.fixture(scope="module")
def math500() -> Math500:
    """One worker for all tests."""
    return Math500()


def published_only() -> Math500:
    task = Math500()
    task.verifier = Mute()
    return task


# ---- extraction -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("", []),
        (r"\boxed{ 18 } and \boxed{}", ["18", ""]),
        (r"\boxed{\frac{1}{2}}", [r"\frac{1"]),  # to the next brace
        ("\\boxed{1\n8} \\boxed{3}", ["3"]),  # on its line
        (r"\boxed{\boxed{3}}", [r"\boxed{3"]),
        (r"\boxed 3 \boxed{4", []),
    ],
)
def test_boxes_by_hand(text: str, inside: list[str]) -> None:
    assert list(boxes(text)) == inside


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"\boxed{1} then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        ("no box", "no box"),
        ("", ""),
        (r"\boxed{1} then \boxed{2", None),
        (r"\boxed", None),
        (r"\boxed 3$ and \boxed{4}", "3"),
        (r"\fbox{5}", r"\fbox{5}"),
        (r"\boxed\frac{1}{2}", r"\boxed\frac{1}"),
        (r"\boxed}{3}", None),  # never back at depth 0 by a closing brace
        (r"\boxed{" + "{" * 100_000 + "}" * 100_001, "{" * 100_000 + "}" * 100_000),
    ],
)
def test_last_boxed_by_hand(text: str, inside: str | None) -> None:
    assert last_boxed(text) == inside


def test_answer_tags_by_hand() -> None:
    assert first_answer("<answer> 1 </answer><answer>2</answer>") == "1"
    assert first_answer("<answer>1<answer>2</answer>") == "1<answer>2"
    assert first_answer("<answer>1") is None
    assert first_answer("</answer>1<answer>") is None


def test_format_is_a_closed_box_or_closed_tags() -> None:
    assert format_score(r"so \boxed{3}") == format_score("<answer></answer>") == 0.1
    assert format_score(r"so \boxed{3") == format_score("<answer>3") == format_score("3") == 0


def test_answers_without_words() -> None:
    assert is_wordless("20-7=13 13*2=26\n<answer>(20-7)*2</answer>")
    assert is_wordless("<reasoning>3*7=21</reasoning><answer>the words of an answer" + END)
    assert not is_wordless("so <answer>3</answer>")
    assert not is_wordless("<answer>3</answer> it is")
    assert not is_wordless("3*7+5")


# ---- GSM8K ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"\boxed{18}", "18"),
        (r"\boxed{\$18.50 a day}", "18.50"),
        (r"\boxed{12 = 4 \times 3}", "12"),  # the first number of a box
        (r"\boxed{1,234}", "1"),  # a comma ends it
        (r"\boxed{-3}", "-3"),
        (r"\boxed{1e3}", "1e3"),
        (r"\boxed{inf}", "inf"),
        (r"\boxed{18.}", "18."),
        (r"\boxed{...} \boxed{x} \boxed{7} \boxed{8}", "7"),  # the first box with a number
        (r"\boxed{x}<answer>5 or 6</answer>", "6"),  # the last number of the tags
        ("<answer>none</answer><answer>6</answer>", None),  # of the first tags
        ("<answer>6", None),
        ("it is 18", None),
        (r"\boxed{\frac{36}{2}}", "36"),
        (r"\boxed{١٨}", "١٨"),
        ("", None),
    ],
)
def test_gsm8k_reads_a_number(completion: str, answer: str | None) -> None:
    assert read_number(completion) == answer
    assert Gsm8k().grade(DUCKS, completion).answer == answer


@pytest.mark.parametrize(
    ("completion", "correct", "score"),
    [
        (r"<answer>\boxed{18.0}</answer>" + END, True, 1.0),
        (r"\boxed{١٨}", True, 1.0),
        (r"\boxed{17}", False, 0.1),
        ("<answer>eighteen</answer>", False, 0.1),
        ("18", False, 0.0),
        (r"\boxed{nan}", False, 0.1),
        (r"\boxed{" + "9" * 5000 + "}", False, 0.1),
    ],
)
def test_gsm8k_by_hand(completion: str, correct: bool, score: float) -> None:
    grade = Gsm8k().grade(DUCKS, completion)
    assert (grade.correct, grade.score) == (correct, score)


def test_gsm8k_reads_rows_and_ground_truths() -> None:
    row = {"question": "How many?", "answer": "1,000 and 234.\n#### 1,234"}
    assert Gsm8k().read(row).fields == {"question": "How many?", "answer": "1234"}
    assert Gsm8k().read(row).key == Gsm8k().from_stored("How  many?\n", 1234.0).key
    assert Gsm8k().from_stored("?", 0.5).fields["answer"] == "0.5"
    unknown = Gsm8k().from_stored("?", None)  # as d1 has it where the answer is negative
    assert not Gsm8k().grade(unknown, r"\boxed{-10}").correct
    for wrong in ("18", True, [18], float("nan"), float("inf")):
        with pytest.raises((TypeError, ValueError)):
            Gsm8k().from_stored("?", wrong)  # type: ignore[arg-type]


# ---- MATH -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        (r"\tfrac12", r"\frac{1}{2}"),
        (r"\dfrac{1}{2}", r"\frac{1}{2}"),
        (r"\frac1{72}", r"\frac{1}{72}"),
        (r"\frac{72}1", r"\frac{72}1"),
        (r"\frac1", r"\frac1"),
        (r"\frac12 + \frac3", r"\frac12+\frac3"),  # one of them is not whole: none is braced
        ("1/2", r"\frac{1}{2}"),
        ("01/2", "01/2"),
        ("1/2/3", "1/2/3"),
        ("0.5", r"\frac{1}{2}"),
        (".5", r"\frac{1}{2}"),
        (r"{.5} and .25", "{0.5}and0.25"),
        (r"\sqrt3", r"\sqrt{3}"),
        (r"2\sqrt{3}", r"2\sqrt{3}"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
        (r"90^\circ", "90"),
        (r"90^{\circ}", "90"),
        (r"\$36", "36"),
        (r"50\%", "50"),
        (r"3 \text{ cm}", "3"),
        (r"\text{cm}", r"\text{cm}"),
        ("x = 5", "5"),
        ("abc=5", "abc=5"),
        ("a=b=5", "a=b=5"),
        ("1,\\! 000\n", "1,000"),
        ("", ""),
    ],
)
def test_normal_form_by_hand(answer: str, normal: str) -> None:
    assert normal_form(answer) == normal


@pytest.mark.parametrize(
    "answer", [r"\frac", r"a\frac\frac12", r"\sqrt", r"\sqrt\sqrt2", "a/b", r"1\text{ a}\text{ b}"]
)
def test_what_has_no_normal_form_is_compared_as_written(answer: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        normal_form(answer)
    assert is_equivalent(answer, answer)
    assert not is_equivalent(answer, answer + " ")
    assert is_equivalent("3" + " ", "3")


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"\boxed{1} <answer>\boxed{\frac{1}{2}}</answer>", r"\frac{1}{2}"),
        (r"<answer>\frac{1}{2}</answer>", r"<answer>\frac{1}{2}</answer>"),  # no box: the whole text, as published
        (r"<answer>\frac{1}{2}</answer> \boxed{3", r"\frac{1}{2}"),
        (r"<answer>\frac{1}{2}</answer> \boxed{}", r"\frac{1}{2}"),
        (r"\boxed{", None),
        (r"\boxed{}", ""),
    ],
)
def test_math_reads_an_answer(completion: str, answer: str | None) -> None:
    assert read_answer(completion) == answer


@pytest.mark.parametrize(
    ("completion", "correct", "score", "verified"),
    [
        (r"<answer>\boxed{\frac12}</answer>" + END, True, 1.0, 1.0),
        (r"<answer>\boxed{1/2}</answer>", True, 1.0, 1.0),
        (r"\boxed{\frac{2}{4}}", False, 0.1, 1.0),
        (r"<answer>\frac{1}{2}</answer>" + END, False, 0.1, 1.0),
        (r"\boxed{2}", False, 0.1, 0.0),
        ("I do not know", False, 0.0, 0.0),
        ("", False, 0.0, 0.0),
    ],
)
def test_math_by_hand(math500: Math500, completion: str, correct: bool, score: float, verified: float) -> None:
    grade = math500.grade(HALF, completion)
    assert (grade.correct, grade.score, grade.metrics) == (correct, score, {"math_verify": verified})


def test_math_reads_rows() -> None:
    row = {
        "problem": "Half of one?",
        "solution": "…",
        "answer": "0.5",
        "subject": "Algebra",
        "level": 1,
        "unique_id": "x",
    }
    problem = Math500().read(row)
    assert problem.fields == {"question": "Half of one?", "answer": "0.5", "subject": "Algebra", "level": 1}
    assert problem.key == Math500().from_stored("Half of one?", "0.5").key
    with pytest.raises(TypeError):
        Math500().from_stored("Half of one?", 0.5)  # type: ignore[arg-type]


# ---- the second opinion -----------------------------------------------------------------------------------------

ENDLESS = r"\boxed{9^{9^{9^{9}}}}"


def test_an_endless_computation_is_not_verified_and_the_next_is() -> None:
    verifier = Verifier()
    assert verifier.agrees("2", r"\boxed{2}")
    started = time.perf_counter()
    assert not verifier.agrees("2", ENDLESS)
    assert time.perf_counter() - started < 5  # 0.6 s of processor time, on a machine that may be busy
    assert verifier.agrees("2", r"\boxed{2}")


def test_a_worker_that_waits_is_given_up() -> None:
    verifier = Verifier(patience=0.5)
    assert verifier.agrees("2", r"\boxed{2}")
    assert verifier._worker is not None
    os.kill(verifier._worker.pid, signal.SIGSTOP)
    assert not verifier.agrees("2", r"\boxed{2}")
    assert verifier.agrees("2", r"\boxed{2}")


def test_a_worker_that_died_is_replaced() -> None:
    verifier = Verifier()
    assert verifier.agrees("2", r"\boxed{2}")
    assert verifier._worker is not None
    first = verifier._worker
    first.kill()
    first.wait()
    assert verifier.agrees("2", r"\boxed{2}")
    del verifier


def test_an_interrupted_question_leaves_no_answer_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = Verifier()
    assert verifier.agrees("2", r"\boxed{2}")
    worker = verifier._worker
    assert worker is not None
    assert worker.stdin is not None
    written = worker.stdin.write

    def interrupted(data: bytes) -> int:
        written(data)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(worker.stdin, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            verifier.agrees("2", r"\boxed{2}")
    assert not verifier.agrees("2", r"\boxed{3}")


def test_a_copy_has_a_worker_of_its_own() -> None:
    verifier = Verifier(seconds=2.0)
    assert verifier.agrees("2", r"\boxed{2}")
    copy = pickle.loads(pickle.dumps(verifier))
    assert copy.seconds == 2.0
    assert copy._worker is None


def test_without_the_library_grading_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing library must not look like wrong answers."""
    monkeypatch.setattr("remask.tasks.worker.sys.executable", "true")
    with pytest.raises(UserError, match="math-verify"):
        Verifier().agrees("2", r"\boxed{2}")


# ---- Sudoku -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "grid"),
    [
        (f"<answer>\n{GRID}\n</answer>{END}", GRID),
        (f"<answer>1111 ```\n{GRID[:8]} {GRID[8:]}\n``` 2222</answer>", GRID),  # a fence before all else
        ("<answer>``` ``` 1234 ```</answer>", "``````1234```"),  # the first fence is blank: the next rule
        (f"<answer>12 34</answer><answer>{GRID}</answer>", "1234"),  # the first answer
        (f"<answer>{GRID[:5]}<|eot_id|>{GRID}", GRID[:5]),  # ends at a stop token
        (f"<answer>{GRID}", GRID),  # decoded: its end was a stop token
        (f"<answer></answer> the grid {END}", "thegrid"),  # what follows an empty answer
        (f"<answer></answer>{END}{GRID}</answer>", GRID),  # 16 digits before a closing tag
        (f"{GRID} </answer>", GRID),
        (f"1111222233334444 or {GRID}", "1111222233334444"),  # the first that stands alone
        (f"x{GRID}", ""),
        ("", ""),
        ("<answer>", ""),
    ],
)
def test_published_grid_by_hand(completion: str, grid: str) -> None:
    assert published_grid(completion) == grid


def test_a_text_without_stop_tokens_was_decoded() -> None:
    assert with_stop("a") == "a<|eot_id|>"
    assert with_stop("a<|endoftext|>b") == "a<|endoftext|>b"


def test_cells_are_counted_over_the_whole_file() -> None:
    """1 of 2 and 3 of 3 cells are 4 of 5, which is not the mean of 1/2 and 1."""
    other = Sudoku().from_stored("0004341221434321", GRID)
    grades = Sudoku().grade_all([PUZZLE, other], ["<answer>1134</answer>", f"<answer>{GRID}</answer>"])
    assert [grade.metrics["cells"] for grade in grades] == [0.5, 1.0]
    assert published_count(Sudoku(), [PUZZLE, other], grades) == (4, 5)


# ---- Countdown --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "expression"),
    [
        (r"2 + 2 = 4 so \boxed{3 * 7 + 5}", "3 * 7 + 5"),
        (r"<answer>\boxed{3 \times 7 + 5 = 26}</answer>", "3 * 7 + 5"),
        (r"\boxed{3 * 7 + 5.}", "3 * 7 + 5"),
        (r"\boxed{}<answer>3*7+5</answer>", None),  # an empty box is an answer
        (r"so \boxed{3<answer> 3*7+5 </answer>", "3*7+5"),  # one that never closes is none
        ("so 3 * 7 + 5 = 26 <answer>5</answer>", "3 * 7 + 5"),  # no box: the first equation in the text
        ("so 3*7 =21, 21+5=26", "3*7"),
        ("so x=3 and == 4 and 3*7+5 =y", None),
        ("so <answer>3*7+5</answer>", None),
        ("3*7=21 21+5=26\n<answer>3*7+5</answer>", "3*7+5"),  # no words: the tag
    ],
)
def test_countdown_reads_an_expression(completion: str, expression: str | None) -> None:
    assert read_expression(completion) == expression
    assert read_expression(completion + END) == expression


def test_the_target_may_be_missed_by_a_hair() -> None:
    """1/333 − 1/334 is 0.000008991, within 10⁻⁵ of 0."""
    near = Countdown().problem([1, 333, 1, 334], 0)
    assert Countdown().grade(near, r"\boxed{1/333 - 1/334}").correct
    assert not Countdown().grade(Countdown().problem([1, 300, 1, 301], 0), r"\boxed{1/300 - 1/301}").correct


def test_countdown_of_four_and_five_numbers(tmp_path: Path) -> None:
    for count in (4, 5):
        task = get(f"countdown{count}")
        assert isinstance(task, Countdown)
        for problem in task.generate(5, split="test", seed=0):
            assert len(problem.fields["numbers"]) == count
            assert problem.task == f"countdown{count}"
            assert problem.key == Countdown().problem(problem.fields["numbers"], problem.fields["target"]).key
    path = tmp_path / "four.jsonl"
    path.write_text('{"input": "1,2,3,4,10", "output": "1+2=3,3+3=6,6+4=10"}\n')
    (problem,) = get("countdown").load(path)
    assert problem.fields == {"numbers": [1, 2, 3, 4], "target": 10}
    assert get("countdown").grade(problem, r"\boxed{1+2+3+4}").correct


# ---- anything at all --------------------------------------------------------------------------------------------

LONG = 100_000
NASTY = [
    r"\boxed{" * (LONG // 7),
    r"\boxed{" + "{" * LONG + "}" * (LONG + 1),
    r"\boxed{" + "9" * 5000 + "}",
    r"\boxed " * (LONG // 7),
    r"\boxed",
    r"\boxed}" * 1000,
    r"\fbox{",
    "9" * LONG,
    "1" * 16 + " " * LONG,
    "<answer>" * (LONG // 8),
    "</answer>" * (LONG // 9),
    "<answer>```" + " " * LONG,
    "<answer>" + "```1" * (LONG // 4),
    "<answer>```" + "1 " * LONG + "``",
    " " * LONG + "=" + " " * LONG,
    "1 " * LONG,
    "=1" * LONG,
    "=" * LONG,
    "<|" * LONG,
    "<|a" * LONG,
    "</a" * LONG,
    "-" * LONG,
    "١" * LONG,
    r"\boxed{" + r"\frac" * 20_000 + "}",
    r"\boxed{" + r"\sqrt" * 20_000 + "}",
    r"\boxed{" + r"\text{ }" * 20_000 + "}",
    r"\boxed{1/" + "9" * 5000 + "}",
    r"\boxed{" + "(" * LONG + "}",
    "\\boxed{\x00}<answer>\ud800</answer>",
    "\\boxed{}\n" * 10_000,
]


@pytest.mark.parametrize("completion", NASTY, ids=lambda text: ascii(text[:12]))
def test_any_text_is_graded_fast(completion: str) -> None:
    for task, problem in ((Gsm8k(), DUCKS), (published_only(), HALF), (Countdown(), THREE), (Sudoku(), PUZZLE)):
        started = time.process_time()
        grade = task.grade(problem, completion)
        assert time.process_time() - started < 1, task.name
        assert not grade.correct
        assert 0 <= grade.score < 1


@pytest.mark.slow
@pytest.mark.parametrize("completion", [*NASTY[:4], ENDLESS, "$x=$" * 5000, r"\boxed{" + "x^" * 3000 + "2}"])
def test_any_text_gets_a_second_opinion(math500: Math500, completion: str) -> None:
    started = time.perf_counter()
    assert math500.grade(HALF, completion).metrics == {"math_verify": 0.0}
    assert time.perf_counter() - started < 5


PIECES = [
    r"\boxed{",
    r"\boxed ",
    r"\fbox{",
    "}",
    "{",
    "<answer>",
    "</answer>",
    "<|eot_id|>",
    "```",
    " ",
    "\n",
    "$",
    ".",
]
PIECES += [
    "3*7+5",
    "26",
    "=",
    "1,234",
    "-3",
    "18",
    "1e3",
    r"\frac",
    r"\frac12",
    r"\sqrt",
    r"\text{ ",
    "1/2",
    "a/b",
    "0.5",
]
TEXTS = st.one_of(st.text(max_size=100), st.lists(st.sampled_from(PIECES), max_size=12).map("".join))


@given(text=TEXTS)
@settings(deadline=None, max_examples=300)
def test_grading_never_raises(text: str) -> None:
    for task, problem in ((Gsm8k(), DUCKS), (published_only(), HALF), (Countdown(), THREE), (Sudoku(), PUZZLE)):
        grade = task.grade(problem, text)
        assert (grade.score == 1) == grade.correct
        assert set(grade.metrics) == set(task.metrics)


@given(text=TEXTS)
@settings(deadline=None, max_examples=40)
def test_a_second_opinion_never_raises(math500: Math500, text: str) -> None:
    assert math500.grade(HALF, text).metrics["math_verify"] in (0.0, 1.0)


@given(text=TEXTS)
@settings(deadline=None, max_examples=100)
def test_every_answer_is_equivalent_to_itself(text: str) -> None:
    assert is_equivalent(text, text)


# ---- prompts ----------------------------------------------------------------------------------------------------


def test_prompts_ask_for_tags_and_a_box() -> None:
    for task, problem in ((Gsm8k(), DUCKS), (Math500(), HALF)):
        prompt = task.prompt(problem, "instruct")
        assert prompt == task.prompt(problem, "compact")
        assert problem.fields["question"] in prompt
        assert r"<answer>\boxed{}</answer>" in prompt
        assert fill_template("Q: {question}", problem) == f"Q: {problem.fields['question']}"
    assert r"\boxed{}" in Countdown().prompt(THREE, "instruct")


# ---- the published figures --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answers(shared: Path) -> dict[str, Path]:
    folder = shared / "data" / "llada_generations"
    return {name: folder / f"{name}_128_64.jsonl" for name in ("gsm8k", "math500", "countdown", "sudoku")}


@pytest.fixture(scope="module")
def math_grades(answers: dict[str, Path], math500: Math500) -> list[Grade]:
    return regrade(math500, read_stored(answers["math500"]))


@pytest.mark.shared
@pytest.mark.parametrize(("name", "right", "of"), [("gsm8k", 783, 1130), ("countdown", 53, 256), ("sudoku", 240, 2048)])
def test_published_counts(answers: dict[str, Path], name: str, right: int, of: int) -> None:
    task, stored = get(name), read_stored(answers[name])
    problems = [problem_of(task, one) for one in stored]
    assert published_count(task, problems, regrade(task, stored)) == (right, of)


@pytest.mark.slow
@pytest.mark.shared
def test_published_count_of_math(math_grades: list[Grade]) -> None:
    assert sum(grade.correct for grade in math_grades) == 130


@pytest.mark.slow
@pytest.mark.shared
def test_math_verify_finds_what_strings_hide(math_grades: list[Grade]) -> None:
    """It takes back none of the 130 and adds 18: equal values written otherwise, and answers without a whole box."""
    table = Counter((grade.correct, bool(grade.metrics["math_verify"])) for grade in math_grades)
    assert table == {(True, True): 130, (False, True): 18, (False, False): 352}


@pytest.mark.shared
def test_every_gsm8k_reference_is_right_and_its_neighbour_wrong(shared: Path) -> None:
    task = Gsm8k()
    for name, size in (("test", 1319), ("train", 7473)):
        problems = task.load(shared / "data" / "gsm8k" / f"{name}.jsonl")
        assert len({problem.key for problem in problems}) == size
        for problem in problems:
            answer = problem.fields["answer"]
            assert task.grade(problem, rf"<answer>\boxed{{{answer}}}</answer>").correct
            assert not task.grade(problem, rf"<answer>\boxed{{{float(answer) + 1}}}</answer>").correct


@pytest.mark.shared
def test_every_math_reference_is_right_and_another_wrong(shared: Path, math500: Math500) -> None:
    problems = math500.load(shared / "data" / "math500" / "test.jsonl")
    assert len({problem.key for problem in problems}) == 500
    for problem in problems:
        right = math500.grade(problem, rf"<answer>\boxed{{{problem.fields['answer']}}}</answer>")
        assert right.correct
        assert right.metrics == {"math_verify": 1.0}
    silent = published_only()
    for problem in problems:
        assert not silent.grade(problem, rf"\boxed{{7 + {problem.fields['answer']}}}").correct


@pytest.mark.shared
def test_stored_questions_are_those_of_the_data_sets(shared: Path, answers: dict[str, Path]) -> None:
    for name, file in (("gsm8k", "gsm8k"), ("math500", "math500")):
        task = get(name)
        published = {p.key: p for p in task.load(shared / "data" / file / "test.jsonl")}
        for stored in read_stored(answers[name]):
            problem = problem_of(task, stored)
            known = published[problem.key].fields["answer"]
            assert problem.fields["answer"] == known or (stored.ground_truth is None and known.startswith("-"))


# ---- stored answers and the command -----------------------------------------------------------------------------

ROWS = [
    {"question": "How many?", "generations": rf"\boxed{{18}}{END}", "ground_truth": 18.0},
    {"question": "How many more?", "generations": "none", "ground_truth": 3.0},
]


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content) if path.suffix == ".json" else "".join(json.dumps(r) + "\n" for r in content))
    return path


def record(task: Task, problem: Problem, completion: str) -> dict[str, Any]:
    """The part of an evaluation's record that is read."""
    answer = {"id": problem.key, "reference": json.dumps(problem.fields), "completion": completion}
    return {"kind": "remask.evaluation", "tasks": {task.name: {"problems": [answer]}}}


def test_every_layout_gives_the_same_answers(tmp_path: Path) -> None:
    lines = read_stored(write(tmp_path / "a.jsonl", ROWS))
    file = read_stored(write(tmp_path / "a.json", {"generations": ROWS, "metrics": {"wall_time": 1}}))
    assert [(one.question, one.completion, one.ground_truth) for one in lines] == [
        (one.question, one.completion, one.ground_truth) for one in file
    ]
    assert [one.where.rpartition(", ")[2] for one in lines + file] == ["line 1", "line 2", "row 1", "row 2"]
    assert [grade.correct for grade in regrade(Gsm8k(), lines)] == [True, False]


@pytest.mark.parametrize("name", ["gsm8k", "countdown", "countdown4", "sudoku"])
def test_a_record_is_graded_by_its_own_problems(name: str, tmp_path: Path) -> None:
    task = get(name)
    problem = {"gsm8k": DUCKS, "countdown": THREE, "sudoku": PUZZLE}.get(name)
    if problem is None:
        assert isinstance(task, Countdown)
        problem = task.problem([1, 2, 3, 4], 10)
    text = {"gsm8k": r"\boxed{18}", "countdown": r"\boxed{3*7+5}", "sudoku": f"<answer>{GRID}"}.get(
        name, r"\boxed{1+2+3+4}"
    )
    (stored,) = read_stored(write(tmp_path / "x.json", record(task, problem, text)))
    assert stored.problem == problem
    assert regrade(task, [stored])[0].correct
    with pytest.raises(UserError, match=f"a problem of {name}"):
        problem_of(get("math500"), stored)


def test_grade_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = write(tmp_path / "a.jsonl", ROWS), write(tmp_path / "b.json", {"generations": ROWS[:1]})
    assert main(["grade", "gsm8k", str(first), str(second), "--json", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr().out
    assert "66.7 %" in printed
    assert "2/3" in printed
    written = json.loads((tmp_path / "out.json").read_text())
    assert (written["task"], written["published_metric"]) == ("gsm8k", "accuracy")
    assert [(block["n"], block["metrics"]["accuracy"]["right"]) for block in written["scores"]] == [
        (2, 1),
        (1, 1),
        (3, 2),
    ]
    assert [answer["correct"] for answer in written["answers"]] == [True, False, True]
    assert written["answers"][0]["where"].endswith("a.jsonl, line 1")


def test_grade_counts_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": "0034341221434321", "generations": "<answer>1134", "ground_truth": GRID}]
    assert main(["grade", "sudoku", str(write(tmp_path / "a.jsonl", rows))]) == 0
    assert "1/2" in capsys.readouterr().out


def test_of_a_record_with_several_tasks_one_is_graded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = record(Gsm8k(), DUCKS, r"\boxed{18}")
    both["tasks"] |= record(Countdown(), THREE, "none")["tasks"]
    path = write(tmp_path / "x.json", both)
    assert main(["grade", "gsm8k", str(path)]) == 0
    assert "1/1" in capsys.readouterr().out
    assert main(["grade", "sudoku", str(path)]) == 2
    assert "holds no answers to sudoku" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([{"question": "?", "generations": r"\boxed{1}"}], "line 1: is no stored answer"),
        ([{**ROWS[0], "generations": None}], "line 1: question and generations are not texts"),
        ([ROWS[0], {**ROWS[0], "ground_truth": "18"}], "line 2: not an answer to a problem of gsm8k"),
        ([{**ROWS[0], "ground_truth": 10**400}], "line 1: not an answer to a problem of gsm8k"),
        ([[1]], "line 1: is no stored answer"),
        ([], "holds no answers"),
    ],
)
def test_bad_rows_are_one_line_and_exit_code_2(
    content: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["grade", "gsm8k", str(write(tmp_path / "a.jsonl", content))]) == 2
    error = capsys.readouterr().err
    assert error.startswith("remask grade: ")
    assert error.count("\n") == 1
    assert said in error


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "1",
        "{}",
        "[" * 9999,
        '{"generations": 3}',
        '{"tasks": {}}',
        '{"tasks": {"gsm8k": {}}}',
        '{"tasks": {"gsm8k": {"problems": [{}]}}}',
        '{"tasks": {"gsm8k": {"problems": [{"id": 1, "reference": "{}", "completion": "x"}]}}}',
    ],
)
def test_bad_files_are_one_line_and_exit_code_2(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    assert main(["grade", "gsm8k", str(path)]) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert error.count("\n") == 1


def test_bad_words_are_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write(tmp_path / "a.jsonl", ROWS))
    for words, said in (
        ([], "no task given"),
        (["gsm8k"], "no files given"),
        (["chess", path], "unknown task 'chess'"),
        (["gsm8k", str(tmp_path / "none.jsonl")], "no such file"),
        (["gsm8k", str(tmp_path / "none.json")], "no such file"),
        (["gsm8k", path, "--json", str(tmp_path)], "is a folder"),
        (["gsm8k", path, "--colour"], "colour"),
    ):
        assert main(["grade", *words]) == 2
        assert said in capsys.readouterr().err


def test_every_task_has_a_name_of_its_own() -> None:
    assert [get(name).name for name in TASKS] == list(TASKS)
