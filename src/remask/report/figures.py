"""The report's curves: inline SVG that takes its colours and its font from the page it stands in.

matplotlib draws with placeholder colours, each of which is then replaced by a CSS variable, so one figure serves the
light and the dark page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter, ScalarFormatter

from remask.report.runs import Run

INK, MUTED, RULE = "#010201", "#010202", "#010203"
VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule"}
SERIES = 8
"""The number of colours for methods; more methods start over."""

WIDTH, HEIGHT = 5.0, 2.9
"""The inches of a figure at 72 points: it is 360 points wide, so that a phone shows the text at about its
natural size."""

LOG_RANGE = 15.0
"""A quantity whose largest value is this many times its median is drawn on a logarithmic scale."""

POINTS = 300
"""The most points of one line; a longer series is thinned."""

WINDOWS = 120
"""The most points of a mean and its maximum."""

Draw = Callable[[Axes], None]


def series_colour(index: int) -> str:
    """Return the placeholder of the page's colour `--c<index>`."""
    return f"#0103{index % SERIES:02x}"


def panel(name: str, label: str, xlabel: str, draw: Draw, *, height: float = HEIGHT) -> str:
    """Draw one figure as inline SVG. `name` prefixes its ids (they must be unique in a page); `label` is read out
    instead.

    The page's heading over the figure names the quantity, so the y axis has no title of its own.
    """
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 10.0,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.edgecolor": RULE,
        "axes.labelcolor": MUTED,
        "axes.formatter.useoffset": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": RULE,
        "grid.linewidth": 0.7,
        "xtick.color": RULE,
        "xtick.labelcolor": MUTED,
        "ytick.color": RULE,
        "ytick.labelcolor": MUTED,
        "ytick.major.size": 0.0,
        "ytick.minor.size": 0.0,
        "text.color": INK,
        "lines.solid_capstyle": "round",
        "lines.solid_joinstyle": "round",
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set_xlabel(xlabel)
        text = io.StringIO()
        figure.savefig(
            text, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    return themed(text.getvalue(), name, label)


def themed(svg: str, name: str, label: str) -> str:
    """Return a matplotlib SVG made fit for a page: with no prolog, with ids that begin with `name`, and in the page's
    font and colours.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"font-family: [^;\"]+;? ?", "", svg)
    svg = re.sub(
        r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', rf'<svg \1role="img" aria-label="{_attribute(label)}"', svg
    )
    colours = VARIABLES | {series_colour(i): f"--c{i}" for i in range(SERIES)}
    for placeholder, variable in colours.items():
        svg = svg.replace(placeholder, f"var({variable})")
    return re.sub(r">\s+<", "><", svg).strip()


def _attribute(text: str) -> str:
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(character, entity)
    # A group reference of re.sub must not be read out of a run's name.
    return text.replace("\\", "\\\\")


def smoothed(values: Sequence[float], window: int) -> np.ndarray:
    """Return the centred moving average over `window` points, the window cut short at both ends."""
    series = np.asarray(values, dtype=float)
    total = np.concatenate([[0.0], np.cumsum(series)])
    index = np.arange(len(series))
    low = np.maximum(index - window // 2, 0)
    high = np.minimum(index + window // 2 + 1, len(series))
    return np.asarray((total[high] - total[low]) / (high - low))


def thinned(steps: Sequence[float], values: Sequence[float] | np.ndarray) -> tuple[list[float], list[float]]:
    """Return a long series as the least and the largest value of each of POINTS / 2 stretches, in the order
    they came.

    At the figure's width the line looks the same, and the page stays small.
    """
    if len(values) <= POINTS:
        return list(steps), list(values)
    kept: list[int] = []
    for part in np.array_split(np.arange(len(values)), POINTS // 2):
        own = np.asarray(values)[part]
        kept += sorted({int(part[own.argmin()]), int(part[own.argmax()])})
    return [steps[i] for i in kept], [values[i] for i in kept]


def trend(axes: Axes, runs: Sequence[Run], colours: Mapping[str, str], key: str) -> None:
    """Draw every logged value faint, and its moving average over a tenth of the run as a full line."""
    for run in runs:
        steps, values = run.series(key)
        if steps:
            axes.plot(*thinned(steps, values), color=colours[run.method], linewidth=0.7, alpha=0.25)
            average = smoothed(values, max(3, len(values) // 10))
            axes.plot(*thinned(steps, average), color=colours[run.method], linewidth=1.3, **dot_if_alone(steps))
    finish(axes, [value for run in runs for value in run.series(key)[1]])


def points(axes: Axes, runs: Sequence[Run], colours: Mapping[str, str], key: str) -> None:
    """Draw a line per run, with a marker at each value."""
    for run in runs:
        steps, values = run.series(key)
        axes.plot(steps, values, color=colours[run.method], linewidth=1.3, marker="o", markersize=3.0)
    finish(axes, [value for run in runs for value in run.series(key)[1]])


def mean_to_max(axes: Axes, runs: Sequence[Run], colours: Mapping[str, str], key: str) -> None:
    """Draw the mean `<name>_mean` of each logging window as a line, up to `<name>_max` as a band."""
    everything: list[float] = []
    for run in runs:
        tops, maxima = merged(*run.series(key.removesuffix("_mean") + "_max"), max)
        steps, means = merged(*run.series(key), lambda values: sum(values) / len(values))
        if steps == tops:
            axes.fill_between(steps, means, maxima, color=colours[run.method], alpha=0.13, linewidth=0)
            axes.plot(steps, maxima, color=colours[run.method], linewidth=0.6, alpha=0.55)
        axes.plot(steps, means, color=colours[run.method], linewidth=1.2, **dot_if_alone(steps))
        everything += means + maxima
    finish(axes, everything)


def merged(
    steps: Sequence[float], values: Sequence[float], summary: Callable[[Sequence[float]], float]
) -> tuple[list[float], list[float]]:
    """Return a long series with neighbouring values put together, WINDOWS of them left, each at the last of
    its steps.
    """
    if len(values) <= WINDOWS:
        return list(steps), list(values)
    parts = np.array_split(np.arange(len(values)), WINDOWS)
    return [steps[part[-1]] for part in parts], [summary([values[i] for i in part]) for part in parts]


def dot_if_alone(steps: Sequence[float]) -> dict[str, Any]:
    """Return how a run that has logged one value is drawn: a line of one point cannot be seen."""
    return {"marker": "o", "markersize": 3.0} if len(steps) == 1 else {}


def masked_by_entropy(runs: Sequence[Run], colours: Mapping[str, str]) -> str:
    """Draw the share masked of each tenth of the tokens by entropy: thin per run, thick pooled over a method's runs."""

    def draw(axes: Axes) -> None:
        for method in dict.fromkeys(run.method for run in runs):
            own = [run for run in runs if run.method == method]
            tenths = min(len(run.deciles) for run in own)
            x = np.arange(1, tenths + 1)
            tokens = np.array([[decile.tokens for decile in run.deciles[:tenths]] for run in own], dtype=float)
            masked = np.array([[decile.masked for decile in run.deciles[:tenths]] for run in own], dtype=float)
            with np.errstate(invalid="ignore", divide="ignore"):
                shares, pooled = masked / tokens, masked.sum(axis=0) / tokens.sum(axis=0)
            if len(own) > 1:
                for share in shares:
                    axes.plot(x, share, color=colours[method], linewidth=0.8, alpha=0.5)
            axes.plot(x, pooled, color=colours[method], linewidth=1.8, marker="o", markersize=4)
        axes.set_ylim(0.0, 1.0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))

    label = label_of("Share of tokens masked, by tenth of the tokens by entropy", runs)
    return panel("masked", label, "tenth of tokens by entropy (1 most certain, 10 least)", draw)


def finish(axes: Axes, values: Sequence[float]) -> None:
    """Set a logarithmic scale where spikes would flatten everything else, few ticks, and no scientific offsets."""
    few_ticks(axes)
    series = np.asarray(values, dtype=float)
    if len(series) and series.min() > 0 and series.max() > LOG_RANGE * np.median(series):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())


def few_ticks(axes: Axes) -> None:
    """Set few ticks on both axes, whole numbers on that of steps."""
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.margins(x=0.02)


def as_share(axes: Axes, low: float | None = None, high: float | None = None) -> None:
    """Set a linear axis in percent, from low to high where they are given."""
    axes.set_yscale("linear")
    few_ticks(axes)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(low, high)


def label_of(what: str, runs: Sequence[Run]) -> str:
    """Return the label of a figure: what it shows, and of which runs."""
    methods = dict.fromkeys(run.method for run in runs)
    return f"{what}, {len(runs)} runs: {', '.join(methods)}"
