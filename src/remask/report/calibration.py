"""Confidence on the page: for each task a reliability curve of every arm, and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from remask.evaluation.arms import Arm
from remask.evaluation.calibration import SCORES, Calibration, calibration
from remask.evaluation.statistics import Interval
from remask.report.figures import MUTED, as_share, panel
from remask.report.results import LEVEL, Group
from remask.report.words import percent, signed

ROOM = 1.06
"""The factor by which the figure is wider than the largest claim."""


def calibration_section(groups: Sequence[Group], colours: Mapping[str, str]) -> tuple[dict[str, Any] | None, list[str]]:
    """Return what the page shows of the answers' confidence (None: nothing), and a line for what was not recorded."""
    tasks, lacking = [], []
    for number, group in enumerate(groups):
        found = {name: of_arm(arm, group.task) for name, arm in group.arms.items()}
        lacking += [f"{name} on {group.task}" for name, arm in group.arms.items() if not recorded(arm, group.task)]
        known = {name: one for name, one in found.items() if one is not None}
        if known:
            tasks.append(
                {
                    "task": group.task,
                    "source": group.source,
                    "arms": list(known),
                    "figure": _figure(f"calibration-{number}", group.task, known, colours),
                    "rows": [{"arm": name, **_row(one)} for name, one in known.items()],
                }
            )
    missing = [f"Calibration of {', '.join(lacking)}: confidence is not recorded."] if lacking else []
    return ({"tasks": tasks, "scores": SCORES} if tasks else None), missing


def recorded(arm: Arm, task: str) -> bool:
    """Return whether every answer has its confidence."""
    return all(problem.confidence is not None for result in arm.results(task) for problem in result.problems)


def of_arm(arm: Arm, task: str) -> Calibration | None:
    """Return the calibration of an arm's answers, or None where an answer's confidence was not recorded, or for a
    single problem.
    """
    if not recorded(arm, task):
        return None
    ids, sure = arm.problem_ids(task), []
    for result in arm.results(task):
        by_id = {problem.id: problem.confidence for problem in result.problems}
        sure.append([one for id in ids if (one := by_id[id]) is not None])
    return calibration(arm.scores(task), sure, level=LEVEL)


def _row(found: Calibration) -> dict[str, Any]:
    excess = found.excess
    return {
        "answers": f"{found.answers:,}",
        "claimed": percent(found.claimed),
        "excess": f"{signed(100 * excess.mean)} [{signed(100 * excess.low)}, {signed(100 * excess.high)}]",
        "error": f"{percent(found.error)} ({percent(found.chance)})",
        "auc": [_auc(found.auc[name]) for name in SCORES],
    }


def _auc(value: Interval | None) -> str:
    if value is None:
        return "–"
    if np.isnan(value.low):
        return f"{value.mean:.2f}"
    return f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]"


def _figure(name: str, task: str, found: Mapping[str, Calibration], colours: Mapping[str, str]) -> str:
    """A point to each bin, its interval as a line through it; dotted: as claimed."""

    def draw(axes: Axes) -> None:
        right_end = min(1.0, ROOM * max(one.claimed for c in found.values() for one in c.bins) or 1.0)
        axes.plot([0, right_end], [0, right_end], color=MUTED, linewidth=1.0, linestyle=":")
        for arm, one in found.items():
            x, y = [b.claimed for b in one.bins], [b.right.mean for b in one.bins]
            ends = [[b.right.low for b in one.bins], [b.right.high for b in one.bins]]
            axes.vlines(x, *ends, color=colours[arm], linewidth=1.0, alpha=0.45)
            axes.plot(x, y, color=colours[arm], linewidth=1.4, marker="o", markersize=4)
        as_share(axes, -0.02, 1.02)
        axes.set_xlim(0.0, right_end)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))

    label = f"Share of answers to {task} that are right, by the probability of their final answer: {', '.join(found)}"
    return panel(name, label, "probability of the final answer, when it was revealed", draw)
