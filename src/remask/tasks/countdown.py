"""Countdown: reach a target from given numbers with + − × ÷, each number used exactly once.

Graded as d1 does (eval/parse_and_get_acc.py): the expression that `read_expression` finds must use each number once and
come within `TOLERANCE` of the target. In three things this differs from d1, which evaluates expressions as Python:
`**`, `//` and decimals (0.5) are not taken, as the task allows + - * / only; arithmetic is exact (fractions), and an
expression is parsed, never run; and answers without words are read as `read_expression` says.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from remask.choices import PromptStyle
from remask.errors import UserError
from remask.tasks import form
from remask.tasks.base import Grade, Problem, answer_text
from remask.tasks.extraction import first_answer, has_box, is_wordless, last_boxed
from remask.tasks.generator import GeneratedTask

VALID_EXPRESSION_SCORE = 0.1
"""The dense reward of an expression that uses the right numbers but misses the target (as in d1's reward)."""

TOLERANCE = Fraction(1, 100_000)
MAX_EXPRESSION = 400

LATEX = {r"\div": "/", r"\times": "*", r"\cdot": "*"}
SIGNS = {"÷": "/", "×": "*", "−": "-"}
BEFORE_EQUALS = "0123456789+-*/() "
WRITTEN = re.compile(r"[0-9+\-*/().\s]*")
EQUATION = re.compile(f"[{re.escape(BEFORE_EQUALS)}]=[0-9. ]")
FULL_STOP = re.compile(r"(?<=[0-9])\.(?![0-9])")


def evaluate(expression: str) -> tuple[Fraction, list[int]]:
    """Return the exact value of an arithmetic expression and the integers it is written with.

    Raises ValueError for anything but whole numbers, + - * /, and brackets, and for division by zero.
    """
    length = len("".join(expression.split()))
    if length > MAX_EXPRESSION:
        raise ValueError(f"an expression of {length} characters")
    if not re.fullmatch(r"[0-9+\-*/()\s]*", expression):
        raise ValueError("holds more than numbers, + - * / and brackets")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        numbers: list[int] = []
        return _value(tree.body, numbers), numbers
    except (SyntaxError, RecursionError, MemoryError, ZeroDivisionError) as error:
        raise ValueError(f"not an arithmetic expression: {error}") from error


def _value(node: ast.expr, numbers: list[int]) -> Fraction:
    match node:
        case ast.Constant(value=int(number)) if not isinstance(number, bool):
            numbers.append(number)
            return Fraction(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, numbers)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand, numbers)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _value(left, numbers) + _value(right, numbers)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _value(left, numbers) - _value(right, numbers)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _value(left, numbers) * _value(right, numbers)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _value(left, numbers) / _value(right, numbers)
        case _:
            raise ValueError(f"{type(node).__name__} is not arithmetic")


class Countdown(GeneratedTask):
    """The task of reaching a target with given numbers: three of 1–9 and a target of 1–99, where generated; files may
    hold any count of numbers.

    `valid` is whether an expression uses the right numbers, in the box or in the answer tag.
    """

    name = "countdown"
    metrics = ("valid",)

    def __init__(self, numbers: int = 3, largest: int = 9, largest_target: int = 99) -> None:
        self.numbers, self.largest, self.largest_target = numbers, largest, largest_target

    def propose(self, rng: random.Random) -> Problem:
        while True:
            numbers = [rng.randint(1, self.largest) for _ in range(self.numbers)]
            path = _random_path(numbers, rng)
            if path is not None and 1 <= path[1] <= self.largest_target:
                return self.problem(numbers, path[1])

    def read(self, row: dict[str, Any]) -> Problem:
        """Read d1's columns (input: numbers; output: target), Dream's (input: numbers, target last; output: steps), or
        those of Countdown-Tasks-3to4 (nums, target), which d1 trains on.
        """
        if "nums" in row:
            return self.problem([int(number) for number in row["nums"]], int(row["target"]))
        numbers = [int(number) for number in str(row["input"]).split(",")]
        if "=" in str(row["output"]):
            return self.problem(numbers[:-1], numbers[-1])
        return self.problem(numbers, int(row["output"]))

    def from_stored(self, question: str, ground_truth: Sequence[Any]) -> Problem:
        """Return the problem of a `ground_truth`: the list of numbers and the target."""
        numbers, target = ground_truth
        if not all(isinstance(number, int) for number in (*numbers, target)):
            raise TypeError(f"the ground truth {ground_truth!r} is not [numbers, target]")
        return self.problem(list(numbers), target)

    def problem(self, numbers: list[int], target: int) -> Problem:
        """Return the problem. Its key does not tell the order of the numbers, nor which of the Countdown tasks it
        belongs to.
        """
        if len(numbers) < 2 or any(number < 0 for number in numbers):
            raise UserError(f"{numbers} is not a list of two or more whole numbers", mend="write [3, 5, 7]")
        key = f"countdown:{','.join(map(str, sorted(numbers)))}->{target}"
        return Problem(self.name, key, {"numbers": numbers, "target": target})

    def prompt(self, problem: Problem, style: PromptStyle) -> str:
        numbers, target = problem.fields["numbers"], problem.fields["target"]
        if style == "compact":
            return f"countdown {' '.join(map(str, numbers))} -> {target}"
        return (
            f"Numbers: {', '.join(map(str, numbers))}. Target: {target}. Write an arithmetic expression that equals "
            "the target and uses every number exactly once, with +, -, * and / only. Think first, then write the "
            r"expression alone inside <answer>\boxed{}</answer>."
        )

    def solve(self, problem: Problem, rng: random.Random, *, wrong: bool = False) -> str:
        """Write one operation a step (`20-7=13`), then the whole expression. Operands and operator are decisions; the
        result is forced.

        A wrong answer combines the numbers into something else, or slips in its last sum.
        """
        numbers, target = problem.fields["numbers"], problem.fields["target"]
        if not wrong:
            paths = _paths_to(numbers, target)
            if not paths:
                raise ValueError(f"{numbers} cannot reach {target} in whole, positive steps")
            steps, expression = rng.choice(paths)
        else:
            missed = None
            while missed is None or missed[1] == target:
                missed = _random_path(numbers, rng)
            steps, expression = missed[0], missed[2]
            if rng.random() < 0.5:  # claim the target all the same
                steps = [*steps[:-1], steps[-1].partition("=")[0] + f"={target}"]
        return f"{' '.join(steps)}\n<answer>{expression}</answer>"

    def format(self, problem: Problem, completion: str) -> float:
        """Give a fifth for each of the four things of a tagged answer, and for what `read_expression` asks of it: a
        box, where there are words.
        """
        kept = form.tagged(completion)
        return form.share([*kept, kept[2] and (form.boxed(completion) or is_wordless(completion))])

    def grade(self, problem: Problem, completion: str) -> Grade:
        answer = read_expression(completion)
        value = value_of(answer, problem.fields["numbers"])
        correct = value is not None and abs(value - problem.fields["target"]) < TOLERANCE
        valid = value is not None or value_of(tagged_expression(completion), problem.fields["numbers"]) is not None
        return Grade(
            correct, 1.0 if correct else VALID_EXPRESSION_SCORE if valid else 0.0, answer, {"valid": float(valid)}
        )


class Countdown4(Countdown):
    """The Countdown task with four numbers, where generated."""

    name = "countdown4"

    def __init__(self) -> None:
        super().__init__(numbers=4)


class Countdown5(Countdown):
    """The Countdown task with five numbers, where generated."""

    name = "countdown5"

    def __init__(self) -> None:
        super().__init__(numbers=5)


def value_of(expression: str | None, numbers: Sequence[int]) -> Fraction | None:
    """Return the value of an expression that uses each of the numbers once; None for any other."""
    try:
        value, used = evaluate(expression or "")
    except ValueError:
        return None
    return value if sorted(used) == sorted(numbers) else None


def read_expression(completion: str) -> str | None:
    """Return the expression of an answer; None where there is nothing that could be one.

    It is searched for in the last box; where that never closes, in the first closed answer tag; else, and where there
    is no box, in the whole text: an answer tag counts for nothing then. Of an equation there, the first that a number
    follows, its left side is the expression; without an equation all of it is.

    An answer tag with neither a box nor a single letter outside it, the form of the compact style, is the exception:
    what stands in the tag counts (d1 would take the first equation of the work before it).
    """
    boxed = has_box(completion)
    if not boxed and is_wordless(completion):
        return tagged_expression(completion)
    answer = last_boxed(completion) if boxed else None
    if answer is None and boxed:
        answer = first_answer(completion)
    text = _plain(completion if answer is None else answer, LATEX)
    equation = EQUATION.search(text)
    if equation is not None:
        end = equation.start() + 1
        return text[len(text[:end].rstrip(BEFORE_EQUALS)) : end].strip() or None
    if answer is None and not WRITTEN.fullmatch(text):
        return None  # prose
    return FULL_STOP.sub("", text).strip() or None


def tagged_expression(completion: str) -> str | None:
    """Return what stands in the last answer tag, to the equals sign; a box around it is taken off."""
    text = answer_text(completion)
    if text is None:
        return None
    _, boxed, inside = text.partition(r"\boxed{")
    text = inside.rpartition("}")[0] if boxed and "}" in inside else text
    return _plain(text, LATEX | SIGNS).partition("=")[0].strip() or None


def _plain(text: str, operators: dict[str, str]) -> str:
    for other, plain in operators.items():
        text = text.replace(other, plain)
    return text


Path3 = tuple[list[str], int, str]
"""The steps as written, the value reached, and the expression."""


def _combine(a: int, b: int) -> list[tuple[str, int]]:
    """What two positive whole numbers make in one positive whole step, with the step's operator."""
    high, low = max(a, b), min(a, b)
    results = [("+", high + low), ("*", high * low)]
    if high > low:
        results.append(("-", high - low))
    if low > 1 and high % low == 0:
        results.append(("/", high // low))
    return results


def _random_path(numbers: list[int], rng: random.Random) -> Path3 | None:
    pool = [(number, str(number)) for number in numbers]
    steps: list[str] = []
    while len(pool) > 1:
        (a, left), (b, right) = (pool.pop(rng.randrange(len(pool))) for _ in range(2))
        if a < b:
            (a, left), (b, right) = (b, right), (a, left)
        operator, result = rng.choice(_combine(a, b))
        if result > 999:
            return None
        steps.append(f"{a}{operator}{b}={result}")
        pool.append((result, f"({left}{operator}{right})"))
    value, expression = pool[0]
    return steps, value, expression[1:-1]


def _paths_to(numbers: list[int], target: int) -> list[tuple[list[str], str]]:
    """Every distinct way to the target in whole, positive steps."""
    found: dict[str, list[str]] = {}

    def search(pool: list[tuple[int, str]], steps: list[str]) -> None:
        if len(pool) == 1:
            if pool[0][0] == target:
                found.setdefault(pool[0][1][1:-1], steps)
            return
        for i in range(len(pool)):
            for j in range(i + 1, len(pool)):
                (a, left), (b, right) = sorted((pool[i], pool[j]), key=lambda item: -item[0])
                rest = [pool[k] for k in range(len(pool)) if k not in (i, j)]
                for operator, result in _combine(a, b):
                    if result <= 9999:
                        step = f"{a}{operator}{b}={result}"
                        search([*rest, (result, f"({left}{operator}{right})")], [*steps, step])

    search([(number, str(number)) for number in numbers], [])
    return [(steps, expression) for expression, steps in found.items()]
