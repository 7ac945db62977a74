"""What a card says of evaluations: each task's scores with their intervals, and under which conditions they hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from remask.errors import UserError
from remask.evaluation.arms import ACCURACY, Arm, Evaluation, find_evaluations, load_evaluation, pool
from remask.evaluation.nats import nats_a_token
from remask.evaluation.settings import in_force
from remask.evaluation.statistics import Interval
from remask.training.card import Score, machine, settings, versions

NATS = "nats a token"


def evaluations_of(run: Path, files: Sequence[str], *, seed: int | None) -> list[Evaluation]:
    """Return the evaluations in the files, or else those in the run's folder. Raises UserError for a file that is no
    evaluation, or is one of another model: it names another folder, or a run of another seed.
    """
    if not files:
        return [one for one in find_evaluations(run) if _fault(one, run, seed) is None]
    found = [load_evaluation(path) for path in files]
    for one in found:
        if (fault := _fault(one, run, seed)) is not None:
            raise UserError(
                f"is an evaluation of {fault}, not of {run}",
                where=str(one.path),
                mend=f"evaluate this run: remask eval --model {run} --json FILE",
            )
    return found


def scores_of(evaluations: Sequence[Evaluation]) -> tuple[list[Score], list[str]]:
    """Return the scores of evaluations of one model, and a sentence on the conditions of each evaluation. Raises
    UserError where a task was evaluated more than once, since a card has one score for it.
    """
    scores: list[Score] = []
    conditions: list[str] = []
    seen: dict[str, Path] = {}
    for evaluation in evaluations:
        (arm,) = pool([evaluation]).values()
        written = []
        for task, result in evaluation.tasks.items():
            if task in seen:
                raise UserError(
                    f"{task} is evaluated twice",
                    where=f"{seen[task]} and {evaluation.path}",
                    mend="give one of the two: --evaluations FILE…",
                )
            seen[task] = evaluation.path
            scores += _scores(arm, task, result.source)
            written += [task] if result.lead == ACCURACY else []
        conditions.append(_conditions(evaluation, written))
    return scores, conditions


def _scores(arm: Arm, task: str, source: str) -> list[Score]:
    n = len(arm.problem_ids(task))
    nats = nats_a_token(arm, task)
    if nats is not None:
        text = f"{nats.mean:.3f} [{nats.low:.3f}, {nats.high:.3f}]"
        return [Score(task, source, NATS, round(nats.mean, 4), text, n)]
    found = ((metric, arm.interval(task, metric)) for metric in arm.metrics(task))
    return [Score(task, source, metric, round(100 * i.mean, 2), _percent(i), n) for metric, i in found]


def _percent(interval: Interval) -> str:
    return f"{100 * interval.mean:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _conditions(evaluation: Evaluation, written: Sequence[str]) -> str:
    """One line: the sources of the tasks, the decoding where answers were written, versions and machine."""
    sources = ", ".join(f"{task} ({result.source})" for task, result in evaluation.tasks.items())
    parts = [f"{sources}: evaluated on {machine(evaluation.hardware)}, {versions(evaluation.versions)}."]
    if written:
        parts.append(f"Decoding: {settings(in_force(evaluation.decoding))}.")
    return " ".join(parts)


def _fault(evaluation: Evaluation, run: Path, seed: Any) -> str | None:
    """What else an evaluation is of, by the model that it names and its training seed; None where it is the run's."""
    if Path(evaluation.model).name != run.resolve().name:
        return evaluation.model or "a model that it does not name"
    return f"a run of seed {evaluation.run_seed}" if evaluation.run_seed != seed else None
