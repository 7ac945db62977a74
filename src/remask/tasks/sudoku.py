"""Sudoku 4×4: fill a grid so that each row, column and 2×2 box holds 1–4 once.

Any valid completion of the givens is correct; 124 of the 500 published puzzles have several. The published score, the
share of empty cells filled as in the stored solution, is the metric `cells`. It reads the answer as d1's evaluation
does (`published_grid`), `correct` and `score` with more patience (`read_grid`). Published figures count cells over a
whole file: the mean of `cells` weighted by `weight`, which is the plain mean where puzzles have equally many.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import cache
from itertools import permutations
from typing import Any

from remask.choices import PromptStyle
from remask.errors import UserError
from remask.tasks.base import Grade, Problem, answer_text
from remask.tasks.extraction import STOPS, with_stop
from remask.tasks.generator import GeneratedTask

DIGITS = "1234"
ROWS = "abcd"

STOP = re.compile("|".join(map(re.escape, STOPS)))
END_OF_ANSWER = re.compile(f"{STOP.pattern}|</answer>")
FENCED = re.compile(r"```([\d\s]++)```")
BEFORE_TAG = re.compile(r"(\d{16})\s*</answer>")
ALONE = re.compile(r"\b(\d{16})\b")


def peers(cell: int) -> frozenset[int]:
    """Return the cells sharing a row, column or box with `cell` (numbered 0–15, row by row)."""
    row, column = divmod(cell, 4)
    return frozenset(
        other
        for other in range(16)
        if other != cell
        and (other // 4 == row or other % 4 == column or (other // 8 == row // 2 and other % 4 // 2 == column // 2))
    )


PEERS = [peers(cell) for cell in range(16)]


def candidates(grid: str, cell: int) -> str:
    """Return the digits that no peer of an empty cell holds."""
    taken = {grid[peer] for peer in PEERS[cell]}
    return "".join(digit for digit in DIGITS if digit not in taken)


def solutions(grid: str, limit: int = 2) -> list[str]:
    """Return up to `limit` valid completions of a grid in which 0 is empty."""
    grids, holding = _table()
    left = (1 << len(grids)) - 1
    for cell, digit in enumerate(grid):
        if digit != "0":
            left &= holding[cell, digit]
    found: list[str] = []
    while left and len(found) < limit:
        lowest = left & -left
        found.append(grids[lowest.bit_length() - 1])
        left ^= lowest
    return found


@cache
def _table() -> tuple[list[str], dict[tuple[int, str], int]]:
    """(the 288 full grids, (cell, digit) → a number whose bit g says that grid g has this digit in this cell)."""
    grids = [grid for first in permutations(DIGITS) for grid in _completed("".join(first) + "0" * 12)]
    holding = {
        (cell, digit): sum(1 << g for g, grid in enumerate(grids) if grid[cell] == digit)
        for cell in range(16)
        for digit in DIGITS
    }
    return grids, holding


def _completed(grid: str) -> list[str]:
    """Every completion, found by filling the cell with the fewest candidates first."""
    empty = [cell for cell in range(16) if grid[cell] == "0"]
    if not empty:
        return [grid]
    cell = min(empty, key=lambda c: len(candidates(grid, c)))
    return [full for digit in candidates(grid, cell) for full in _completed(grid[:cell] + digit + grid[cell + 1 :])]


def is_valid(grid: str) -> bool:
    """Return whether a grid is full and keeps every rule."""
    return len(grid) == 16 and all(
        grid[cell] in DIGITS and all(grid[cell] != grid[peer] for peer in PEERS[cell]) for cell in range(16)
    )


def deductions(grid: str) -> list[int]:
    """Return the empty cells whose digit follows in one step: a single candidate, or the only place for a digit in a
    unit.
    """
    empty = [cell for cell in range(16) if grid[cell] == "0"]
    singles = [cell for cell in empty if len(candidates(grid, cell)) == 1]
    return singles or [cell for cell in empty if any(_only_place(grid, cell, d) for d in candidates(grid, cell))]


def _only_place(grid: str, cell: int, digit: str) -> bool:
    row, column = divmod(cell, 4)
    units = (
        {4 * row + c for c in range(4)},
        {4 * r + column for r in range(4)},
        {other for other in range(16) if other // 8 == row // 2 and other % 4 // 2 == column // 2},
    )
    return any(
        all(other == cell or grid[other] != "0" or digit not in candidates(grid, other) for other in unit)
        for unit in units
    )


class Sudoku(GeneratedTask):
    """The task of 4×4 Sudoku with 8 empty cells, as all the published ones have, and one solution, where generated."""

    name = "sudoku"
    metrics = ("cells",)
    published = "cells"

    def __init__(self, empty: tuple[int, int] = (8, 8)) -> None:
        self.empty = empty

    def propose(self, rng: random.Random) -> Problem:
        while True:
            solution = _random_grid(rng)
            cells = rng.sample(range(16), rng.randint(*self.empty))
            puzzle = "".join("0" if cell in cells else solution[cell] for cell in range(16))
            if len(solutions(puzzle)) == 1:
                return _problem(puzzle, solution)

    def read(self, row: dict[str, Any]) -> Problem:
        """Read d1's columns (Puzzle, Solution) or Dream's (input, output: each row on a line)."""
        if "Puzzle" in row:
            return _problem(row["Puzzle"], row["Solution"])
        return _problem(row["input"], row["output"])

    def from_stored(self, question: str, ground_truth: str) -> Problem:
        """Return the problem of a `question` that holds the puzzle's 16 digits, and a `ground_truth` that is the
        solution.
        """
        puzzle = re.search(r"(?<![0-9])[0-4]{16}(?![0-9])", question)
        if puzzle is None:
            raise ValueError("its question holds no 16 digits of 0-4")
        return _problem(puzzle[0], ground_truth)

    def weight(self, problem: Problem) -> int:
        """Return the number of empty cells: as many as the published figure counts in this puzzle."""
        return problem.fields["puzzle"].count("0")

    def prompt(self, problem: Problem, style: PromptStyle) -> str:
        puzzle = problem.fields["puzzle"]
        if style == "compact":
            return f"sudoku {by_rows(puzzle)}"
        return (
            "Fill in this 4x4 Sudoku. It is given as 16 digits, row by row, and 0 is an empty cell. Every row, every "
            "column and every 2x2 box must hold the digits 1 to 4 once. Think first, then write the 16 digits of the "
            f"full grid inside <answer></answer>.\n\n{puzzle}"
        )

    def solve(self, problem: Problem, rng: random.Random, *, wrong: bool = False) -> str:
        """Write the cells in an order in which each follows from those before it (`b3=4`), then the grid.

        The choice of the next cell is a decision; its digit is forced.
        """
        puzzle, solution = problem.fields["puzzle"], problem.fields["solution"]
        written = _spoil(puzzle, solution, rng) if wrong else solution
        grid, steps = puzzle, []
        while "0" in grid:
            cell = rng.choice(deductions(grid) or [c for c in range(16) if grid[c] == "0"])
            grid = grid[:cell] + solution[cell] + grid[cell + 1 :]
            steps.append(f"{ROWS[cell // 4]}{cell % 4 + 1}={written[cell]}")
        return f"{' '.join(steps)}\n<answer>{by_rows(written)}</answer>"

    def without_work(self, worked: str) -> str:
        """Return the grid's 16 digits, as `read_grid` takes them without a tag."""
        return re.sub(r"\D", "", super().without_work(worked))

    def grade(self, problem: Problem, completion: str) -> Grade:
        puzzle = problem.fields["puzzle"]
        answer = read_grid(completion)
        correct = (
            answer is not None and is_valid(answer) and all(g in ("0", a) for g, a in zip(puzzle, answer, strict=True))
        )
        score = 1.0 if correct else min(right_cells(problem, answer or ""), 0.99)
        return Grade(correct, score, answer, {"cells": right_cells(problem, published_grid(completion))})


def right_cells(problem: Problem, answer: str) -> float:
    """Return the share of the empty cells that an answer's first 16 characters fill as the stored solution does."""
    puzzle, solution = problem.fields["puzzle"], problem.fields["solution"]
    empty = [cell for cell in range(16) if puzzle[cell] == "0"]
    return sum(answer[cell : cell + 1] == solution[cell] for cell in empty) / len(empty) if empty else 0.0


def by_rows(grid: str) -> str:
    """Return a grid's 16 digits in four groups with blanks between them."""
    return " ".join(grid[i : i + 4] for i in range(0, 16, 4))


def read_grid(completion: str) -> str | None:
    """Return the digits of the answer tag, or else the last run of 16 digits in the text; None where there
    are neither.
    """
    tagged = answer_text(completion)
    if tagged is not None and (digits := re.sub(r"\D", "", tagged)):
        return digits
    runs = re.findall(r"(?<!\d)\d{16}(?!\d)", completion)
    return runs[-1] if runs else None


def published_grid(completion: str) -> str:
    """Return what d1's evaluation takes for the grid, blanks removed; whatever it is, its 16 first characters are the
    cells.

    The first of these that is there and not blank: digits in a fence within the first answer; the first answer, up to
    its tag or a stop token; what follows the first closing tag, up to a stop token; 16 digits before a closing tag;
    16 digits that stand alone.
    """
    text = with_stop(completion)
    return next(("".join(found.split()) for found in _places(text) if found.strip()), "")


def _places(text: str) -> Iterator[str]:
    _, opened, answer = text.partition("<answer>")
    if opened:
        yield from _group(FENCED, answer)
        if END_OF_ANSWER.search(answer):
            yield END_OF_ANSWER.split(answer, maxsplit=1)[0]
    _, closed, after = text.partition("</answer>")
    if closed:
        yield STOP.split(after, maxsplit=1)[0]
    yield from _group(BEFORE_TAG, text)
    yield from _group(ALONE, text)


def _group(pattern: re.Pattern[str], text: str) -> Iterator[str]:
    if found := pattern.search(text):
        yield found[1]


def _problem(puzzle: str, solution: str) -> Problem:
    puzzle, solution = "".join(puzzle.split()), "".join(solution.split())
    if len(puzzle) != 16 or set(puzzle) - set("0" + DIGITS):
        raise UserError(
            f"the puzzle {puzzle!r} is not 16 digits of 0-4", mend="write 16 digits, 0 where a cell is empty"
        )
    if not is_valid(solution) or any(g not in ("0", s) for g, s in zip(puzzle, solution, strict=True)):
        raise UserError(f"{solution!r} does not solve {puzzle!r}", mend="correct one of them")
    return Problem("sudoku", f"sudoku:{puzzle}", {"puzzle": puzzle, "solution": solution})


def _random_grid(rng: random.Random) -> str:
    """A solved grid, uniform over all 288: any full solution of an empty grid searched in random digit order."""
    first = rng.sample(DIGITS, 4)
    grids = solutions("".join(first) + "0" * 12, limit=12)
    return rng.choice(grids)


def _spoil(puzzle: str, solution: str, rng: random.Random) -> str:
    """A grid with one to three of the puzzle's empty cells wrong."""
    empty = [cell for cell in range(16) if puzzle[cell] == "0"]
    grid = list(solution)
    for cell in rng.sample(empty, min(len(empty), rng.randint(1, 3))):
        grid[cell] = rng.choice([digit for digit in DIGITS if digit != solution[cell]])
    return "".join(grid)
