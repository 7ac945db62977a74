"""Text shown token by token: entropy as colour, and the canvas as it is unmasked."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from remask.errors import UserError
from remask.evaluation.arms import Evaluation
from remask.report.runs import Example, Run
from remask.report.words import method_order

EXAMPLES_PER_METHOD = 2
TOKENS_PER_EXAMPLE = 600
"""The most tokens of an example, which keep the page readable and small; what is cut off is said below the text."""

STRIP_ROWS, STRIP_TOKENS = 16, 256
CELL_CHARACTERS = 9
"""The longest token that a cell of the strip is widened for."""

SPECIAL_TOKEN = re.compile(r"<\|.*\|>|</?s>|\[(EOS|PAD|MASK|UNK|SEP|CLS)\]|<(eos|pad|mask|unk|bos)>", re.IGNORECASE)


def heat_maps(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Return the first inspected run of each method, with one colour scale over all of them."""
    chosen: dict[str, Run] = {}
    for run in runs:
        if run.examples:
            chosen.setdefault(run.method, run)
    shown = {method: run.examples[:EXAMPLES_PER_METHOD] for method, run in chosen.items()}
    top = max((h for examples in shown.values() for e in examples for h in e.entropy[:TOKENS_PER_EXAMPLE]), default=0.0)
    if not chosen:
        return None
    return {
        "top": f"{top:.2f}",
        "runs": [
            {
                "method": run.method,
                "name": run.name,
                "examples": [_heat_example(example, top) for example in shown[run.method]],
            }
            for run in chosen.values()
        ],
    }


def _heat_example(example: Example, top: float) -> dict[str, Any]:
    cells = []
    for i, token in enumerate(example.tokens[:TOKENS_PER_EXAMPLE]):
        hover = [f"entropy {example.entropy[i]:.2f} nats"]
        if example.beta is not None:
            hover.append(f"β {example.beta[i]:.2f}")
        if example.rate is not None:
            hover.append(f"t_i {example.rate[i]:.2f}")
        cells.append(
            glyph(token)
            | {
                "heat": f"{example.entropy[i] / top if top > 0 else 0.0:.2f}",
                "hover": " · ".join(hover),
                "breaks": "\n" in token,
            }
        )
    return {
        "prompt": example.prompt,
        "cells": cells,
        "cut": len(example.tokens) - len(cells),
        "time": None if example.time is None else f"{example.time:.2f}",
    }


def glyph(token: str) -> dict[str, Any]:
    """Return how a token is shown: line breaks and spaces made visible, fill and other special tokens as a
    small ring.
    """
    if SPECIAL_TOKEN.fullmatch(token):
        return {"text": "◦", "quiet": True, "name": token}
    if token.strip() == "" and token:
        shown = token.replace("\r\n", "⏎").replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·")
        return {"text": shown, "quiet": True, "name": None}
    return {"text": token.replace("\n", "⏎").replace("\t", "⇥"), "quiet": False, "name": None}


def strips(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Return the first strip of each arm."""
    by_arm: dict[str, dict[str, Any]] = {}
    for evaluation in evaluations:
        if evaluation.strip and evaluation.arm not in by_arm:
            try:
                by_arm[evaluation.arm] = strip_rows(evaluation.strip) | {
                    "arm": evaluation.arm,
                    "seed": evaluation.run_seed,
                }
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"holds a strip that cannot be drawn ({error!r})", where=str(evaluation.path), mend="evaluate again"
                ) from error
    order = method_order([], evaluations)
    return sorted(by_arm.values(), key=lambda strip: order.index(strip["arm"]))


@dataclass(frozen=True)
class Stay:
    """A stay is the time of a token at its place: from the step that wrote it to the one that replaced it or masked it
    again; the last token of a place stays.
    """

    shown: dict[str, Any]
    written: int
    until: float = math.inf
    sure: float | None = None


def strip_rows(data: dict[str, Any]) -> dict[str, Any]:
    """Return the rows and the cells of a strip. rows: at most STRIP_ROWS of the steps, each cell masked, open, or newly
    opened since the row above. cells: the whole canvas, each with the number of the frame (a step, from 1) that reveals
    it, and with the tokens that stood there before.
    """
    tokens = [str(token) for token in data["tokens"]]
    revealed = [None if step is None else int(step) for step in data["revealed_at"]]
    confidence = [None if c is None else float(c) for c in data.get("confidence") or [None] * len(tokens)]
    block = [int(number) for number in data.get("block") or [0] * len(tokens)]
    if not len(tokens) == len(revealed) == len(confidence) == len(block):
        raise ValueError(f"{len(tokens)} tokens, {len(revealed)} steps, {len(confidence)} confidences")
    stays: list[list[Stay]] = [[] for _ in tokens]
    for one in data.get("earlier") or []:
        written, until = int(one["written_at"]), int(one["until"])
        stays[int(one["place"])].append(Stay(glyph(str(one["token"])), written, until))
    for of_place, token, step, sure in zip(stays, tokens, revealed, confidence, strict=True):
        if step is not None:
            of_place.append(Stay(glyph(token), step, sure=sure))
    steps = sorted({stay.written for of_place in stays for stay in of_place})
    if not steps:
        raise ValueError("no token was revealed")
    glyphs = [glyph(token) for token in tokens[:STRIP_TOKENS]]
    begins = [number > 0 and block[number] != block[number - 1] for number in range(len(glyphs))]
    count = min(STRIP_ROWS, len(steps))
    picked = [steps[round((k + 1) * len(steps) / count) - 1] for k in range(count)]
    rows, previous = [], steps[0] - 1
    for step in picked:
        cells = [
            _row_cell(shown, of_place, step, previous) | {"begins": border}
            for shown, of_place, border in zip(glyphs, stays, begins, strict=False)
        ]
        rows.append({"step": bisect_left(steps, step) + 1, "cells": cells})
        previous = step
    return {
        "prompt": str(data.get("prompt", "")),
        "rows": rows,
        "frames": len(steps),
        "cells": [
            _film_cell(shown, at, of_place, steps) | {"begins": border}
            for shown, at, of_place, border in zip(glyphs, revealed, stays, begins, strict=False)
        ],
        "tokens": len(tokens),
        "cut": len(tokens) - len(glyphs),
        "every": len(steps) > count,
        "blocks": len(set(block)),
        "replaced": sum(len(of_place) - (at is not None) for at, of_place in zip(revealed, stays, strict=True)),
    }


def _row_cell(shown: dict[str, Any], stays: Sequence[Stay], step: int, previous: int) -> dict[str, Any]:
    """A cell of the rows: what stands there after this step."""
    standing = next((stay for stay in stays if stay.written <= step < stay.until), None)
    if standing is None:
        return {"state": "m", "width": _width(shown), "text": "", "alpha": None}
    new = standing.written > previous
    state = "n" if new else "q" if standing.shown["quiet"] else "o"
    return {
        "state": state,
        "width": _width(shown),
        "text": standing.shown["text"],
        "alpha": _alpha(standing.sure) if new else None,
    }


def _film_cell(shown: dict[str, Any], at: int | None, stays: Sequence[Stay], steps: Sequence[int]) -> dict[str, Any]:
    """A cell of the animation; frame None: it is never revealed. was: [first frame, frame after the last, text] of each
    token that did not stay.
    """
    last = stays[-1] if stays else None
    sure = None if last is None else last.sure
    return {
        "frame": None if at is None else bisect_left(steps, at) + 1,
        "sure": None if sure is None else f"{sure:.2f}",
        "width": _width(shown),
        "alpha": _alpha(sure),
        "text": shown["text"],
        "was": [
            [bisect_left(steps, stay.written) + 1, bisect_left(steps, stay.until) + 1, stay.shown["text"]]
            for stay in stays
            if stay.until != math.inf
        ],
    }


def _width(shown: dict[str, Any]) -> int:
    return min(CELL_CHARACTERS, max(1, len(shown["text"])))


def _alpha(sure: float | None) -> str:
    """How strong the colour of a confidence is; where none was kept, half."""
    return f"{max(0.0, min(1.0, 0.5 if sure is None else sure)):.2f}"
