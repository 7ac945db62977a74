"""Code benchmarks: HumanEval and MBPP (sanitised); `code_plus` has their EvalPlus versions.

A completion is graded by running it in a sandbox (`remask.sandbox`) against the published tests; without a sandbox
grading refuses. `score` is the share of tests passed, where they ran to their end.

HumanEval and HumanEval+ accept the whole function and the continuation of the prompt alike; the prompt's text runs
first in both cases, so that its imports and helpers are there. Time limits are the sandbox's (10 s of processor time),
not the 3 s of the first harness: a verdict should not depend on how busy the machine is.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from remask.errors import UserError
from remask.sandbox import Limits, Outcome, Program, Sandbox
from remask.tasks import form
from remask.tasks.base import Grade, Hub, Problem, PromptStyle, Task

ENDS = re.compile(r"<\|(?:endoftext|eot_id|im_end|end|end_of_text|eom_id)\|>")
FENCE = re.compile(r"^[ \t]*```[^\n]*$", re.MULTILINE)
FUTURE = re.compile(r"^from __future__ import .*$", re.MULTILINE)
INDENT = "    "


def extract(completion: str, name: str) -> str | None:
    """The code of a completion that is to define the function `name`; None where there is nothing.

    The text ends at the first end-of-text token. Of the fenced blocks the last that defines the function counts, else
    the first; a block left open runs to the end. Without a block it is the whole text. Where the text begins as code
    and then meets a bare fence, that fence closes it (it was opened in the prompt): what stands before it counts.
    """
    text = ENDS.split(completion, maxsplit=1)[0]
    fence = FENCE.search(text)
    before, *rest = FENCE.split(text)
    if fence is None or (fence[0].strip() == "```" and (before.lstrip("\n")[:1].isspace() or defines(before, name))):
        code = before
    else:
        blocks = rest[::2]
        code = ([block for block in blocks if defines(block, name)] or blocks[:1])[-1]
    if not code.strip():
        return None
    code = code.strip("\n")
    return textwrap.dedent(code) if defines(code, name) else code


def defines(code: str, name: str) -> bool:
    found = re.search(
        rf"^[ \t]*(?:async[ \t]+)?def[ \t]+{re.escape(name)}\b|^{re.escape(name)}[ \t]*=", code, re.MULTILINE
    )
    return found is not None


def after_prompt(prompt: str, code: str, name: str) -> str:
    """HumanEval's program: the prompt, then the function anew or the continuation of the prompt's own.

    A continuation ends at the first line that is not indented, as HumanEval's stop words have it. Where its very first
    line has lost its indentation, it is given back.
    """
    if defines(code, name):
        future = FUTURE.findall(code)  # must stand first in a file
        return "\n".join([*future, prompt, FUTURE.sub("", code)])
    if not code[0].isspace():
        code = INDENT + code
    lines = code.split("\n")
    end = next((number for number, line in enumerate(lines) if line.strip() and not line[0].isspace()), len(lines))
    return prompt.rstrip("\n") + "\n" + "\n".join(lines[:end]) + "\n"


class CodeTask(Task):
    """What the four have in common: the sandbox, and grades from its outcomes."""

    runs_code = True
    metrics: ClassVar[tuple[str, ...]] = ("tests",)

    def __init__(self, sandbox: Sandbox | None = None) -> None:
        self.sandbox = sandbox

    @abstractmethod
    def program(self, problem: Problem, code: str) -> Program:
        """A completion's code, with the tests it is to pass."""

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
        text = ENDS.split(completion, maxsplit=1)[0]
        fences = [fence.strip() for fence in FENCE.findall(text)]
        block = FENCE.split(text)[1] if fences else ""
        return form.share(
            [
                len(fences) in (1, 2),
                fences[:1] == ["```python"],
                fences[1:] == ["```"],
                defines(block, problem.fields["name"]),
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
        codes = [extract(text, p.fields["name"]) for p, text in zip(problems, completions, strict=True)]
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
