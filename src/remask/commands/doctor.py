"""`remask doctor`: what is there and works, and what to do about what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from remask import __version__
from remask.commands.options import console, parse, print_json
from remask.config import DoctorConfig
from remask.imports import uncollected

EXAMPLES = """Examples:
  remask doctor
  remask doctor --folder /data/runs
  remask doctor --json"""

MARKS = {"ok": ("✓", "green"), "absent": ("–", "yellow"), "broken": ("✗", "bold red")}


def run(arguments: Sequence[str]) -> int:
    """Run `remask doctor` with these arguments and return the exit code: 1 where something required is broken."""
    config = parse(DoctorConfig, arguments, command="doctor", examples=EXAMPLES)
    with uncollected():
        from remask.commands.checks import everything
    found = []
    terminal = console()
    if not config.json:
        terminal.print(f"remask {__version__}", highlight=False)
    for finding in everything(config.folder):
        found.append(finding)
        if config.json:
            continue
        mark, style = MARKS[finding.state]
        terminal.print(mark, style=style, end="")
        terminal.print(f" {finding.part:<19} ", end="", markup=False, highlight=False)
        terminal.print(finding.found, markup=False, highlight=False, soft_wrap=True)
        if finding.mend:
            terminal.print(f"{'':22}→ {finding.mend}", markup=False, highlight=False, soft_wrap=True)
    broken = sum(finding.state == "broken" for finding in found)
    if config.json:
        print_json({"remask": __version__, "works": not broken, "findings": [asdict(finding) for finding in found]})
    else:
        print("all that is required works" if not broken else f"required and broken: {broken}")
    return 1 if broken else 0
