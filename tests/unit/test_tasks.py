"""Sudoku and Countdown: grading by hand, grading of anything at all, generators, splits, and the published files."""

from __future__ import annotations

import itertools
import random
import re
import shutil
import warnings
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from remask.errors import UserError
from remask.tasks import TASKS, Countdown, GeneratedTask, Problem, Sudoku, get
from remask.tasks.base import answer_text
from remask.tasks.countdown import evaluate, read_expression
from remask.tasks.generator import SPLITS, digest, published_digests, split_of
from remask.tasks.sudoku import candidates, deductions, is_valid, read_grid, solutions

SOLUTION = "1234341221434321"
PUZZLE = Problem("sudoku", "sudoku:by hand", {"puzzle": "0034341221434321", "solution": SOLUTION})
# Swapping rows' first two digits keeps every rule: this puzzle has two completions, SOLUTION and TWIN.
LOOSE = Problem("sudoku", "sudoku:loose", {"puzzle": "0034340000434321", "solution": SOLUTION})
THREE = Problem("countdown", "countdown:3,5,7->26", {"numbers": [3, 5, 7], "target": 26})
GENERATED = [name for name, task in TASKS.items() if isinstance(task(), GeneratedTask)]
MALFORMED = [
    "",
    "<answer>",
    "<answer></answer>",
    "</answer><answer>",
    "<answer>\x00</answer>",
    "<answer>١٢٣٤٣٤١٢٢١٤٣٤٣٢١</answer>",
    "<answer>¹²³⁴³⁴¹²²¹⁴³⁴³²¹</answer>",
    "<answer>" + "1" * 15 + "</answer>",
    "<answer>" + "1" * 17 + "</answer>",
    "<answer>" + "0" * 16 + "</answer>",
    "<answer>" + "5" * 16 + "</answer>",
    "1" * 1_000_000,
    "<answer>" + "(" * 300 + ")" * 300 + "</answer>",
    "<answer>" + "(" * 199 + "1" + ")" * 199 + "</answer>",
    "<answer>" + "-" * 390 + "1</answer>",
    "<answer>" + "1" * 300_000 + "</answer>",
    "<answer>" + "9*" * 199 + "9</answer>",
    "<answer>9**9**9</answer>",
    "<answer>__import__('os')</answer>",
    "<answer>[].append(1)</answer>",
    "<answer>lambda: 26</answer>",
    "<answer>1/0</answer>",
    "<answer>1 if 1 else 1</answer>",
    "<answer>3+\n5*7</answer>",
    "<answer>\\boxed{</answer>",
    "<answer>\ud800</answer>",
]


# ---- Sudoku ---------------------------------------------------------------------------------------------------


def test_sudoku_helpers_by_hand() -> None:
    assert is_valid(SOLUTION)
    assert not is_valid("1" + SOLUTION[1:-1] + "2")
    assert candidates("0034341221434321", 0) == "1"
    assert deductions("0034341221434321") == [0, 1]
    assert solutions("0034341221434321") == [SOLUTION]
    assert len(solutions("0" * 16, limit=1000)) == 288  # the number of 4×4 Sudoku grids
    assert solutions("1100" + "0" * 12) == []


@pytest.mark.parametrize(
    ("completion", "cells"),
    [
        (f"<answer>{SOLUTION}</answer>", 1.0),
        ("a1=1 a2=2\n<answer>1234 3412 2143 4321</answer>", 1.0),
        ("<answer>1234\n3412\n2143\n4321", 1.0),
        (f"The grid is {SOLUTION}.", 1.0),
        # What the published rule makes of these: the bars are cells, the first answer and the first grid count.
        ("<answer>1|2|3|4 3|4|1|2 2|1|4|3 4|3|2|1</answer> and more", 0.5),
        (f"<answer>none</answer> no, <answer>{SOLUTION}</answer>", 0.0),
        (f"First 1111222233334444, then {SOLUTION}", 0.5),
    ],
)
def test_sudoku_reads_an_answer(completion: str, cells: float) -> None:
    grade = Sudoku().grade(PUZZLE, completion)
    assert grade.correct
    assert grade.score == 1
    assert grade.metrics == {"cells": cells}


def test_any_valid_completion_counts() -> None:
    other = Problem("sudoku", "", {"puzzle": "1200340021434321".replace("2143", "0000"), "solution": SOLUTION})
    found = solutions(other.fields["puzzle"], limit=20)
    assert len(found) > 1
    for grid in found:
        grade = Sudoku().grade(other, f"<answer>{grid}</answer>")
        assert grade.correct
        assert grade.score == 1
        assert (grade.metrics["cells"] == 1) == (grid == SOLUTION)


def test_a_valid_grid_that_changes_the_givens_is_wrong() -> None:
    swapped = SOLUTION.translate(str.maketrans("1234", "2143"))
    assert is_valid(swapped)
    grade = Sudoku().grade(PUZZLE, f"<answer>{swapped}</answer>")
    assert not grade.correct
    assert grade.score == 0


def test_sudoku_cells_by_hand() -> None:
    """Four of six empty cells as stored."""
    grade = Sudoku().grade(LOOSE, "<answer>1134 3444 4443 4321</answer>")
    assert LOOSE.fields["puzzle"].count("0") == 6
    # places 0, 1, 6, 7, 8, 9 hold 1 2 1 2 2 1 in the solution and 1 1 4 4 4 4 here
    assert grade.metrics["cells"] == pytest.approx(1 / 6)
    assert grade.score == pytest.approx(1 / 6)
    assert not grade.correct


def test_all_cells_right_but_a_given_wrong_is_not_a_full_score() -> None:
    grade = Sudoku().grade(PUZZLE, "<answer>1244 3412 2143 4321</answer>")
    assert not grade.correct
    assert grade.metrics["cells"] == 1
    assert grade.score == 0.99


def test_a_short_answer_scores_the_cells_it_has() -> None:
    assert Sudoku().grade(PUZZLE, "<answer>12").metrics["cells"] == 1
    assert Sudoku().grade(PUZZLE, "<answer>1").metrics["cells"] == 0.5


def test_digits_of_a_longer_run_are_no_grid() -> None:
    assert read_grid(f"5{SOLUTION}") is None
    assert read_grid("no digits") is None


# ---- Countdown ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "value", "numbers"),
    [
        ("(1/3)*3", Fraction(1), [1, 3, 3]),
        ("1/3+1/6", Fraction(1, 2), [1, 3, 1, 6]),
        ("-(2-5)*4", Fraction(12), [2, 5, 4]),
        ("2+3*4", Fraction(14), [2, 3, 4]),
    ],
)
def test_arithmetic_is_exact(expression: str, value: Fraction, numbers: list[int]) -> None:
    assert evaluate(expression) == (value, numbers)


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os')",
        "().__class__",
        "9**9**9",
        "1<<9999",
        "7//2",
        "7%2",
        "~1",
        "True+1",
        "1.5*2",
        "1j",
        "'a'*3",
        "a",
        "1/0",
        "1/(2-2)",
        "(1",
        "",
        "3 5",
        "0x3+5",
        "5_0",
        "1e1",
        "1if 1else 1",
        r"'\d'",
        "f(3)",
        "1,2",
        "(" * 199 + "1" + ")" * 198,
        "1+" * 300 + "1",
        "-" * 390,
        "1\x00",
        "١+٢",
    ],
)
def test_what_is_no_arithmetic_is_a_value_error(expression: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        assert evaluate(expression) is None  # reached only where nothing is raised
    assert not isinstance(caught.value, UserError)


@pytest.mark.parametrize("expression", ["1if 1else 1", r"'\d'", "3(5)", "3 is 3"])
def test_odd_answers_print_no_warnings(expression: str) -> None:
    """Python's parser warns of odd code; what a model writes is no code of ours."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert not Countdown().grade(THREE, f"<answer>{expression}</answer>").correct
    assert not caught


@pytest.mark.parametrize(
    ("completion", "correct", "score"),
    [
        ("<answer>3*7+5</answer>", True, 1.0),
        ("3*7=21 21+5=26\n<answer>(3*7)+5", True, 1.0),
        (r"thinking \boxed{(3*7)+5}", True, 1.0),
        ("thinking 3*7+5 = 26", True, 1.0),  # without a box, the first equation in the text
        ("thinking <answer>(3*7)+5", False, 0.1),  # not in a box, as published
        ("<answer>3*7+5 = 26</answer>", True, 1.0),
        (r"<answer>\boxed{3 \times 7 + 5}</answer>", True, 1.0),
        ("<answer>3 × 7 + 5</answer>", True, 1.0),
        ("<answer>3*5+7</answer>", False, 0.1),  # the right numbers, 22
        ("<answer>26</answer>", False, 0.0),
        ("<answer>3*7+5+5-5</answer>", False, 0.0),  # 5 used three times
        ("<answer>3*7</answer>", False, 0.0),
        ("<answer>2*7+12</answer>", False, 0.0),  # 26 of other numbers
        ("<answer>37-11</answer>", False, 0.0),
        ("3*7+5", True, 1.0),  # neither box nor tag: the whole text, as published
        (" (3*7) + 5.\n", True, 1.0),
        ("It is 3*7+5", False, 0.0),  # which holds nothing else
        ("3*5+7", False, 0.1),
    ],
)
def test_countdown_by_hand(completion: str, correct: bool, score: float) -> None:
    grade = Countdown().grade(THREE, completion)
    assert grade.correct == correct
    assert grade.score == score
    assert grade.metrics == {"valid": float(score > 0)}


def test_each_number_is_used_as_often_as_given() -> None:
    pair = Problem("countdown", "", {"numbers": [4, 4, 2], "target": 10})
    assert Countdown().grade(pair, "<answer>4+4+2</answer>").correct
    assert not Countdown().grade(pair, "<answer>4*2+2</answer>").correct


def test_fractions_on_the_way_count() -> None:
    problem = Problem("countdown", "", {"numbers": [1, 3, 3], "target": 1})
    assert Countdown().grade(problem, "<answer>(1/3)*3</answer>").correct


def test_reading_an_expression_by_hand() -> None:
    assert read_expression(r"<answer>\boxed{12 \div 4}</answer>") == "12 / 4"
    assert read_expression("<answer>6−2=4</answer>") == "6-2"
    assert read_expression("<answer>=4</answer>") is None
    assert read_expression("4+4") == "4+4"
    assert read_expression("4+4 apples") is None
    assert read_expression("a <answer>4+4") is None  # one letter is a word
    assert read_expression("A: <answer>4+4</answer>") is None
    assert read_expression("1. <answer>4+4") == "4+4"
    assert read_expression("") is read_expression(" \n") is None


# ---- every task -----------------------------------------------------------------------------------------------


def test_the_last_answer_tag_counts() -> None:
    assert answer_text("<answer>1</answer> <answer> 2 </answer> 3") == "2"
    assert answer_text("no answer") is None


@pytest.mark.parametrize("completion", MALFORMED)
@pytest.mark.parametrize("problem", [PUZZLE, THREE], ids=lambda problem: problem.task)
def test_malformed_answers_are_wrong(problem: Problem, completion: str) -> None:
    grade = get(problem.task).grade(problem, completion)
    assert not grade.correct
    assert 0 <= grade.score < 1


@given(text=st.text(max_size=200), tagged=st.booleans())
@example(text="1if 1else 1", tagged=True)
@example(text="0x3+5_0", tagged=True)
@example(text=r"'\d'", tagged=True)
@settings(deadline=None, max_examples=200)
def test_grading_never_raises(text: str, tagged: bool) -> None:
    completion = f"<answer>{text}</answer>" if tagged else text
    for problem in (PUZZLE, THREE):
        assert 0 <= get(problem.task).grade(problem, completion).score <= 1


@given(text=st.text("0123456789+-*/() .=<>answer{}\\boxed\n", max_size=80))
@settings(deadline=None, max_examples=200)
def test_grading_near_misses_never_raises(text: str) -> None:
    for problem in (PUZZLE, THREE):
        grade = get(problem.task).grade(problem, f"<answer>{text}")
        assert (grade.score == 1) == grade.correct


@pytest.mark.slow
@pytest.mark.parametrize("name", GENERATED)
def test_worked_answers_are_right_and_wrong_ones_wrong(name: str) -> None:
    task, rng = get(name), random.Random(0)
    wrong_scores = []
    for problem in task.generate(60, split="train", seed=3):
        for _ in range(3):
            assert task.grade(problem, task.solve(problem, rng)).correct
            wrong = task.grade(problem, task.solve(problem, rng, wrong=True))
            assert not wrong.correct
            assert wrong.answer is not None
            wrong_scores.append(wrong.score)
    assert max(wrong_scores) < 1
    assert min(wrong_scores) > 0


def test_worked_sudoku_steps_are_each_forced() -> None:
    """Every step of a right answer writes the solution's digit in an empty cell, and the steps fill the grid."""
    task, rng = Sudoku(), random.Random(1)
    for problem in task.generate(20, split="validation", seed=0):
        grid = problem.fields["puzzle"]
        steps = re.findall(r"([abcd])([1-4])=([1-4])", task.solve(problem, rng).partition("\n")[0])
        for row, column, digit in steps:
            cell = 4 * "abcd".index(row) + int(column) - 1
            assert grid[cell] == "0"
            assert cell in deductions(grid)
            grid = grid[:cell] + digit + grid[cell + 1 :]
        assert grid == problem.fields["solution"]


def test_worked_countdown_steps_are_right() -> None:
    task, rng = Countdown(), random.Random(1)
    for problem in task.generate(20, split="validation", seed=0):
        steps = task.solve(problem, rng).partition("\n")[0].split()
        assert len(steps) == 2
        for step in steps:
            left, _, right = step.partition("=")
            assert evaluate(left)[0] == int(right)
        assert steps[-1].endswith(f"={problem.fields['target']}")


def test_generated_sudoku_has_eight_empty_cells_and_one_solution() -> None:
    for problem in Sudoku().generate(30, split="train", seed=0):
        assert problem.fields["puzzle"].count("0") == 8
        assert solutions(problem.fields["puzzle"]) == [problem.fields["solution"]]


@pytest.mark.parametrize("name", GENERATED)
def test_generation_depends_on_task_split_and_seed_alone(name: str) -> None:
    task = get(name)
    first = task.generate(25, split="train", seed=4)
    assert first == get(name).generate(25, split="train", seed=4)
    assert first == task.generate(40, split="train", seed=4)[:25]
    assert first != task.generate(25, split="train", seed=5)
    assert len({problem.key for problem in first}) == 25


@pytest.mark.parametrize("name", GENERATED)
def test_splits_never_meet_whatever_the_seed(name: str) -> None:
    task = get(name)
    keys = {
        split: {problem.key for seed in range(2) for problem in task.generate(25, split=split, seed=seed)}
        for split in SPLITS
    }
    for split in SPLITS:
        assert all(split_of(key) == split for key in keys[split])
    assert not keys["train"] & keys["test"]
    assert not keys["train"] & keys["validation"]
    assert not keys["test"] & keys["validation"]


def test_splits_have_their_shares() -> None:
    """1/16 each of 16,000 keys: 1,000 with a standard error of 31."""
    drawn = [split_of(f"problem {i}") for i in range(16_000)]
    assert abs(drawn.count("test") - 1000) < 4 * 31
    assert abs(drawn.count("validation") - 1000) < 4 * 31


def test_the_same_numbers_in_another_order_are_the_same_problem(tmp_path: Path) -> None:
    path = tmp_path / "countdown.jsonl"
    path.write_text('{"input": "7,3,5", "output": "26"}\n{"input": "5,7,3,26", "output": "7*3=21,21+5=26"}\n')
    first, second = Countdown().load(path)
    assert first.key == second.key == THREE.key
    assert second.fields == {"numbers": [5, 7, 3], "target": 26}


def test_a_task_that_runs_out_says_so() -> None:
    with pytest.raises(UserError, match="no more distinct test problems"):
        Countdown(numbers=2, largest=3, largest_target=5).generate(500, split="test", seed=0)


def test_the_last_problem_of_a_task_can_be_asked_for() -> None:
    task = Countdown(numbers=2, largest=3, largest_target=5)
    found: list[Problem] = []
    with pytest.raises(UserError, match="no more distinct"):
        found.extend(task.stream(split="train", seed=0))
    assert found
    assert task.generate(len(found), split="train", seed=0) == found


def test_prompts_show_the_problem() -> None:
    assert Sudoku().prompt(PUZZLE, "compact") == "sudoku 0034 3412 2143 4321"
    assert PUZZLE.fields["puzzle"] in Sudoku().prompt(PUZZLE, "instruct")
    assert Countdown().prompt(THREE, "compact") == "countdown 3 5 7 -> 26"
    assert "3, 5, 7" in Countdown().prompt(THREE, "instruct")
    assert "26" in Countdown().prompt(THREE, "instruct")


def test_the_reward_is_the_score() -> None:
    assert Countdown().reward([THREE, THREE], ["<answer>3*7+5</answer>", "<answer>3+7+5</answer>"]) == [1.0, 0.1]


def test_an_unknown_task_names_those_there_are() -> None:
    with pytest.raises(UserError, match=r"'chess'.*sudoku, countdown"):
        get("chess")


@pytest.mark.parametrize(
    ("task", "file", "text"),
    [
        (Sudoku(), "p.csv", f"Puzzle,Solution\n0034341221434321,{SOLUTION}\n0034341221434329,{SOLUTION}\n"),
        (Sudoku(), "p.csv", f"Puzzle,Solution\n0034341221434321,{SOLUTION}\n1134341221434321,{SOLUTION}\n"),
        (Sudoku(), "p.csv", f"Puzzle,Solution\n0034341221434321,{SOLUTION}\n0034341221434321\n"),
        (Countdown(), "p.jsonl", '{"input": "3,5,7", "output": "26"}\n{"input": "3,5", "target": 26}\n'),
        (Countdown(), "p.jsonl", '{"input": "3,5,7", "output": "26"}\n{"input": "3,x", "output": "26"}\n'),
        (Countdown(), "p.jsonl", '{"input": "3,5,7", "output": "26"}\nnot json\n'),
        (Countdown(), "p.jsonl", '{"input": "3,5,7", "output": "26"}\n[1, 2]\n'),
    ],
)
def test_a_bad_row_is_named_with_its_file(task: Sudoku | Countdown, file: str, text: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=rf"{re.escape(file)}, (row|line) 2"):
        task.load(tmp_path / file)


def test_a_file_without_problems_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no problems"):
        Countdown().load(tmp_path / "p.jsonl")


# ---- the published files --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(shared: Path) -> dict[str, list[Problem]]:
    folder = shared / "data" / "sudoku_countdown"
    return {
        path.name: (Sudoku() if "sudoku" in path.name else Countdown()).load(path)
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".csv", ".jsonl")
    }


@pytest.mark.shared
def test_every_published_file_loads(published: dict[str, list[Problem]]) -> None:
    sizes = {name: len(problems) for name, problems in published.items()}
    assert sizes["4x4_test_sudoku.csv"] == 500
    assert sizes["countdown_cd3_test.jsonl"] == 256
    assert all(sizes[f"cd{n}_test.jsonl"] == 1000 for n in (3, 4, 5))
    assert len(sizes) == 14


@pytest.mark.shared
def test_every_published_problem_is_recognised(published: dict[str, list[Problem]]) -> None:
    keys = {problem.key for problems in published.values() for problem in problems}
    assert {digest(key) for key in keys} == published_digests()


@pytest.mark.shared
def test_no_published_problem_is_generated(
    published: dict[str, list[Problem]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generator that proposes published problems, and in between its own, gives out its own only."""
    for name, task in (("4x4_test_sudoku.csv", Sudoku()), ("countdown_cd3_test.jsonl", Countdown())):
        for split in SPLITS:
            own = task.generate(3, split=split, seed=0)
            known = [problem for problem in published[name] if split_of(problem.key) == split][:3]
            assert len(known) == 3
            proposals = itertools.cycle([problem for pair in zip(known, own, strict=True) for problem in pair])
            with monkeypatch.context() as patch:
                patch.setattr(task, "propose", lambda rng, proposals=proposals: next(proposals))
                stream = task.stream(split=split, seed=0)
                assert [next(stream) for _ in own] == own


@pytest.mark.shared
def test_published_solutions_grade_as_right(published: dict[str, list[Problem]]) -> None:
    for problem in published["4x4_test_sudoku.csv"]:
        assert Sudoku().grade(problem, f"<answer>{problem.fields['solution']}</answer>").correct


@pytest.mark.shared
def test_124_published_puzzles_have_several_solutions(published: dict[str, list[Problem]]) -> None:
    several = [p for p in published["4x4_test_sudoku.csv"] if len(solutions(p.fields["puzzle"])) > 1]
    assert len(several) == 124
    other = next(s for s in solutions(several[0].fields["puzzle"]) if s != several[0].fields["solution"])
    assert Sudoku().grade(several[0], f"<answer>{other}</answer>").correct


@pytest.mark.shared
def test_a_bad_row_in_a_published_file_is_named(shared: Path, tmp_path: Path) -> None:
    copy = tmp_path / "cd3_test.jsonl"
    shutil.copy(shared / "data" / "sudoku_countdown" / "dream_eval" / "cd3_test.jsonl", copy)
    with copy.open("a") as handle:
        handle.write('{"input": "", "output": ""}\n')
    with pytest.raises(UserError, match=r"cd3_test\.jsonl, line 1001"):
        Countdown().load(copy)
