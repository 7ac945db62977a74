"""The tables of scores and differences, and the answers behind them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from remask.evaluation.arms import START, Answer, Arm, Evaluation, pool
from remask.evaluation.compare import TaskComparison, compare_arms
from remask.evaluation.settings import comparable_decoding, in_force
from remask.evaluation.statistics import Difference, Interval
from remask.report.words import distinct, p_value, pairs, percent, signed, span

LEVEL = 0.95
FEW_SEEDS = 5
"""Below this number of seeds the page says that the spread over seeds is poorly measured (see the head of
evaluation/statistics.py)."""


@dataclass(frozen=True)
class Group:
    """A group holds arms that may be compared: one task, one set of problems, one decoding (none where answers were
    read, not written).
    """

    task: str
    source: str
    arms: dict[str, Arm]

    @property
    def baseline(self) -> Arm:
        """Return `sft` where something else was trained too, else the first arm (the starting model where there is
        one).
        """
        others = [name for name in self.arms if name not in (START, "sft")]
        return self.arms["sft"] if "sft" in self.arms and others else next(iter(self.arms.values()))


def comparable_groups(evaluations: Iterable[Evaluation]) -> list[Group]:
    """Return evaluations sorted into what may be compared; the same task decoded differently makes another group."""
    parts: dict[tuple[str, str, frozenset[str]], list[Evaluation]] = {}
    for e in evaluations:
        for task, result in e.tasks.items():
            alone = replace(e, decoding={} if result.was_read else e.decoding, tasks={task: result}, strip=None)
            decoding = json.dumps(comparable_decoding(alone.decoding), sort_keys=True, default=str)
            key = (task, decoding, frozenset(p.id for p in result.problems))
            parts.setdefault(key, []).append(alone)
    return [Group(task, m[0].tasks[task].source, pool(m)) for (task, *_), m in parts.items()]


def benchmark(group: Group) -> dict[str, Any]:
    """Return what the template needs for one group: scores, differences to the baseline, verdicts, conditions."""
    task, baseline, start = group.task, group.baseline, group.arms.get(START)
    lead = baseline.lead(task)
    metrics = list(dict.fromkeys(m for arm in group.arms.values() for m in arm.metrics(task) if m != lead))
    intervals = {name: arm.interval(task) for name, arm in group.arms.items()}
    low, high = _axis(intervals.values())
    rows = [
        {
            "arm": name,
            "mean": percent(interval.mean),
            "interval": span(interval),
            "bar": _bar(interval, low, high),
            "seeds": _seeds(group.arms[name].seeds(task)),
            "metrics": [_metric(group.arms[name], task, metric) for metric in metrics],
        }
        for name, interval in intervals.items()
    ]
    problems = next(iter(intervals.values())).n
    compared: list[tuple[str, TaskComparison]] = []
    if problems > 1:
        # The trained arms are the question; the starting model is only for scale, and comes last.
        for name, arm in sorted(group.arms.items(), key=lambda item: item[0] == START):
            if arm is not baseline:
                begin = None if start in (arm, baseline) else start
                compared += [(name, c) for c in compare_arms(baseline, arm, begin, level=LEVEL)]
    reach = max((abs(end) for _, c in compared for end in (c.difference.low, c.difference.high)), default=0.0)
    reach = max(0.05, math.ceil(20 * reach - 1e-9) / 20)
    members = [e for arm in group.arms.values() for e in arm.evaluations]
    decoding = pairs(in_force(comparable_decoding(members[0].decoding)))
    return {
        "task": task,
        "source": group.source,
        "problems": problems,
        "baseline": baseline.name,
        "lead": lead,
        "metrics": metrics,
        "rows": rows,
        "differences": [_difference(name, c, reach) for name, c in compared],
        "verdicts": [_verdict(group, name, c) for name, c in compared if name != START and c.metric == lead],
        "one_seed": any(len(arm.results(task)) == 1 for name, arm in group.arms.items() if name != START),
        "few_seeds": any(1 < len(arm.results(task)) < FEW_SEEDS for arm in group.arms.values()),
        "gain": start is not None and baseline is not start,
        "axis": (percent(low, 0), percent(high, 0)),
        "reach": f"{100 * reach:.0f}",
        "facts": [
            *([("decoding", decoding)] if decoding else []),
            *(("hardware", values) for values in distinct(e.hardware for e in members)),
            *(("versions", values) for values in distinct(e.versions for e in members)),
        ],
    }


def _metric(arm: Arm, task: str, metric: str) -> dict[str, str] | None:
    if metric not in arm.metrics(task):
        return None
    interval = arm.interval(task, metric)
    return {"mean": percent(interval.mean), "interval": span(interval)}


def _bar(interval: Interval | Difference, low: float, high: float) -> dict[str, str]:
    """Where an interval and its mean lie on an axis from low to high, in percent of its length."""
    ends = {"left": interval.low, "dot": interval.mean, "right": interval.high}
    return {name: f"{100 * (value - low) / (high - low):.2f}" for name, value in ends.items()}


def _axis(intervals: Iterable[Interval]) -> tuple[float, float]:
    """A range in whole tens of percent around all intervals, at least twenty points wide."""
    intervals = list(intervals)
    low = math.floor(10 * min(i.low for i in intervals)) / 10
    high = math.ceil(10 * max(i.high for i in intervals) - 1e-9) / 10
    if high - low < 0.2:
        low, high = (low, low + 0.2) if low + 0.2 <= 1.0 else (0.8, 1.0)
    return max(0.0, low), min(1.0, high)


def _verdict(group: Group, name: str, comparison: TaskComparison) -> dict[str, Any]:
    difference, other = comparison.difference, group.baseline.name
    if not difference.found:
        words = f"No difference found between {name} and {other}"
    else:
        words = f"{name} scores {'higher' if difference.mean > 0 else 'lower'} than {other}"
    return {
        "task": group.task,
        "arm": name,
        "metric": comparison.metric,
        "words": words,
        "found": difference.found,
        "points": signed(100 * difference.mean),
        "scores": f"{percent(comparison.candidate.mean)} % against {percent(comparison.baseline.mean)} %",
        "interval": f"{signed(100 * difference.low)} to {signed(100 * difference.high)}",
        "p": p_value(difference.p_value),
        "n": difference.n,
        "seeds": difference.seeds,
    }


def tally(verdicts: Sequence[dict[str, Any]]) -> str:
    """Return one sentence that says how many of the comparisons found what."""
    higher = sum(v["found"] and v["points"].startswith("+") for v in verdicts)
    found = sum(v["found"] for v in verdicts)
    return (
        f"{len(verdicts)} comparisons with the baseline: {higher} higher, {found - higher} lower, "
        f"{len(verdicts) - found} with no difference found."
    )


def _difference(name: str, comparison: TaskComparison, reach: float) -> dict[str, Any]:
    difference, gain = comparison.difference, comparison.gain
    return {
        "arm": name,
        "metric": comparison.metric,
        "points": signed(100 * difference.mean),
        "interval": f"{signed(100 * difference.low)} to {signed(100 * difference.high)}",
        "bar": _bar(difference, -reach, reach),
        "p": p_value(difference.p_value),
        "words": ("higher" if difference.mean > 0 else "lower") if difference.found else "no difference found",
        "over_score": "–" if gain.over_score is None else f"{signed(100 * gain.over_score)} %",
        "over_delta": "–" if gain.over_delta is None else f"{signed(100 * gain.over_delta, 0)} %",
    }


def _seeds(seeds: Sequence[int | None]) -> str:
    named = [str(seed) for seed in seeds if seed is not None]
    return f"{len(named)} ({', '.join(named)})" if named else "–"


def completions(group: Group) -> dict[str, Any]:
    """Return for each arm the first right and the first wrong answer, in the order of the problems: they are shown, not
    chosen.
    """
    rows = []
    for name, arm in group.arms.items():
        result, seed = arm.results(group.task)[0], arm.seeds(group.task)[0]
        right = next((p for p in result.problems if p.correct), None)
        wrong = next((p for p in result.problems if not p.correct), None)
        rows.append({"arm": name, "seed": seed, "cards": [_card(p) for p in (right, wrong) if p is not None]})
    return {"task": group.task, "source": group.source, "rows": rows}


def _card(problem: Answer) -> dict[str, Any]:
    return {
        "id": problem.id,
        "correct": problem.correct,
        "prompt": problem.prompt,
        "completion": problem.completion,
        "answer": problem.answer,
        "reference": problem.reference,
        "tokens": problem.tokens,
    }
