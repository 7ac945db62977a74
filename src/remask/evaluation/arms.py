"""Evaluation files: read, checked, and the seeds of an arm pooled.

An *arm* is one way of training (`sft`, `gift`, or `start` for the model before training); its evaluations differ in
the training seed alone. Nothing here loads torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from remask.errors import UserError
from remask.evaluation.calibration import Sureness
from remask.evaluation.settings import same_decoding
from remask.evaluation.statistics import RESAMPLES, Interval, Scores, cluster_interval, wilson
from remask.files import from_json

KIND, FORMAT = "remask.evaluation", 1
START = "start"
"""The name of the arm of the model before any training."""

ACCURACY = "accuracy"
ALL = "all tokens"
"""What stands beside the classes of tokens for all of them."""


@dataclass(frozen=True)
class Answer:
    """One graded problem of a task. `metrics` are further scores of it, as shares. nats: of an answer that was read,
    not written, its tokens and nats by class (`ALL`: of the whole answer).
    """

    id: str
    prompt: str
    completion: str
    reference: str | None
    correct: bool
    score: float
    metrics: dict[str, float]
    answer: str | None
    tokens: int | None
    confidence: Sureness | None = None
    nats: Mapping[str, tuple[int, float]] | None = None


@dataclass(frozen=True)
class TaskResult:
    """A result holds all problems of one task in one evaluation; `source` says where they came from.

    lead is the metric that the task is judged by: accuracy, but where nothing is answered (likelihoods of rows).
    """

    task: str
    source: str
    problems: tuple[Answer, ...]
    lead: str = ACCURACY

    @property
    def was_read(self) -> bool:
        """Return whether the answers were read, not written: then no decoding had a part in the scores."""
        return all(problem.nats is not None for problem in self.problems)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Return the leading metric, then the further ones that every problem has."""
        shared = [name for name in self.problems[0].metrics if all(name in p.metrics for p in self.problems)]
        return (self.lead, *(name for name in shared if name != self.lead))

    def scores(self, metric: str) -> dict[str, float]:
        """Return the score of each problem id, in the file's order."""
        if metric == ACCURACY:
            return {p.id: float(p.correct) for p in self.problems}
        return {p.id: float(p.metrics[metric]) for p in self.problems}


@dataclass(frozen=True)
class Evaluation:
    """The content of one evaluation file: one trained model, one decoding setting, any number of tasks."""

    path: Path
    model: str
    arm: str
    run_seed: int | None
    decoding: dict[str, Any]
    tasks: dict[str, TaskResult]
    versions: dict[str, Any] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    strip: dict[str, Any] | None = None

    @property
    def wrote(self) -> bool:
        """Return whether any answer was written, so that the decoding mattered."""
        return not all(result.was_read for result in self.tasks.values())


@dataclass(frozen=True)
class Arm:
    """An arm holds evaluations of one name, at most one per task and seed, on the same problems, and with the same
    decoding where answers were written.
    """

    name: str
    evaluations: tuple[Evaluation, ...]
    decoding: dict[str, Any]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Return the names of the tasks, in the order in which they came."""
        return tuple(dict.fromkeys(task for evaluation in self.evaluations for task in evaluation.tasks))

    def results(self, task: str) -> list[TaskResult]:
        """Return the task's results, one per seed, in the order of `seeds(task)`."""
        return [evaluation.tasks[task] for evaluation in self.evaluations if task in evaluation.tasks]

    def seeds(self, task: str) -> tuple[int | None, ...]:
        """Return the training seeds of a task's results."""
        return tuple(evaluation.run_seed for evaluation in self.evaluations if task in evaluation.tasks)

    def metrics(self, task: str) -> tuple[str, ...]:
        """Return the metrics that all of the task's results have, accuracy first."""
        first, *rest = self.results(task)
        return tuple(name for name in first.metrics if all(name in result.metrics for result in rest))

    def lead(self, task: str) -> str:
        """Return the metric that the task is judged by."""
        return self.results(task)[0].lead

    def problem_ids(self, task: str) -> list[str]:
        """Return the ids of a task's problems."""
        return [problem.id for problem in self.results(task)[0].problems]

    def scores(self, task: str, metric: str | None = None) -> Scores:
        """Return scores [S, P] by a metric (the leading one): rows as `seeds(task)`, columns as `problem_ids(task)`."""
        metric = metric or self.lead(task)
        ids = self.problem_ids(task)
        by_seed = [result.scores(metric) for result in self.results(task)]
        return np.array([[scores[id] for id in ids] for scores in by_seed])

    def interval(
        self, task: str, metric: str | None = None, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
    ) -> Interval:
        """Return Wilson's interval for one seed's accuracy, else the bootstrap over problems (and seeds, if
        several).
        """
        metric = metric or self.lead(task)
        scores = self.scores(task, metric)
        if metric == ACCURACY and len(scores) == 1:
            return wilson(int(scores.sum()), scores.shape[1], level)
        return cluster_interval(scores, level, seed=seed, resamples=resamples)


def load_evaluation(path: Path | str) -> Evaluation:
    """Read and check one evaluation file. Raises UserError naming the file and what is wrong in it."""
    path = Path(path)
    data = read_json(path)
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise UserError("not an evaluation of Remask", where=str(path), mend="give a file written by `remask eval`")
    return parse_evaluation(data, path)


def read_json(path: Path) -> Any:
    """Return the JSON of a file. Raises UserError where it cannot be read or is not JSON."""
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=str(path), mend="check the path") from error
    except ValueError as error:
        raise UserError(f"is not JSON ({error})", where=str(path), mend="write it again") from error


def parse_evaluation(data: Mapping[str, Any], path: Path) -> Evaluation:
    """Return the typed form of an evaluation file's content; `path` is only for messages and for the record."""
    if data.get("format", FORMAT) != FORMAT:
        raise UserError(
            f"evaluation format {data['format']!r} is not known (this version reads {FORMAT})",
            where=str(path),
            mend="use the version of remask that wrote it",
        )
    try:
        seed = data.get("run_seed")
        tasks = {str(name): _task(str(name), block, path) for name, block in data["tasks"].items()}
        evaluation = Evaluation(
            path=path,
            model=str(data.get("model", "")),
            arm=str(data["arm"]),
            run_seed=None if seed is None else int(seed),
            decoding=dict(data["decoding"]),
            tasks=tasks,
            versions=dict(data.get("versions") or {}),
            hardware=dict(data.get("hardware") or {}),
            seconds=None if data.get("seconds") is None else float(data["seconds"]),
            strip=None if data.get("strip") is None else dict(data["strip"]),
        )
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"is not a whole evaluation ({error!r})", where=str(path), mend="evaluate again") from error
    if not tasks:
        raise UserError("holds no task", where=str(path), mend="evaluate again")
    return evaluation


def _task(name: str, block: Mapping[str, Any], path: Path) -> TaskResult:
    lead = str(block.get("lead", ACCURACY))
    answers = tuple(_answer(problem, lead) for problem in block["problems"])
    if not answers:
        raise UserError(f"task {name} holds no problems", where=str(path), mend="evaluate again")
    if len({answer.id for answer in answers}) < len(answers):
        raise UserError(f"task {name} holds a problem id twice", where=str(path), mend="evaluate again")
    return TaskResult(name, str(block.get("source", "")), answers, lead)


def _answer(problem: Mapping[str, Any], lead: str) -> Answer:
    correct = problem["correct"]
    if lead != ACCURACY and correct is None:
        correct, _ = False, problem["metrics"][lead]
    if not isinstance(correct, bool):
        raise ValueError(f"correct is {correct!r}, not true or false")
    reference, answer, tokens = problem.get("reference"), problem.get("answer"), problem.get("tokens")
    return Answer(
        id=str(problem["id"]),
        prompt=str(problem.get("prompt", "")),
        completion=str(problem.get("completion", "")),
        reference=None if reference is None else str(reference),
        correct=correct,
        score=float(problem.get("score", correct)),
        metrics={str(key): float(value) for key, value in (problem.get("metrics") or {}).items()},
        answer=None if answer is None else str(answer),
        tokens=None if tokens is None else int(tokens),
        confidence=Sureness.parse(problem.get("confidence")),
        nats=_nats(problem),
    )


def _nats(problem: Mapping[str, Any]) -> Mapping[str, tuple[int, float]] | None:
    if problem.get("elbo") is None:
        return None
    classes = {str(name): (int(n), float(nats)) for name, (n, nats) in (problem.get("classes") or {}).items()}
    return {ALL: (int(problem["tokens"]), -float(problem["elbo"])), **classes}


def find_evaluations(run_dir: Path | str) -> list[Evaluation]:
    """Return the evaluation files directly inside a run's folder, by name; other JSON files are passed over."""
    found = []
    for path in sorted(Path(run_dir).glob("*.json")):
        data = read_json(path)
        if isinstance(data, dict) and data.get("kind") == KIND:
            found.append(parse_evaluation(data, path))
    return found


def pool(evaluations: Iterable[Evaluation], *, allow_different_decoding: bool = False) -> dict[str, Arm]:
    """Gather evaluations into arms by name: `start` first, then `sft`, then as they come; seeds in rising order.

    Raises UserError where one arm holds a task and seed twice, or where its evaluations differ in problems or decoding.
    """
    by_arm: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        by_arm.setdefault(evaluation.arm, []).append(evaluation)
    order = sorted(by_arm, key=lambda name: {START: 0, "sft": 1}.get(name, 2))
    return {name: _arm(name, by_arm[name], allow_different_decoding) for name in order}


def _arm(name: str, evaluations: Sequence[Evaluation], allow_different_decoding: bool) -> Arm:
    ordered = tuple(sorted(evaluations, key=lambda e: -1 if e.run_seed is None else e.run_seed))
    writers = [evaluation for evaluation in ordered if evaluation.wrote]
    first_of_task: dict[str, Evaluation] = {}
    seen: dict[tuple[str, int | None], Path] = {}
    for evaluation in ordered:
        if evaluation.wrote and not allow_different_decoding:
            same_decoding(writers[0].decoding, evaluation.decoding, f"{writers[0].path} and {evaluation.path}")
        for task, result in evaluation.tasks.items():
            key = (task, evaluation.run_seed)
            if key in seen:
                raise UserError(
                    f"{name} has {task} with training seed {evaluation.run_seed} twice",
                    where=f"{seen[key]} and {evaluation.path}",
                    mend="give one of the two",
                )
            seen[key] = evaluation.path
            first = first_of_task.setdefault(task, evaluation)
            same_problems(task, first.tasks[task], result, f"{first.path} and {evaluation.path}")
    return Arm(name, ordered, (writers or ordered)[0].decoding)


def same_problems(task: str, a: TaskResult, b: TaskResult, where: str) -> None:
    """Raises UserError where two results are of different problems, with one of them for example."""
    left, right = {p.id for p in a.problems}, {p.id for p in b.problems}
    if left != right:
        example = min(left ^ right)
        raise UserError(
            f"not evaluated on the same {task} problems: {len(left)} and {len(right)}, "
            f"{len(left & right)} of them shared (for example {example!r} is on one side only)",
            where=where,
            mend="evaluate both with the same source, count and seed of problems",
        )
