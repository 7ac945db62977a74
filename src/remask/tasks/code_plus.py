"""HumanEval+ and MBPP+ (Liu et al. 2023, arXiv:2305.01210): the same problems with some eighty times the tests.

Two layouts are read. EvalPlus's own files hold inputs, and are graded by its protocol (`evalplus`): `metrics["base"]`
is 1 where the original benchmark's tests pass, and `correct` asks for those and the extra ones. The hub's data sets
hold a test script with inputs and answers in it, which is run as it stands; it does not tell the two kinds of test
apart, so `base` then equals `correct`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from remask.sandbox import Limits, Outcome, Program
from remask.tasks import evalplus
from remask.tasks.base import Grade, Hub, Problem
from remask.tasks.code import CodeTask, HumanEval, Mbpp, text, texts
from remask.tasks.mbpp_tests import asked_of


class EvalPlusTask(CodeTask):
    """A task of EvalPlus: its programs are compared with the reference on many inputs."""

    metrics: ClassVar[tuple[str, ...]] = ("tests", "base")

    def limits(self, limits: Limits) -> Limits:
        """Return higher limits than usual: of MBPP+ one reference takes 20 s and one needs 700 MB.

        A call is bounded by what the reference took for it, so that a program that hangs ends early all the same.
        """
        return replace(
            limits,
            wall_seconds=max(limits.wall_seconds, 120.0),
            cpu_seconds=max(limits.cpu_seconds, 90),
            memory_mb=max(limits.memory_mb, 2048),
        )

    def inputs(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of a row in EvalPlus's layout."""
        return {
            "name": text(row, "entry_point"),
            "reference": text(row, "prompt") + text(row, "canonical_solution"),
            "base": list(row["base_input"]),
            "plus": list(row["plus_input"]),
            "atol": float(row["atol"]),
        }

    def against_reference(self, problem: Problem, source: str) -> Program:
        """Return a program that is compared with the problem's reference."""
        fields = problem.fields
        name = fields["name"]
        data = {key: fields[key] for key in ("task_id", "base", "plus", "atol")}
        # The stand-in's name is freed first: the script below is not to meet a function called, say, `sum`.
        tests = (
            f"candidate = globals().pop({name!r})\n{script()}\n"
            f"run(DATA, {name!r}, reference[{name!r}], candidate, record, limit, alive)\n"
        )
        return Program(source, tests, (name,), setup=fields["reference"], data=data)

    def grade_of(self, outcome: Outcome | None, code: str | None) -> Grade:
        grade = super().grade_of(outcome, code)
        base = grade.correct or (outcome is not None and "base" in outcome.groups and outcome.share("base") == 1.0)
        return replace(grade, metrics=grade.metrics | {"base": float(base)})


class HumanEvalPlus(EvalPlusTask, HumanEval):
    """The task HumanEval with EvalPlus's further inputs."""

    name = "humaneval_plus"
    hub = Hub("evalplus/humanevalplus")

    def read(self, row: dict[str, Any]) -> Problem:
        if "plus_input" in row:
            return self.problem(row, prompt=text(row, "prompt"), **self.inputs(row))
        return super().read(row)

    def program(self, problem: Problem, source: str) -> Program:
        if "plus" in problem.fields:
            return self.against_reference(problem, source)
        return super().program(problem, source)


class MbppPlus(EvalPlusTask, Mbpp):
    """The task MBPP with EvalPlus's further inputs."""

    name = "mbpp_plus"
    hub = Hub("evalplus/mbppplus")

    def read(self, row: dict[str, Any]) -> Problem:
        if "plus_input" not in row:
            asked = asked_of(text(row, "code"), text(row, "test"))
            return self.problem(row, prompt=text(row, "prompt"), shown=texts(row, "test_list"), **asked)
        # The prompt is a docstring: a sentence or more, then one of the tests.
        lines = text(row, "prompt").strip().strip('"').strip().split("\n")
        first = next((number for number, line in enumerate(lines) if line.startswith("assert")), len(lines))
        return self.problem(row, prompt="\n".join(lines[:first]), shown=lines[first:], **self.inputs(row))

    def program(self, problem: Problem, source: str) -> Program:
        if "plus" in problem.fields:
            return self.against_reference(problem, source)
        return super().program(problem, source)


@cache
def script() -> str:
    """Return the program of the comparison that runs in the sandbox."""
    return Path(evalplus.__file__).read_text(encoding="utf-8")
