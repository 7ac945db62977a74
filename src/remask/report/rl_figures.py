"""What is drawn of reinforcement learning and preference runs beside the curves that every run has."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from remask.report.figures import MUTED, as_share, dot_if_alone, finish, mean_to_max, smoothed, thinned, trend
from remask.report.runs import Run

FREE_OF_SEED = re.compile(r"^(seed|output_dir|resume|overwrite|device):.*\n?", re.MULTILINE)
"""The lines of config.yaml in which the seeds of one method may differ."""


def alike(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the runs, sorted into those that differ in their seed alone: no others may be averaged."""
    parts: dict[str, list[Run]] = {}
    for run in runs:
        record = [run.method, *(run.info.get(key) for key in ("objective", "model", "task", "data"))]
        settings = json.dumps(record, sort_keys=True, default=str) + FREE_OF_SEED.sub("", run.config)
        parts.setdefault(settings, []).append(run)
    return list(parts.values())


def mean_where_all(runs: Sequence[Run], key: str) -> tuple[list[float], list[float]]:
    """Return (steps, means) over the steps at which every run that logged the quantity has it.

    Elsewhere the mean would jump when a run joins or leaves.
    """
    series = [dict(zip(*run.series(key), strict=True)) for run in runs]
    series = [values for values in series if values]
    steps = sorted(set.intersection(*(set(values) for values in series))) if series else []
    return steps, [float(np.mean([values[step] for values in series])) for step in steps]


def by_seed(axes: Axes, runs: Sequence[Run], colours: Mapping[str, str], key: str) -> None:
    """Draw the mean of a method's runs with a marker at each value, every run thin where there are several."""
    everything: list[float] = []
    for group in alike(runs):
        steps, means = mean_where_all(group, key)
        alone = len(group) == 1
        for run in group:
            own_steps, values = run.series(key)
            everything += values
            # A run that shares no step with the others is in no mean: it is drawn as one alone.
            width, alpha = (1.3, 1.0) if not steps else (0.7, 0.5)
            if not alone:
                axes.plot(
                    own_steps,
                    values,
                    color=colours[run.method],
                    linewidth=width,
                    alpha=alpha,
                    **dot_if_alone(own_steps),
                )
        axes.plot(steps, means, color=colours[group[0].method], linewidth=1.8, marker="o", markersize=3.5)
    finish(axes, everything)


def accuracy(axes: Axes, runs: Sequence[Run], colours: Mapping[str, str], key: str) -> None:
    """Draw `by_seed`, and dashed the mean of the score, which is higher where answers get partial credit."""
    score = key.removesuffix("_accuracy") + "_score"
    for group in alike(runs):
        steps, means = mean_where_all(group, score)
        colour = colours[group[0].method]
        axes.plot(steps, means, color=colour, linewidth=1.1, linestyle=(0, (3, 2)), **dot_if_alone(steps))
    by_seed(axes, runs, colours, key)
    as_share(axes)


def share(axes: Axes, runs: Sequence[Run], colours: Mapping[str, str], key: str) -> None:
    """Draw the `trend` of a share, on an axis from 0 to 100 %."""
    trend(axes, runs, colours, key)
    as_share(axes, -0.02, 1.02)


def ratio(axes: Axes, runs: Sequence[Run], colours: Mapping[str, str], key: str) -> None:
    """Draw the mean ratio up to the largest, and a line at 1, where nothing has moved."""
    axes.axhline(1.0, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
    mean_to_max(axes, runs, colours, key)


def clipped(axes: Axes, runs: Sequence[Run], colours: Mapping[str, str], key: str) -> None:
    """Draw moving averages of the shares clipped from above (line) and from below (dashed)."""
    for run in runs:
        for name, style in ((key, "-"), ("clip_low", (0, (3, 2)))):
            steps, values = run.series(name)
            if steps:
                average = smoothed(values, max(3, len(values) // 10))
                axes.plot(
                    *thinned(steps, average),
                    color=colours[run.method],
                    linewidth=1.3,
                    linestyle=style,
                    **dot_if_alone(steps),
                )
    as_share(axes, low=0.0)


def train_and_held_out(axes: Axes, runs: Sequence[Run], colours: Mapping[str, str], key: str) -> None:
    """Draw the `trend`, and the same quantity on held-out pairs (`eval_<name>`) as a dashed line with markers."""
    trend(axes, runs, colours, key)
    held_out = f"eval_{key}"
    for run in runs:
        steps, values = run.series(held_out)
        axes.plot(
            steps, values, color=colours[run.method], linewidth=1.1, linestyle=(0, (3, 2)), marker="o", markersize=3.5
        )


def train_and_held_out_share(axes: Axes, runs: Sequence[Run], colours: Mapping[str, str], key: str) -> None:
    """Draw `train_and_held_out` of a share, on an axis in percent."""
    train_and_held_out(axes, runs, colours, key)
    as_share(axes)
