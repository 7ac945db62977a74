"""`remask report`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from remask.commands.options import parse, split_words
from remask.errors import UserError

EXAMPLES = """Examples:
  remask report runs/*
  remask report runs/sft-0 runs/gift-0 start.json --output report.html

Folders are runs; files are evaluations."""


@dataclass(frozen=True)
class ReportConfig:
    """Write one self-contained HTML page of runs and evaluations."""

    output: str = "report.html"
    """Where the page goes."""
    title: str = "Remask report"


def run(arguments: Sequence[str]) -> int:
    """Run `remask report` with these arguments and return the exit code."""
    words, flags = split_words(ReportConfig, arguments)
    config = parse(ReportConfig, flags, command="report", examples=EXAMPLES, words="RUN|EVALUATION...")
    from remask.report import write_report

    missing = [word for word in words if not Path(word).exists()]
    if missing:
        raise UserError(
            "no such file or folder",
            where=missing[0],
            mend="give a run's folder, or a file that remask eval --json wrote",
        )
    folders = [Path(word) for word in words if Path(word).is_dir()]
    files = [Path(word) for word in words if Path(word).is_file()]
    print(write_report(folders, Path(config.output), title=config.title, evaluations=files))
    return 0
