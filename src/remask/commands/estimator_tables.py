"""The tables of `remask estimators`, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean
from typing import Any

from rich.table import Table


def tables(record: dict[str, Any]) -> Iterator[tuple[str, Table, str]]:
    """Yield (title, table, note) of every part that was measured."""
    settings = record["settings"]
    if "elbo" in record:
        value = mean(record["elbo"]["per_token"])
        yield (
            f"ELBO estimators: {settings['rows']} answers, ELBO {value:.4f} nats a token",
            as_table(
                ["estimator", "K", "forwards", "bias, 10⁻³ nats a token", "sd, 10⁻³", "efficiency"],
                [
                    [
                        e["name"],
                        str(e["draws"]),
                        str(e["forwards"]),
                        f"{1e3 * e['bias']:+.1f} [{1e3 * e['bias_low']:+.1f}, {1e3 * e['bias_high']:+.1f}]",
                        f"{1e3 * e['sd']:.1f}",
                        "" if e["efficiency"] is None else f"{e['efficiency']:.2f}×",
                    ]
                    for e in record["elbo"]["estimators"]
                ],
            ),
            "efficiency: 1 / (variance × forwards), of exact count with the first K. Bias with its 95 % interval, "
            f"against {settings['reference']} draws of the coupled estimator. None: it is not made to be unbiased.",
        )
    if "tightness" in record:
        yield _tightness(record["tightness"], settings["orders"])
    if "reward" in record:
        yield (
            f"Which of a prompt's answers is better? {settings['prompts']} problems × {settings['completions']}",
            as_table(
                ["task", "value", "AUC within prompts", "prompts", "mean reward"],
                [
                    [
                        r["task"],
                        r["value"],
                        number(r["auc"], 3) + interval(r["low"], r["high"], 3),
                        f"{r['prompts']} ({r['same_reward']} without spread)",
                        f"{r['reward']:.3f}",
                    ]
                    for r in record["reward"]
                ],
            ),
            "½: the value knows nothing. 95 % intervals over prompts.",
        )
    if "gradients" in record:
        for clip in dict.fromkeys(m["clip"] for m in record["gradients"]):
            yield _gradients([m for m in record["gradients"] if m["clip"] == clip], settings)
        yield _layers([m for m in record["gradients"] if m["clip"] == settings["clip"]])


def _tightness(rows: Sequence[dict[str, Any]], orders: Sequence[int]) -> tuple[str, Table, str]:
    shown = [
        [f"{r['tokens']} tokens", _nats(r["elbo"]), *(_nats(v) for _, v in r["bounds"]), _nats(r["log_likelihood"])]
        for r in rows
    ]
    known = [r for r in rows if r["log_likelihood"] is not None]
    if known:
        bounds = [mean(r["bounds"][i][1] for r in known) for i in range(len(orders))]
        exact = [mean(r["elbo"] for r in known), *bounds, mean(r["log_likelihood"] for r in known)]
        shown.append(["mean", *map(_nats, exact)])
    return (
        "Tightness: nats a token of an answer's first tokens, the rest masked",
        as_table(["answer", "ELBO", *(f"{m} order{'s' * (m > 1)}" for m in orders), "log likelihood"], shown),
        "The bound by M orders is log of the mean of p over M random orders; with every order it is the likelihood.",
    )


def _gradients(methods: Sequence[dict[str, Any]], settings: dict[str, Any]) -> tuple[str, Table, str]:
    first, clip = methods[0]["name"], methods[0]["clip"]
    how = "as they are" if clip is None else f"clipped to a norm of {clip:g}"
    return (
        f"SFT gradients, {how}: {settings['rows']} rows as one batch, {settings['gradients']} draws of the masks each",
        as_table(
            [
                "method",
                "forwards",
                "norm",
                "variance",
                "/ norm²",
                "compute",
                "cosine",
            ],
            [
                [
                    m["name"],
                    str(m["forwards"]),
                    "–" if m["norm"] is None else f"{m['norm']:.3g}",
                    f"{m['variance']:.3g}" + _error(m["variance_error"]),
                    number(m["relative"], 2),
                    number(m["compute"], 2, "×") + interval(m["compute_low"], m["compute_high"], 2),
                    number(m["cosine"], 3) + _error(m["cosine_error"]),
                ]
                for m in methods
            ],
        ),
        f"norm: of the mean. compute: what a gradient as exact as one of {first} takes, of its [95 %]. cosine: of the "
        f"means of both. 1 is variance control alone, less is another objective. ±: standard error. –: lost in noise.",
    )


def _layers(methods: Sequence[dict[str, Any]]) -> tuple[str, Table, str]:
    layers = dict.fromkeys(layer for m in methods for layer in m["layers"])
    rows = [[layer, *(number(m["layers"].get(layer), 2) for m in methods)] for layer in layers]
    return (
        "Variance / norm² by layer" + ("" if methods[0]["clip"] is None else ", clipped"),
        as_table(["layer", *(m["name"] for m in methods)], rows),
        "What each layer's own optimiser state sees. –: lost in noise.",
    )


def _nats(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def number(value: float | None, digits: int, unit: str = "") -> str:
    """Return the number, or a dash where it is not known."""
    return "–" if value is None else f"{value:.{digits}f}{unit}"


def _error(value: float | None) -> str:
    return "" if value is None else f" ± {value:.1g}"


def interval(low: float | None, high: float | None, digits: int) -> str:
    """Return the interval in brackets; nothing where it is not known."""
    return "" if low is None or high is None else f" [{low:.{digits}f}, {high:.{digits}f}]"


def as_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table without lines whose first column is to the left, and the others to the right."""
    table = Table(box=None, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table
