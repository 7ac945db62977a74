"""Make docs/figures/house.svg: the packages in their layers, with the ways of a row and of a prompt through them.

python scripts/house_picture.py        the layers are those of the table in docs/architecture.md
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
TARGET = DOCS / "figures" / "house.svg"
WIDTH, HEIGHT, GAP, LABEL, LINE = 620, 62, 8, 26, 20
PER_LINE = 4
CAPTIONS = {
    "analysis": "instruments",
    "cli": "remask …",
    "commands": "options, output",
    "data": "rows to canvases",
    "diffusion": "masks, losses, bounds",
    "evaluation": "scores, intervals",
    "kernels": "CUDA's own",
    "models": "checkpoints",
    "preference": "from pairs",
    "publishing": "to the hub",
    "report": "one HTML page",
    "rl": "from rewards",
    "sampling": "writes answers",
    "sandbox": "runs programs",
    "serving": "OpenAI's protocol",
    "sft": "from rows",
    "study": "grids of runs",
    "tasks": "problems, grades",
    "training": "the shared loop",
}
ROW = ("data", "diffusion", "models", "sft", "training")
PROMPT = ("tasks", "sampling", "rl", "diffusion", "training")
STYLE = """
  text { font-family: system-ui, sans-serif; font-size: 15px; fill: #4a4a4a; }
  .name { font-size: 17px; font-weight: 600; fill: #1b1b1b; }
  .box { fill: #f3f4f6; stroke: #c3c7ce; }
  .row { fill: #0b6e4f; } .prompt { fill: #8a3ffc; } .number { fill: #fff; font-size: 13px; font-weight: 600; }
  @media (prefers-color-scheme: dark) {
    text { fill: #c6c9cf; } .name { fill: #f4f4f4; } .box { fill: #23272f; stroke: #4b5260; } .number { fill: #fff; }
  }
"""


def layers() -> dict[str, list[str]]:
    """Return {layer: its packages}, from the foundation up, as docs/architecture.md has them."""
    found: dict[str, list[str]] = {}
    layer = ""
    for first, package in re.findall(r"^\| ([^|]*?) ?\| `(\w+)` \|", (DOCS / "architecture.md").read_text(), re.M):
        layer = first.strip() or layer
        found.setdefault(layer, []).append(package)
    return found


def badge(x: float, y: float, kind: str, number: int) -> str:
    return (
        f'<circle class="{kind}" cx="{x:g}" cy="{y:g}" r="10"/>'
        f'<text class="number" x="{x:g}" y="{y + 4.5:g}" text-anchor="middle">{number}</text>'
    )


def box(package: str, x: float, y: float, width: float) -> str:
    """Return a package's box: its name, what it is for, and its numbers on the two ways."""
    parts = [
        f'<rect class="box" x="{x:g}" y="{y:g}" width="{width:g}" height="{HEIGHT}" rx="6"/>',
        f'<text class="name" x="{x + 8:g}" y="{y + 24:g}">{package}</text>',
        f'<text x="{x + 8:g}" y="{y + 48:g}">{escape(CAPTIONS[package])}</text>',
    ]
    right = x + width - 14
    for kind, way in (("prompt", PROMPT), ("row", ROW)):
        if package in way:
            parts.append(badge(right, y + 16, kind, way.index(package) + 1))
            right -= 23
    return "\n".join(parts)


def layer_of_boxes(packages: list[str], y: float) -> tuple[str, float]:
    """Return the boxes of a layer, in lines of four, and where they end."""
    lines = [packages[n : n + PER_LINE] for n in range(0, len(packages), PER_LINE)]
    parts = []
    for line in lines:
        width = (WIDTH - GAP * (len(line) - 1)) / len(line)
        parts += [box(package, n * (width + GAP), y, width) for n, package in enumerate(line)]
        y += HEIGHT + GAP
    return "\n".join(parts), y


def base(modules: list[str], y: float) -> tuple[str, float]:
    """Return the one box of the modules that everything stands on."""
    lines = [modules[n : n + 6] for n in range(0, len(modules), 6)]
    height = 14 + LINE * len(lines)
    parts = [f'<rect class="box" x="0" y="{y:g}" width="{WIDTH}" height="{height}" rx="6"/>']
    parts += [f'<text x="8" y="{y + 22 + n * LINE:g}">{" · ".join(line)}</text>' for n, line in enumerate(lines)]
    return "\n".join(parts), y + height + GAP


def picture() -> str:
    """Return the drawing."""
    found, parts, y = layers(), [], 0.0
    for layer in reversed(found):
        parts.append(f'<text x="0" y="{y + 18:g}">{layer}</text>')
        drawn, y = (base if layer == "base" else layer_of_boxes)(found[layer], y + LABEL)
        parts.append(drawn)
    for kind, text in (("row", "a row to a weight update"), ("prompt", "a prompt to a policy update")):
        parts.append(f'{badge(12, y + 16, kind, 1)}<text x="30" y="{y + 21:g}">the way of {text}</text>')
        y += 26
    title = "The packages of Remask in layers; each may import what stands below it"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-1 0 {WIDTH + 2} {y + 8:g}" role="img">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


if __name__ == "__main__":
    TARGET.write_text(picture())
    print(TARGET)
