"""`remask inspect --classes`: the tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from remask.commands.options import console

ENDS = 8
"""The number of tokens shown at either end of the ranking by entropy."""


def show_classes(found: dict[str, Any], *, objective: str, time: float) -> None:
    """Print classes, tenths by entropy, and the tokens of highest and lowest entropy."""
    terminal = console()
    terminal.print(
        f"{found['tokens']:,} tokens of {found['rows']} answers, all masked: entropy "
        f"{spread(found['entropy'])} nats [95 % interval over rows]",
        highlight=False,
        markup=False,
    )
    terminal.print()
    terminal.print(_classes(found["classes"]))
    terminal.print(
        "− others: against all other tokens of the answers, in nats. δ: Cliff's, from −1 to 1.\n"
        f"p: masking rate of {objective} at t = {time:g}. "
        "answer and step start are places: their tokens are above too.",
        style="dim",
        highlight=False,
        markup=False,
    )
    terminal.print()
    terminal.print(_tenths(found["tenths"]))
    now, later = found["errors"]["now"], found["errors"]["later"]
    for name, errors in (("now", now), ("with half revealed", later)):
        auc = "–" if errors["auc"] is None else spread(errors["auc"])
        terminal.print(
            f"wrong {name}, %: {spread(errors['share'], '.1f', 100)}; AUC of entropy {auc}",
            highlight=False,
            markup=False,
        )
    if found["rank_correlation"] is not None:
        terminal.print(
            f"rank correlation of entropy with −log p once half is revealed: {spread(found['rank_correlation'])}",
            highlight=False,
            markup=False,
        )
    if found["frequent"]:
        terminal.print()
        terminal.print(_frequent(found["frequent"], found["least_count"]))


def spread(value: dict[str, Any] | None, form: str = ".2f", scale: float = 1.0) -> str:
    """Return an estimate and its interval as text."""
    if value is None:
        return "–"
    if value["low"] is None:
        return f"{scale * value['mean']:{form}}"
    mean, low, high = (f"{scale * value[key]:{form}}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _classes(classes: Sequence[dict[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("class", no_wrap=True)
    for title in ("tokens", "share, %", "entropy", "− others", "δ", "p"):
        table.add_column(title, justify="right", no_wrap=True)
    for places in (False, True):
        own = [one for one in classes if (one["kind"] == "positional") == places]
        for one in sorted(own, key=lambda one: -one["entropy"]["mean"]):
            table.add_row(
                one["name"],
                f"{one['tokens']:,}",
                "–" if one["share"] is None else f"{100 * one['share']:.1f}",
                Text(spread(one["entropy"])),
                Text(spread(one["difference"], "+.2f")),
                "–" if one["cliff"] is None else f"{one['cliff']['mean']:+.2f}",
                f"{one['rate']:.2f}",
            )
        if not places:
            table.add_row()
    return table


def _tenths(tenths: Sequence[dict[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in ("tenth", "entropy", "wrong now, %", "wrong with half revealed, %"):
        table.add_column(title, justify="right")
    for number, tenth in enumerate(tenths, 1):
        wrong, later = (Text(spread(tenth[name], ".1f", 100)) for name in ("wrong", "later_wrong"))
        table.add_row(str(number), f"{tenth['low']:.2f} – {tenth['high']:.2f}", wrong, later)
    return table


def _frequent(frequent: Sequence[dict[str, Any]], least: int) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, title=f"tokens that occur {least} times or more", title_justify="left")
    table.add_column("token", no_wrap=True)
    table.add_column("class", no_wrap=True)
    for title in ("times", "entropy", "wrong now, %", "half revealed, %"):
        table.add_column(title, justify="right")
    # Both ends of the ranking; no token twice.
    least_sure, surest = frequent[:ENDS], frequent[max(ENDS, len(frequent) - ENDS) :]
    for end in (least_sure, surest):
        for one in end:
            table.add_row(
                Text(repr(one["token"])),
                one["class"],
                f"{one['tokens']:,}",
                f"{one['entropy']:.2f}",
                f"{100 * one['wrong']:.0f}",
                f"{100 * one['later_wrong']:.0f}",
            )
        if end is least_sure and surest:
            table.add_row("…" if len(frequent) > 2 * ENDS else "")
    return table
