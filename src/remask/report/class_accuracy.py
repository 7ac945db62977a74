"""What a run learned to predict, on the page: right tokens by class, before training and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from remask.data.token_classes import LEXICAL, POSITIONAL
from remask.evaluation.clusters import LEAST_ROWS, RowBootstrap
from remask.evaluation.statistics import Interval
from remask.report.figures import HEIGHT, INK, RULE, label_of, panel
from remask.report.runs import Run
from remask.report.words import percent, plural, signed

CLASS_INCHES = 0.13
"""The height of a method in a class of the figure, and of the room between classes."""


@dataclass(frozen=True)
class Learned:
    """A class under one method has tokens, and the shares right (None where not read) and their difference."""

    tokens: int
    before: Interval | None
    after: Interval | None
    change: Interval | None


def class_accuracy_section(runs: Sequence[Run], colours: Mapping[str, str]) -> dict[str, Any] | None:
    """Return what the page shows, or None where no run read its classes to the end."""
    read = [run for run in runs if run.class_counts is not None and run.class_counts.after is not None]
    methods = list(dict.fromkeys(run.method for run in read))
    found = {method: pooled([run for run in read if run.method == method]) for method in methods}
    names = [name for name in (*LEXICAL, *POSITIONAL) if any(name in classes for classes in found.values())]
    if not names:
        return None
    counts = [run.class_counts for run in read if run.class_counts is not None]
    return {
        "methods": methods,
        "runs": [f"{plural(sum(run.method == m for run in read), 'run')} of {m}" for m in methods],
        "rows": max(c.rows for c in counts),
        "held_out": sum(c.held_out for c in counts),
        "of": len(counts),
        "figure": _figure(names, found, read, colours),
        "classes": [
            {
                "name": name,
                "about": (LEXICAL | POSITIONAL)[name],
                "cells": [_cells(found[method].get(name)) for method in methods],
            }
            for name in names
        ],
    }


def pooled(runs: Sequence[Run]) -> dict[str, Learned]:
    """Return what these runs learned, by class. Runs that read the same rows are resampled by row; others
    side by side.
    """
    counts = [run.class_counts for run in runs if run.class_counts is not None]
    same = all(c.tokens == counts[0].tokens for c in counts)
    rows = counts[0].rows if same else sum(c.rows for c in counts)
    bootstrap = RowBootstrap(rows) if rows >= LEAST_ROWS else None
    learned = {}
    for name in dict.fromkeys(name for c in counts for name in c.tokens):
        tokens = _joined([c.tokens.get(name, [0] * c.rows) for c in counts], same)
        after = _joined([(c.after or {}).get(name, [0] * c.rows) for c in counts], same)
        # Before training is known of all runs, or nothing is said of it.
        known = all(c.before is not None for c in counts)
        before = _joined([(c.before or {}).get(name, [0] * c.rows) for c in counts], same) if known else None
        learned[name] = _learned(bootstrap, tokens, before, after)
    return learned


def _joined(by_run: Sequence[Sequence[int]], same: bool) -> np.ndarray:
    """Numbers of each row, of several runs."""
    if same:
        return np.sum([np.asarray(numbers, dtype=np.float64) for numbers in by_run], axis=0)
    return np.concatenate([np.asarray(numbers, dtype=np.float64) for numbers in by_run])


def _learned(
    bootstrap: RowBootstrap | None, tokens: np.ndarray, before: np.ndarray | None, after: np.ndarray
) -> Learned:
    count = int(tokens.sum())

    def share(right: np.ndarray | None) -> Interval | None:
        if right is None or not count:
            return None
        if bootstrap is None:
            return Interval(float(right.sum() / count), float("nan"), float("nan"), 1)
        return bootstrap.share((right, tokens))

    change = None
    if bootstrap is not None and before is not None and count:
        change = bootstrap.share_difference((after, tokens), (before, tokens))
    return Learned(count, share(before), share(after), change)


def _cells(one: Learned | None) -> dict[str, str]:
    if one is None:
        return dict.fromkeys(("tokens", "before", "after", "change"), "–")
    change = "–"
    if one.change is not None:
        mean, low, high = (signed(100 * v) for v in (one.change.mean, one.change.low, one.change.high))
        change = mean if np.isnan(one.change.low) else f"{mean} [{low}, {high}]"
    return {"tokens": f"{one.tokens:,}", "before": _share(one.before), "after": _share(one.after), "change": change}


def _share(value: Interval | None) -> str:
    return "–" if value is None else percent(value.mean)


def _figure(
    names: Sequence[str], found: Mapping[str, Mapping[str, Learned]], runs: Sequence[Run], colours: Mapping[str, str]
) -> str:
    """For each class and method a dot where the share ended, its interval, and a tick where it began."""
    methods = list(found)
    step = 1 / (len(methods) + 1)

    def draw(axes: Axes) -> None:
        for place, name in enumerate(names):
            for n, method in enumerate(methods):
                one = found[method].get(name)
                if one is None or one.after is None:
                    continue
                y = place + (n - (len(methods) - 1) / 2) * step
                if not np.isnan(one.after.low):
                    axes.plot([one.after.low, one.after.high], [y, y], color=colours[method], linewidth=1.6, alpha=0.5)
                axes.plot([one.after.mean], [y], color=colours[method], marker="o", markersize=4)
                if one.before is not None:
                    axes.plot([one.before.mean], [y], color=INK, marker="|", markersize=6, markeredgewidth=1.0)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x", color=RULE, linewidth=0.7)
        axes.set_xlim(right=1.02)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))

    height = max(HEIGHT, CLASS_INCHES * len(names) * (len(methods) + 1))
    return panel("class-accuracy", label_of("Right tokens by class", runs), "right tokens", draw, height=height)
