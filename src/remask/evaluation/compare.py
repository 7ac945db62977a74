"""Two arms compared problem by problem: on which tasks, whether they can be, and what the difference is."""

from __future__ import annotations

import os
from dataclasses import dataclass

from remask.errors import UserError
from remask.evaluation.arms import Arm, same_problems
from remask.evaluation.settings import same_decoding
from remask.evaluation.statistics import (
    RESAMPLES,
    Difference,
    Interval,
    RelativeGain,
    paired_difference,
    relative_gain,
)


@dataclass(frozen=True)
class TaskComparison:
    """A comparison of one metric of one task in two arms; `gain` has a second meaning only where a starting model was
    given.
    """

    task: str
    metric: str
    baseline: Interval
    candidate: Interval
    difference: Difference
    gain: RelativeGain
    leads: bool
    """True where the metric is the one that the task is judged by."""


def compare_arms(
    baseline: Arm,
    candidate: Arm,
    start: Arm | None = None,
    *,
    allow_different_decoding: bool = False,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[TaskComparison]:
    """Return candidate − baseline for each task and metric both arms have, paired by problem (`unshared` names the
    others).

    Seeds are paired too where both sides were trained with the same ones. Raises UserError where the arms share no
    task, answered different problems, or decoded differently (unless allowed, or where all answers were only read),
    saying what differs.
    """
    where = " and ".join(told_apart(baseline, candidate))
    tasks = [task for task in baseline.tasks if task in candidate.tasks]
    if not tasks:
        raise UserError(
            f"no task in common ({', '.join(baseline.tasks)} against {', '.join(candidate.tasks)})",
            where=where,
            mend="evaluate both on the same tasks",
        )
    allow_different_decoding |= all(_was_read(baseline, task) for task in tasks)
    if not allow_different_decoding:
        same_decoding(baseline.decoding, candidate.decoding, where)
    comparisons = []
    for task in tasks:
        same_problems(task, baseline.results(task)[0], candidate.results(task)[0], where)
        column = {id: position for position, id in enumerate(candidate.problem_ids(task))}
        order = [column[id] for id in baseline.problem_ids(task)]
        paired_seeds = baseline.seeds(task) == candidate.seeds(task)
        begin = _start_result(start, baseline, task, allow_different_decoding)
        for metric in baseline.metrics(task):
            if metric not in candidate.metrics(task):
                continue
            b, c = baseline.scores(task, metric), candidate.scores(task, metric)[:, order]
            from_start = None if begin is None or metric not in begin.metrics(task) else begin.scores(task, metric)
            comparisons.append(
                TaskComparison(
                    task=task,
                    metric=metric,
                    baseline=baseline.interval(task, metric, level=level, resamples=resamples, seed=seed),
                    candidate=candidate.interval(task, metric, level=level, resamples=resamples, seed=seed),
                    difference=paired_difference(
                        c, b, level=level, resamples=resamples, seed=seed, paired_seeds=paired_seeds
                    ),
                    gain=relative_gain(
                        float(c.mean()), float(b.mean()), None if from_start is None else float(from_start.mean())
                    ),
                    leads=metric == baseline.lead(task),
                )
            )
    return comparisons


def _was_read(arm: Arm, task: str) -> bool:
    """Whether a task's answers were read, not written: then no decoding had a part in its scores."""
    return all(result.was_read for result in arm.results(task))


def told_apart(a: Arm, b: Arm) -> tuple[str, str]:
    """Return names for two arms that differ: the arms' names; where they are equal, each with its first file, from
    where the paths part.
    """
    if a.name != b.name:
        return a.name, b.name
    paths = [arm.evaluations[0].path.resolve() for arm in (a, b)]
    folder = os.path.commonpath([path.parent for path in paths])
    first, second = (f"{a.name} ({path.relative_to(folder)})" for path in paths)
    return first, second


def unshared(a: Arm, b: Arm) -> tuple[list[str], list[str]]:
    """Return the tasks that a alone has, and those that b alone has."""
    return [task for task in a.tasks if task not in b.tasks], [task for task in b.tasks if task not in a.tasks]


def _start_result(start: Arm | None, baseline: Arm, task: str, allow_different_decoding: bool) -> Arm | None:
    """The starting model where it answered this task too. Raises UserError where it did so under other conditions."""
    if start is None or task not in start.tasks:
        return None
    where = " and ".join(told_apart(start, baseline))
    if not allow_different_decoding and not _was_read(baseline, task):
        same_decoding(start.decoding, baseline.decoding, where)
    same_problems(task, start.results(task)[0], baseline.results(task)[0], where)
    return start
