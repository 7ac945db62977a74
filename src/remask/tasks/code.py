"""Code benchmarks: HumanEval and MBPP; `code_plus` has their EvalPlus versions.

A completion is graded by running it in a sandbox (`remask.sandbox`) against the published tests; without a sandbox
grading refuses. `score` is the share of tests passed, where they ran to their end.

HumanEval and HumanEval+ accept the whole function and the continuation of the prompt alike; the prompt's text runs
first in both cases, so that its imports and helpers are there. Time limits are the sandbox's (10 s of processor time),
not the 3 s of the first harness: a verdict should not depend on how busy the machine is.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from remask.choices import PromptStyle
from remask.errors import UserError
from remask.sandbox import Limits, Outcome, Program, Sandbox
from remask.tasks import form
from remask.tasks.base import Grade, Hub, Problem, Task
from remask.tasks.code_continuation import after_prompt
from remask.tasks.code_extraction import blocks, extract, until_end
from remask.tasks.mbpp_tests import asked_of
from remask.tasks.python_code import defines


class CodeTask(Task):
    """A task of code: its answers are run in the sandbox, and graded by the outcomes."""

    runs_code = True
    metrics: ClassVar[tuple[str, ...]] = ("tests",)

    def __init__(self, sandbox: Sandbox | None = None) -> None:
        self.sandbox = sandbox

    @abstractmethod
    def source(self, problem: Problem, code: str) -> str:
        """Return the program that a completion's code makes."""

    @abstractmethod
    def continued(self, problem: Problem, text: str) -> str:
        """Return the program that a sample's text makes where it goes on after the prompt, without a search for code in
        it.
        """

    @abstractmethod
    def program(self, problem: Problem, source: str) -> Program:
        """Return a program, with the tests it is to pass."""

    def names(self, problem: Problem) -> Sequence[str]:
        """Return what a completion's program is to bind: the function asked for first."""
        return (problem.fields["name"],)

    def limits(self, limits: Limits) -> Limits:
        """Return the sandbox's limits, as this task needs them."""
        return limits

    def problem(self, row: dict[str, Any], **fields: Any) -> Problem:
        """Return the problem of a row's task_id, made of these fields."""
        number = str(row["task_id"])
        return Problem(self.name, f"{self.name}:{number}", {"task_id": number, **fields})

    def format(self, problem: Problem, completion: str) -> float:
        """Give a quarter for each thing the instruct prompt asks for: one block; opened by ```python; closed; the
        function in it. The text ends at the first end-of-text token, and words around the block are free.
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
        """Grade one completion, as `grade_all` does."""
        return self.grade_all([problem], [completion])[0]

    def grade_all(
        self, problems: Sequence[Problem], completions: Sequence[str], *, on_done: Callable[[int], None] | None = None
    ) -> list[Grade]:
        """Grade completions by running their code. Raises UserError where there is no sandbox: code that a model wrote
        is never run without one.
        """
        codes = [extract(text, *self.names(p)) for p, text in zip(problems, completions, strict=True)]
        made = [(p, self.source(p, code)) for p, code in zip(problems, codes, strict=True) if code is not None]
        empty = len(codes) - len(made)
        outcomes = iter(self._run(made, None if on_done is None else lambda done: on_done(empty + done)))
        return [self.grade_of(None if code is None else next(outcomes), code) for code in codes]

    def grade_sources(
        self, problems: Sequence[Problem], sources: Sequence[str], *, on_done: Callable[[int], None] | None = None
    ) -> list[Grade]:
        """Grade programs as they stand. Raises UserError where there is no sandbox."""
        outcomes = self._run(list(zip(problems, sources, strict=True)), on_done)
        return [self.grade_of(outcome, source) for outcome, source in zip(outcomes, sources, strict=True)]

    def _run(self, made: Sequence[tuple[Problem, str]], on_done: Callable[[int], None] | None) -> list[Outcome]:
        if self.sandbox is None:
            raise UserError("running generated code is off", where=self.name, mend="--allow-code-execution")
        programs = [self.program(problem, source) for problem, source in made]
        return self.sandbox.run_all(programs, limits=self.limits(self.sandbox.limits), on_done=on_done)

    def grade_of(self, outcome: Outcome | None, code: str | None) -> Grade:
        """Return the grade of a program from its outcome."""
        correct = outcome is not None and outcome.passed
        share = 0.0 if outcome is None else outcome.share()
        return Grade(correct, 1.0 if correct else min(share, 0.99), code, {"tests": share})


class HumanEval(CodeTask):
    """The task of Chen et al. 2021 (arXiv:2107.03374): 164 functions, from signature and docstring."""

    name = "humaneval"
    hub = Hub("openai/openai_humaneval")

    def read(self, row: dict[str, Any]) -> Problem:
        """Read a row, whose columns are the same in the file of the release and in the hub's data set."""
        return self.problem(row, prompt=text(row, "prompt"), name=text(row, "entry_point"), test=text(row, "test"))

    def prompt(self, problem: Problem, style: PromptStyle) -> str:
        if style == "compact":
            return problem.fields["prompt"]
        return (
            "Complete this Python function. Answer with the whole function, and whatever it needs, in one ```python "
            f"block.\n\n```python\n{problem.fields['prompt'].strip()}\n```"
        )

    def source(self, problem: Problem, code: str) -> str:
        return after_prompt(problem.fields["prompt"], code, problem.fields["name"])

    def continued(self, problem: Problem, text: str) -> str:
        return problem.fields["prompt"] + text

    def program(self, problem: Problem, source: str) -> Program:
        """Return a program with tests that may use what the prompt defines: the prompt's text, not what a completion
        made of it.
        """
        name = problem.fields["name"]
        tests = f"{problem.fields['test']}\n\ncheck({name})\n"
        return Program(source, tests, (name,), setup=problem.fields["prompt"])


class Mbpp(CodeTask):
    """The task of Austin et al. 2021 (arXiv:2108.07732): a sentence and its tests, shown, zero-shot. The 427 sanitised
    problems by default; a file may hold the full release's 974.
    """

    name = "mbpp"
    hub = Hub("google-research-datasets/mbpp", "sanitized")

    def read(self, row: dict[str, Any]) -> Problem:
        """Read the sanitised layout (prompt, code, test_imports, test_list) or the full release's (text, code,
        test_setup_code, test_list), in the release's files and the hub's alike. The full release's challenge_test_list
        is not used, as in the paper.
        """
        shown = texts(row, "test_list")
        setup = text(row, "test_setup_code") if row.get("test_setup_code") else ""
        imports = texts(row, "test_imports") if row.get("test_imports") else []
        asked = asked_of(text(row, "code"), "\n".join(shown), "\n".join([*imports, setup]).strip())
        return self.problem(row, prompt=text(row, "text" if "text" in row else "prompt"), shown=shown, **asked)

    def names(self, problem: Problem) -> Sequence[str]:
        return problem.fields.get("names") or (problem.fields["name"],)

    def prompt(self, problem: Problem, style: PromptStyle) -> str:
        shown = "\n".join(problem.fields["shown"])
        if style == "compact":
            return f"{problem.fields['prompt']}\n{shown}"
        return (
            f"{problem.fields['prompt']} Your code must pass these tests:\n\n{shown}\n\n"
            "Answer with the function, and whatever it needs, in one ```python block."
        )

    def source(self, problem: Problem, code: str) -> str:
        return code

    def continued(self, problem: Problem, text: str) -> str:
        """Return the text, as MBPP's prompts are words, and no part of the program."""
        return text

    def program(self, problem: Problem, source: str) -> Program:
        fields = problem.fields
        source = f"{source}\n\n{fields['beside']}" if fields.get("beside") else source
        names = (*fields["names"], *fields.get("asked", ()))
        return Program(source, fields["test"], names, setup=fields["setup"])


def text(row: dict[str, Any], name: str) -> str:
    """Return a row's field that must be text. Raises TypeError for any other value."""
    value = row[name]
    if not isinstance(value, str):
        raise TypeError(f"{name} is a {type(value).__name__}, not text")
    return value


def texts(row: dict[str, Any], name: str) -> list[str]:
    """Return a row's field that must be a list of texts. Raises TypeError for any other value."""
    value = row[name]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError(f"{name} is not a list of texts")
    return value
