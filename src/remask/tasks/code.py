"""Code benchmarks: HumanEval and MBPP (sanitised); `code_plus` has their EvalPlus versions.

A completion is graded by running it in a sandbox (`remask.sandbox`) against the published tests; without a sandbox
grading refuses. `score` is the share of tests passed, where they ran to their end.

HumanEval and HumanEval+ accept the whole function and the continuation of the prompt alike; the prompt's text runs
first in both cases, so that its imports and helpers are there. Time limits are the sandbox's (10 s of processor time),
not the 3 s of the first harness: a verdict should not depend on how busy the machine is.
"""

from __future__ import annotations

import ast
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from remask.errors import UserError
from remask.sandbox import Limits, Outcome, Program, Sandbox
from remask.tasks import form
from remask.tasks.base import Grade, Hub, Problem, PromptStyle, Task
from remask.tasks.code_extraction import after_prompt, blocks, defines, extract, until_end


class CodeTask(Task):
    """What the four have in common: the sandbox, and grades from its outcomes."""

    runs_code = True
    metrics: ClassVar[tuple[str, ...]] = ("tests",)

    def __init__(self, sandbox: Sandbox | None = None) -> None:
        self.sandbox = sandbox

    @abstractmethod
    def program(self, problem: Problem, code: str) -> Program:
        """A completion's code, with the tests it is to pass."""

    def names(self, problem: Problem) -> Sequence[str]:
        """What a completion's program is to bind: the function asked for first."""
        return (problem.fields["name"],)

    def limits(self, limits: Limits) -> Limits:
        """The sandbox's limits, as this task needs them."""
        return limits

    def problem(self, row: dict[str, Any], **fields: Any) -> Problem:
        number = str(row["task_id"])
        return Problem(self.name, f"{self.name}:{number}", {"task_id": number, **fields})

    def format(self, problem: Problem, completion: str) -> float:
        """A quarter for each thing the instruct prompt asks for: one block; opened by ```python; closed; the function
        in it. The text ends at the first end-of-text token, and words around the block are free.
        """
        fenced = blocks(until_end(completion))
        opening, closing, code = (fenced[0].opening, fenced[0].closing, fenced[0].code) if fenced else ("", None, "")
        return form.share(
            [
                len(fenced) == 1,
                opening == "```python",
                len(fenced) == 1 and closing == "```",
                defines(code, problem.fields["name"]),
            ]
        )

    def grade(self, problem: Problem, completion: str) -> Grade:
        return self.grade_all([problem], [completion])[0]

    def grade_all(
        self, problems: Sequence[Problem], completions: Sequence[str], *, on_done: Callable[[int], None] | None = None
    ) -> list[Grade]:
        """Raises UserError where there is no sandbox: code of a model's is never run without one."""
        if self.sandbox is None:
            raise UserError("running generated code is off", where=self.name, mend="--allow-code-execution")
        codes = [extract(text, *self.names(p)) for p, text in zip(problems, completions, strict=True)]
        programs = [
            self.program(problem, code) for problem, code in zip(problems, codes, strict=True) if code is not None
        ]
        empty = len(codes) - len(programs)
        outcomes = iter(
            self.sandbox.run_all(
                programs,
                limits=self.limits(self.sandbox.limits),
                on_done=None if on_done is None else lambda done: on_done(empty + done),
            )
        )
        return [self.grade_of(None if code is None else next(outcomes), code) for code in codes]

    def grade_of(self, outcome: Outcome | None, code: str | None) -> Grade:
        correct = outcome is not None and outcome.passed
        share = 0.0 if outcome is None else outcome.share()
        return Grade(correct, 1.0 if correct else min(share, 0.99), code, {"tests": share})


class HumanEval(CodeTask):
    """Chen et al. 2021 (arXiv:2107.03374): 164 functions, from signature and docstring."""

    name = "humaneval"
    hub = Hub("openai/openai_humaneval")

    def read(self, row: dict[str, Any]) -> Problem:
        """The file of the release and the hub's data set have the same columns."""
        return self.problem(row, prompt=text(row, "prompt"), name=text(row, "entry_point"), test=text(row, "test"))

    def prompt(self, problem: Problem, style: PromptStyle) -> str:
        if style == "compact":
            return problem.fields["prompt"]
        return (
            "Complete this Python function. Answer with the whole function, and whatever it needs, in one ```python "
            f"block.\n\n```python\n{problem.fields['prompt'].strip()}\n```"
        )

    def program(self, problem: Problem, code: str) -> Program:
        """The tests may use what the prompt defines: its own text, not what a completion made of it."""
        prompt, name = problem.fields["prompt"], problem.fields["name"]
        tests = f"{problem.fields['test']}\n\ncheck({name})\n"
        return Program(after_prompt(prompt, code, name), tests, (name,), setup=prompt)


class Mbpp(CodeTask):
    """Austin et al. 2021 (arXiv:2108.07732), the 427 sanitised problems: a sentence and its tests, shown, zero-shot."""

    name = "mbpp"
    hub = Hub("google-research-datasets/mbpp", "sanitized")

    def read(self, row: dict[str, Any]) -> Problem:
        """The file of the release and the hub's data set have the same columns."""
        shown = texts(row, "test_list")
        test = "\n".join([*texts(row, "test_imports"), *shown])
        return self.problem(
            row, prompt=text(row, "prompt"), shown=shown, test=test, **asked_of(text(row, "code"), test)
        )

    def prompt(self, problem: Problem, style: PromptStyle) -> str:
        shown = "\n".join(problem.fields["shown"])
        if style == "compact":
            return f"{problem.fields['prompt']}\n{shown}"
        return (
            f"{problem.fields['prompt']} Your code must pass these tests:\n\n{shown}\n\n"
            "Answer with the function, and whatever it needs, in one ```python block."
        )

    def program(self, problem: Problem, code: str) -> Program:
        fields = problem.fields
        return Program(code, fields["test"], tuple(fields["names"]), setup=fields["setup"])


def asked_of(reference: str, test: str) -> dict[str, Any]:
    """What MBPP's tests use of the program, told from the reference: its functions (`names`, the first is the `name`
    asked for), and as `setup` the modules that the tests count on the program to have imported."""
    try:
        with warnings.catch_warnings(action="ignore"):  # "\d" and its like, in published code
            used = {node.id for node in ast.walk(ast.parse(test)) if isinstance(node, ast.Name)}
            body = ast.parse(reference).body
    except SyntaxError as error:
        raise ValueError(f"its code is not Python: {error}") from None
    names = [node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in used]
    if not names:
        raise ValueError("the tests use no function of the reference solution")
    imports = [
        ast.unparse(node)
        for node in body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        and any((alias.asname or alias.name).partition(".")[0] in used for alias in node.names)
    ]
    return {"name": names[0], "names": names, "setup": "\n".join(imports)}


def text(row: dict[str, Any], name: str) -> str:
    value = row[name]
    if not isinstance(value, str):
        raise TypeError(f"{name} is a {type(value).__name__}, not text")
    return value


def texts(row: dict[str, Any], name: str) -> list[str]:
    value = row[name]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError(f"{name} is not a list of texts")
    return value
