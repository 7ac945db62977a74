"""The page's sections on training: one for each kind of training that its runs had."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from remask.report import curves, run_table
from remask.report.curves import Curve
from remask.report.run_table import PARTS, Column
from remask.report.runs import Run


@dataclass(frozen=True)
class Kind:
    """A kind of training has a section on the page; `anchor` is the section's id."""

    anchor: str
    title: str
    curves: tuple[Curve, ...]
    columns: Callable[[Sequence[Run]], Sequence[Column]]


SFT = "sft"
KINDS = {
    SFT: Kind("training", "Supervised fine-tuning", curves.SFT, lambda _: run_table.SFT),
    "dpo": Kind("preference", "Preference training", curves.PREFERENCE, lambda _: run_table.PREFERENCE),
    "rl": Kind("reinforcement", "Reinforcement learning", curves.RL, run_table.rl_columns),
}
"""The kinds by the `training` of run.json, in the order of the page."""


def kind_of(run: Run) -> str:
    """Return the kind of a run. A kind that this version does not have is shown as far as it logged what fine-tuning
    logs.
    """
    return run.training if run.training in KINDS else SFT


def training_sections(runs: Sequence[Run], colours: Mapping[str, str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return what the template needs for each section, and a line for each figure there are no data for."""
    sections, missing = [], []
    kinds = [name for name in KINDS if any(kind_of(run) == name for run in runs)]
    for name in kinds:
        kind, own = KINDS[name], [run for run in runs if kind_of(run) == name]
        drawn, lacking = curves.draw_curves(kind.curves, own, colours)
        if name == SFT:
            masking, unmasked = curves.draw_masking(own, colours)
            drawn, lacking = drawn + masking, lacking + unmasked
        sections.append(
            {
                "anchor": kind.anchor,
                "title": "Training" if kinds == [SFT] else kind.title,
                "label": "Runs" if kinds == [SFT] else f"Runs, {kind.title.lower()}",
                "methods": list(dict.fromkeys(run.method for run in own)),
                "curves": drawn,
                "parts": PARTS if any(isinstance(run_table.time_shares(run), list) for run in own) else (),
                **_table(kind.columns(own), own),
            }
        )
        missing += lacking if len(kinds) == 1 else [f"{kind.title}, {line[0].lower()}{line[1:]}" for line in lacking]
    return sections, missing


def _table(columns: Sequence[Column], runs: Sequence[Run]) -> dict[str, Any]:
    return {
        "heads": [{"lines": column.head.split("\n"), "css": column.css.split(" ")[0]} for column in columns],
        "rows": [
            {
                "run": run.name,
                "method": run.method,
                "cells": [{"value": column.cell(run), "css": column.css} for column in columns],
            }
            for run in runs
        ],
    }
