"""A study as one figure: a row for each arm, or a curve for each where the one axis is a number."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from remask.evaluation.arms import START
from remask.files import write_atomically
from remask.study.results import Found, Levels

SETTINGS: dict[str, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
LEAST_POINTS = 3
"""The least number of points of a curve; fewer numbers are levels like any others."""


def draw(name: str, baseline: str, found: Sequence[Found], files: dict[str, Path]) -> None:
    """Draw each arm's accuracy with its interval, as SVG and PNG."""
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": name}):
        figure = curves(found) if numbers(found) else rows(baseline, found)
        _save(figure, files["svg"], metadata={"Date": None})
        _save(figure, files["png"], dpi=150)


def _save(figure: Figure, path: Path, **options: Any) -> None:
    image = io.BytesIO()
    figure.savefig(image, format=path.suffix[1:], bbox_inches="tight", **options)
    write_atomically(path, image.getvalue())


def numbers(found: Sequence[Found]) -> list[float] | None:
    """Return the levels of the only axis, where all are numbers and there are enough for a curve; else None."""
    levels = list(dict.fromkeys(tuple(f.levels.values()) for f in found))
    try:
        values = [float(level) for (level,) in levels]
    except ValueError:
        return None
    return values if len(values) >= LEAST_POINTS else None


def curves(found: Sequence[Found]) -> Figure:
    """Draw a panel for each task: accuracy by the axis, a line for each arm."""
    tasks = list(dict.fromkeys(f.task for f in found))
    (axis,) = found[0].levels
    figure = Figure(figsize=(4.2 * len(tasks), 3.2), layout="constrained")
    for panel, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for k, arm in enumerate(dict.fromkeys(f.arm for f in found)):
            own = sorted((f for f in found if f.task == task and f.arm == arm), key=lambda f: float(f.levels[axis]))
            x = [float(f.levels[axis]) for f in own]
            style = {"color": "0.6", "ls": ":"} if arm == START else {"color": f"C{k % 10}", "marker": "o", "ms": 4}
            panel.errorbar(x, *_bars(own), lw=1.3, elinewidth=1, label=arm, **style)
        values = numbers(found) or []
        if min(values) > 0 and max(values) > 10 * min(values):
            panel.set_xscale("log")
        panel.set_xticks(sorted(values), [f"{value:g}" for value in sorted(values)], minor=False)
        panel.minorticks_off()
        panel.set_xlabel(axis)
        panel.set_title(task, fontsize=10)
    figure.axes[0].set_ylabel("accuracy, % [95 %]")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def rows(baseline: str, found: Sequence[Found]) -> Figure:
    """Draw a panel for each level and task: arms from top to bottom, filled where a difference to the baseline (dashed)
    was found.
    """
    panels: dict[tuple[Levels, str], list[Found]] = {}
    for f in found:
        panels.setdefault((tuple(f.levels.items()), f.task), []).append(f)
    tasks = list(dict.fromkeys(task for _, task in panels))
    places = list(dict.fromkeys(place for place, _ in panels))
    arms = list(dict.fromkeys(f.arm for f in found))
    whole = len(panels) == len(places) * len(tasks)
    columns = len(tasks) if whole else 1  # where levels differ in tasks, their panels stand below each other
    lines = len(panels) // columns
    figure = Figure(figsize=(1.2 + 3.2 * columns, lines * (0.7 + 0.22 * len(arms))), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharex="col" if whole else False)
    order = [(place, task) for place in places for task in tasks if (place, task) in panels]
    for i, (panel, (place, task)) in enumerate(zip(grid.flat, order, strict=True)):
        _panel(panel, baseline, panels[place, task], arms, names=i % columns == 0)
        panel.set_title(", ".join([task, *map(" ".join, place)]), fontsize=9, loc="left")
    for panel in grid[-1]:
        panel.set_xlabel("accuracy, % [95 %]")
    return figure


def _panel(panel: Axes, baseline: str, own: Sequence[Found], arms: Sequence[str], *, names: bool) -> None:
    for f in own:
        (mean,), bars = _bars([f])
        colour = "0.5" if f.arm == START else "black" if f.arm == baseline else "C0"
        full = f.against is None or f.found
        face = colour if full else "white"
        panel.errorbar([mean], [arms.index(f.arm)], xerr=bars, fmt="o", ms=5, lw=1.3, color=colour, mfc=face)
        if f.arm == baseline:
            panel.axvline(mean, color="0.7", ls="--", lw=0.8, zorder=0)
    panel.set_ylim(len(arms) - 0.5, -0.5)
    panel.set_yticks(range(len(arms)), arms if names else [""] * len(arms))


def _bars(own: Sequence[Found]) -> tuple[list[float], list[list[float]]]:
    """(means, [below, above]) in percent."""
    means = [100 * f.score.mean for f in own]
    below = [100 * (f.score.mean - f.score.low) for f in own]
    return means, [below, [100 * (f.score.high - f.score.mean) for f in own]]
