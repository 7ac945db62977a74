"""Which kinds of tokens have high entropy, on the page: two figures and two tables of `remask inspect --classes`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from remask.report.figures import MUTED, RULE, as_share, panel, series_colour
from remask.report.tokens import glyph
from remask.report.words import number, percent, signed

ENDS = 20
"""The number of tokens shown at either end of the ranking by entropy."""

KINDS = {"lexical": series_colour(0), "positional": series_colour(1)}
ERRORS = (("wrong", "all masked", 1), ("later_wrong", "half revealed", 2))
"""The errors that are shown: (key, name, number of its colour)."""


def class_section(found: dict[str, Any] | None, objective: str, time: float) -> dict[str, Any] | None:
    """Return what the page shows of a record's `classes`, or None where it has none."""
    if found is None:
        return None
    classes = sorted(found["classes"], key=lambda one: -one["entropy"]["mean"])
    frequent = found["frequent"]
    top = max((one["entropy"] for one in frequent), default=0.0)
    ends = frequent[:ENDS], frequent[max(ENDS, len(frequent) - ENDS) :]
    return {
        "rows": found["rows"],
        "tokens": f"{found['tokens']:,}",
        "entropy": spread(found["entropy"]),
        "objective": objective,
        "time": f"{time:g}",
        "classes": [_class(one) for one in classes],
        "class_figure": _class_figure(classes),
        "tenth_figure": _tenth_figure(found["tenths"]),
        "errors": [
            {
                "name": name,
                "colour": f"--c{colour}",
                "share": spread(found["errors"][key]["share"], 100, 1),
                "auc": spread(found["errors"][key]["auc"]),
            }
            for (key, (_, name, colour)) in zip(("now", "later"), ERRORS, strict=True)
        ],
        "rank_correlation": spread(found["rank_correlation"]),
        "least_count": found["least_count"],
        "frequent": [[_token(one, top) for one in end] for end in ends if end],
    }


def spread(value: dict[str, Any] | None, scale: float = 1.0, digits: int = 2) -> str:
    """Return an estimate and its interval as text."""
    if value is None:
        return "–"
    if value["low"] is None:
        return number(scale * value["mean"], digits)
    mean, low, high = (number(scale * value[key], digits) for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _signed(value: dict[str, Any] | None) -> str:
    if value is None:
        return "–"
    if value["low"] is None:
        return signed(value["mean"], 2)
    mean, low, high = (signed(value[key], 2) for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _class(one: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": one["name"],
        "about": one["about"],
        "colour": "--c1" if one["kind"] == "positional" else "--c0",
        "tokens": f"{one['tokens']:,}",
        "share": "–" if one["share"] is None else percent(one["share"]),
        "rows": one["rows"],
        "entropy": spread(one["entropy"]),
        "difference": _signed(one["difference"]),
        "cliff": _signed(one["cliff"]),
        "rate": number(one["rate"], 2),
        "wrong": percent(one["wrong"], 0),
        "later_wrong": percent(one["later_wrong"], 0),
    }


def _token(one: dict[str, Any], top: float) -> dict[str, Any]:
    return glyph(one["token"]) | {
        "class": one["class"],
        "heat": f"{one['entropy'] / top if top > 0 else 0.0:.2f}",
        "times": f"{one['tokens']:,}",
        "entropy": number(one["entropy"], 2),
        "wrong": percent(one["wrong"], 0),
        "later_wrong": percent(one["later_wrong"], 0),
    }


def _class_figure(classes: Sequence[dict[str, Any]]) -> str:
    """A bar to each class's mean, its interval as a line through the end."""

    def draw(axes: Axes) -> None:
        for place, one in enumerate(classes):
            mean, low, high = (one["entropy"][key] for key in ("mean", "low", "high"))
            axes.barh(place, mean, height=0.62, color=KINDS[one["kind"]], alpha=0.55)
            if low is not None:
                axes.plot([low, high], [place, place], color=KINDS[one["kind"]], linewidth=2.2)
        axes.set_yticks(range(len(classes)), [one["name"] for one in classes])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x", color=RULE, linewidth=0.7)
        axes.set_xlim(left=0.0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))

    return panel("token-classes", "Mean entropy of each class of tokens, with intervals", "entropy, nats", draw)


def _tenth_figure(tenths: Sequence[dict[str, Any]]) -> str:
    """Share of tokens predicted wrong, by tenth of the tokens by entropy, with its interval as a band."""

    def draw(axes: Axes) -> None:
        x = range(1, len(tenths) + 1)
        axes.axhline(0.0, color=MUTED, linewidth=0.7)
        for key, _, colour in ERRORS:
            known = [(n, t[key]) for n, t in zip(x, tenths, strict=True) if t[key]["low"] is not None]
            places, low, high = [n for n, _ in known], [v["low"] for _, v in known], [v["high"] for _, v in known]
            axes.fill_between(places, low, high, color=series_colour(colour), alpha=0.15, linewidth=0)
            means = [tenth[key]["mean"] for tenth in tenths]
            axes.plot(x, means, color=series_colour(colour), linewidth=1.6, marker="o", markersize=4)
        as_share(axes, -0.02, 1.02)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))

    label = "Share of tokens predicted wrong, by tenth of the tokens by entropy"
    return panel("token-errors", label, "tenth of tokens by entropy (1 most certain, 10 least)", draw)
