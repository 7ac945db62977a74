"""How numbers, settings and names are written on the page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from remask.evaluation.arms import START, Evaluation
from remask.evaluation.statistics import Interval
from remask.report.runs import Run


def method_order(runs: Sequence[Run], evaluations: Sequence[Evaluation]) -> list[str]:
    """Return methods and arms in the order of the page: `start`, `sft`, then as they come."""
    names = dict.fromkeys([*(run.method for run in runs), *(e.arm for e in evaluations)])
    return sorted(names, key=lambda name: {START: 0, "sft": 1}.get(name, 2))


def pairs(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Return settings as (name, value) texts, without those that are null."""
    return [(str(key), _value(value)) for key, value in values.items() if value is not None]


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def distinct(records: Iterable[dict[str, Any]]) -> list[list[tuple[str, str]]]:
    """Return the different records among these, each as pairs."""
    return [list(items) for items in dict.fromkeys(tuple(pairs(record)) for record in records) if items]


def plural(count: int, noun: str) -> str:
    """Return a count with its noun, which has an s unless the count is 1."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def percent(share: float, digits: int = 1) -> str:
    """Return a share in percent as text, without the sign."""
    return f"{100 * share:.{digits}f}"


def span(interval: Interval) -> str:
    """Return an interval in percent as text."""
    return f"{percent(interval.low)} – {percent(interval.high)}"


def signed(value: float, digits: int = 1) -> str:
    """Return a number with a sign, the minus as long as the plus; what rounds to 0 has none."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0.0:
        return text
    return ("+" if value > 0 else "−") + text


def p_value(p: float) -> str:
    """Return a p-value as text, with the digits that matter."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def number(value: float | None, digits: int) -> str:
    """Return a number with this many digits as text, or a dash for None."""
    return "–" if value is None else f"{value:,.{digits}f}"


def duration(seconds: Any) -> str:
    """Return seconds as text in seconds, minutes or hours, or a dash."""
    if not isinstance(seconds, int | float):
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
