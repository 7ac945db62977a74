"""Sudoku 4×4: fill a grid so that each row, column and 2×2 box holds 1–4 once.

Any valid completion of the givens is correct; 124 of the 500 published puzzles have several. The published score, the
share of empty cells filled as in the stored solution, is the metric `cells`.
"""

from __future__ import annotations

import random
import re
from typing import Any

from remask.errors import UserError
from remask.tasks.base import Grade, Problem, PromptStyle, answer_text
from remask.tasks.generator import GeneratedTask

DIGITS = "1234"
ROWS = "abcd"


def peers(cell: int) -> frozenset[int]:
    """The cells sharing a row, column or box with `cell` (numbered 0–15, row by row)."""
    row, column = divmod(cell, 4)
    return frozenset(
        other
        for other in range(16)
        if other != cell
        and (other // 4 == row or other % 4 == column or (other // 8 == row // 2 and other % 4 // 2 == column // 2))
    )


PEERS = [peers(cell) for cell in range(16)]


def candidates(grid: str, cell: int) -> str:
    """The digits that no peer of an empty cell holds."""
    taken = {grid[peer] for peer in PEERS[cell]}
    return "".join(digit for digit in DIGITS if digit not in taken)


def solutions(grid: str, limit: int = 2) -> list[str]:
    """Up to `limit` completions of a grid in which 0 is empty."""
    empty = [cell for cell in range(16) if grid[cell] == "0"]
    if not empty:
        return [grid]
    cell = min(empty, key=lambda c: len(candidates(grid, c)))
    found: list[str] = []
    for digit in candidates(grid, cell):
        found += solutions(grid[:cell] + digit + grid[cell + 1 :], limit - len(found))
        if len(found) >= limit:
            break
    return found


def is_valid(grid: str) -> bool:
    """A full grid that keeps every rule."""
    return len(grid) == 16 and all(
        grid[cell] in DIGITS and all(grid[cell] != grid[peer] for peer in PEERS[cell]) for cell in range(16)
    )


def deductions(grid: str) -> list[int]:
    """The empty cells whose digit follows in one step: a single candidate, or the only place for a digit in a unit."""
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
    """4×4 Sudoku with 8 empty cells, as all the published ones have, and one solution, where generated."""

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
        """d1's columns (Puzzle, Solution) or Dream's (input, output: rows on lines of their own)."""
        if "Puzzle" in row:
            return _problem(row["Puzzle"], row["Solution"])
        return _problem(row["input"], row["output"])

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
        """Cells in an order in which each follows from those before it (`b3=4`), then the grid.

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

    def grade(self, problem: Problem, completion: str) -> Grade:
        puzzle, solution = problem.fields["puzzle"], problem.fields["solution"]
        answer = read_grid(completion)
        padded = (answer or "")[:16].ljust(16, "0")
        empty = [cell for cell in range(16) if puzzle[cell] == "0"]
        right = sum(padded[cell] == solution[cell] for cell in empty)
        correct = (
            answer is not None and is_valid(answer) and all(g in ("0", a) for g, a in zip(puzzle, answer, strict=True))
        )
        cells = right / len(empty) if empty else float(correct)
        return Grade(correct, 1.0 if correct else min(cells, 0.99), answer, {"cells": cells})


def by_rows(grid: str) -> str:
    return " ".join(grid[i : i + 4] for i in range(0, 16, 4))


def read_grid(completion: str) -> str | None:
    """The digits of the answer tag, or else the last run of 16 digits in the text; None where there are neither."""
    tagged = answer_text(completion)
    if tagged is not None and (digits := re.sub(r"\D", "", tagged)):
        return digits
    runs = re.findall(r"(?<!\d)\d{16}(?!\d)", completion)
    return runs[-1] if runs else None


def _problem(puzzle: str, solution: str) -> Problem:
    puzzle, solution = "".join(puzzle.split()), "".join(solution.split())
    if len(puzzle) != 16 or set(puzzle) - set("0" + DIGITS):
        raise UserError(f"the puzzle {puzzle!r} is not 16 digits of 0-4")
    if not is_valid(solution) or any(g not in ("0", s) for g, s in zip(puzzle, solution, strict=True)):
        raise UserError(f"{solution!r} does not solve {puzzle!r}")
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
