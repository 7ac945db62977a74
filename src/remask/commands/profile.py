"""`remask profile`: where the time and the memory of a fine-tuning step go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from remask.commands.options import console, parse
from remask.config import ProfileConfig
from remask.files import refuse_unwritable
from remask.imports import uncollected

EXAMPLES = """Examples:
  remask profile --config recipes/tiny/gift.yaml --steps 8
  remask profile --model runs/x --objective gift --data my.jsonl --trainer.bf16
  remask profile --config recipes/tiny/sft.yaml --json profile.json

It takes the options of remask sft. Nothing is saved but the figures."""

MIB = 2**20


def run(arguments: Sequence[str]) -> int:
    """Run `remask profile` with these arguments and return the exit code."""
    config = parse(ProfileConfig, arguments, command="profile", examples=EXAMPLES)
    refuse_unwritable(config.json)
    with uncollected():
        from remask.analysis.profile import profile

    record = profile(config)
    show(record)
    if config.json:
        from remask.files import as_json, write_atomically

        write_atomically(Path(config.json), as_json(record, indent=1))
    return 0


def show(record: dict[str, Any]) -> None:
    """Print where the time and the memory of a step went."""
    from rich.table import Table

    terminal = console()
    where = record["hardware"]
    terminal.print(
        f"{record['objective']} on {record['model']}, {record['rows_per_step']} rows a step; "
        f"{where.get('gpu') or where['processor']}, {where['threads']} threads; "
        f"{len(record['steps'])} steps after {record['warm_up']}",
        highlight=False,
        markup=False,
    )
    table = Table(box=None, pad_edge=False)
    for title in ("part", "ms, median", "share, %", "peak, MiB", ""):
        table.add_column(title, justify="left" if title in ("part", "") else "right")
    peaks = record["peak_bytes"]
    for part in record["parts"]:
        table.add_row(
            part["name"],
            f"{1e3 * part['seconds']:,.1f}",
            f"{100 * part['share']:.1f}",
            mebibytes(peaks.get(part["name"], 0)),
            "█" * round(30 * part["share"]),
        )
    table.add_row("step", f"{1e3 * record['seconds']:,.1f}", "100.0", mebibytes(max(peaks.values())), style="bold")
    terminal.print(table)
    terminal.print(f"{record['tokens_per_second']:,.0f} useful tokens/s (prompt and answer, no fill)", highlight=False)
    lasting = ", ".join(f"{name} {mebibytes(size)}" for name, size in record["bytes"].items())
    terminal.print(f"lasting, MiB: {lasting}", highlight=False, markup=False)
    terminal.print(
        "Peaks are what a part found above what was there when the step began (gradients are made in a step).",
        style="dim",
        highlight=False,
    )


def mebibytes(size: int) -> str:
    """Return a number of bytes in MiB as text."""
    return f"{size / MIB:,.1f}"
