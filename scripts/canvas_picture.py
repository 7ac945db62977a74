"""Make an animated picture of an answer being written: what stands where after each step of a real run.

python scripts/canvas_picture.py --model smol/quick/model --output canvas.svg "Name one fact about bread."
python scripts/canvas_picture.py --model tour/espo-0 --output sudoku.svg "sudoku 2031 0002 0013 3004" --set seed=1

It is one SVG without scripts, which follows the reader's choice of light or dark, and shows the finished answer to
readers who want no motion.
"""

from __future__ import annotations

import argparse
from html import escape
from pathlib import Path

import yaml

import remask

WIDTH, MARGIN, LINE, CELL, LETTER = 820, 18, 36, 26, 9.04
STEP, HOLD = 0.4, 4.0
"""Seconds that a step takes in the picture, and that the whole answer stays."""
STYLE = """
  text { font: 15px ui-monospace, Menlo, Consolas, monospace; fill: #1b1b1b; white-space: pre; }
  .said { fill: #5b616b; } .mask { fill: #d5d9e1; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f1f3; } .said { fill: #a2a8b3; } .mask { fill: #3d4450; }
  }
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt")
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--set", nargs="*", default=[], help="settings of decoding: max_new_tokens=48 threshold=0.9")
    given = parser.parse_args()
    settings = {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in given.set)}
    model, tokenizer = remask.load(given.model, dtype=given.dtype)
    written = remask.generate(model, tokenizer, [given.prompt], **settings)
    row = written.history[0]
    tokens = [
        (tokenizer.decode([token]), step)
        for token, step in zip(row.token_ids, row.revealed_at, strict=True)
        if step >= 0 and token not in tokenizer.all_special_ids
    ]
    steps = sorted({step for _, step in tokens})
    order = {step: number for number, step in enumerate(steps, 1)}
    said = f"{given.prompt}   ({len(tokens)} tokens in {len(steps)} steps)"
    given.output.write_text(picture(said, [(text, order[step]) for text, step in tokens], len(steps)))
    print(f"{given.output}: {written.texts[0]!r}")


def picture(said: str, tokens: list[tuple[str, int]], steps: int) -> str:
    """The SVG of tokens, each with the step that wrote it."""
    length = steps * STEP + HOLD
    cells, x, line = list[str](), float(MARGIN), 1
    for text, step in tokens:
        shown = text.strip("\n") or "↵"
        wide = len(shown) * LETTER
        if x + wide > WIDTH - MARGIN or "\n" in text:
            x, line, shown = float(MARGIN), line + 1, shown.lstrip()
            wide = len(shown) * LETTER
        blank = (len(shown) - len(shown.lstrip())) * LETTER
        y = MARGIN + line * LINE
        rest = max(wide - blank - 2, 6)
        cells.append(
            f'<rect class="mask off s{step}" x="{x + blank + 1:.1f}" y="{y - 17}" width="{rest:.1f}" '
            f'height="{CELL - 2}" rx="5"/>'
        )
        cells.append(f'<text class="on s{step}" x="{x:.1f}" y="{y}">{escape(shown)}</text>')
        x += wide
    height = 2 * MARGIN + line * LINE + 6
    frames = "".join(_frames(step, length) for step in range(1, steps + 1))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(said)}"><style>{STYLE}{frames}'
        "@media (prefers-reduced-motion: reduce) { .on { animation: none; } .off { display: none; } }</style>"
        f'<text class="said" x="{MARGIN}" y="{MARGIN + 8}">{escape(said)}</text>{"".join(cells)}</svg>\n'
    )


def _frames(step: int, length: float) -> str:
    """The rules of what a step writes: hidden before it, in colour during it."""
    at, after = (100 * (step + more) * STEP / length for more in (0, 1))
    return (
        f"@keyframes on{step} {{ 0%, {at:.2f}% {{ opacity: 0; }} {at + 0.01:.2f}%, 100% {{ opacity: 1; }} }}"
        f"@keyframes off{step} {{ 0%, {at:.2f}% {{ opacity: 1; }} {at + 0.01:.2f}%, 100% {{ opacity: 0; }} }}"
        f"@keyframes new{step} {{ {at:.2f}%, {after - 0.01:.2f}% {{ fill: #8a3ffc; }} }}"
        f".on.s{step} {{ animation: on{step} {length:.1f}s infinite, new{step} {length:.1f}s infinite; }}"
        f".off.s{step} {{ animation: off{step} {length:.1f}s infinite; }}\n"
    )


if __name__ == "__main__":
    main()
