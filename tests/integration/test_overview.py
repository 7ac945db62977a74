"""docs/overview.md names the functions of a training step in the order in which a run calls them first."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from remask.config import RlConfig, SftConfig, from_dict
from remask.rl.run import run_rl
from remask.sft.run import run_sft

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "remask"
PAGE = (ROOT / "docs" / "overview.md").read_text()


def named(heading: str) -> list[str]:
    """The functions that the table below a heading names, in its order."""
    _, _, below = PAGE.partition(f"\n## {heading}\n")
    return re.findall(r"^\|[^|]*\| `([\w.]+)` \|", below.partition("\n## ")[0], re.MULTILINE)


def full_name(code: CodeType) -> str:
    """`package.module.Class.method` of a function under src/remask."""
    path = Path(code.co_filename).relative_to(SOURCE).with_suffix("")
    return f"{'.'.join(path.parts)}.{code.co_qualname}"


@contextmanager
def calls_noted() -> Iterator[dict[CodeType, None]]:
    """What is called, in the order of the first calls, in every thread that begins meanwhile."""
    seen: dict[CodeType, None] = {}
    here = str(SOURCE)

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code not in seen:
            seen[frame.f_code] = None

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield seen
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
        for code in [code for code in seen if not code.co_filename.startswith(here)]:
            del seen[code]


def order_of(run: Callable[[], Any], names: list[str]) -> list[str]:
    """The names among them that the run calls, in the order of the first calls."""
    with calls_noted() as seen:
        run()
    return list(dict.fromkeys(name for code in seen if (name := full_name(code)) in names))


def test_the_way_of_a_row_is_as_told(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"prompt": f"copy {n}", "completion": str(n)}) for n in range(16)))
    asked = {
        "objective": "gift",
        "model": "tiny-direct",
        "data": str(rows),
        "output_dir": str(tmp_path / "run"),
        "max_steps": 1,
        "report": {"diagnostics": "off"},
    }
    names = named("From a row to a weight update")
    assert len(names) > 20
    assert order_of(lambda: run_sft(from_dict(SftConfig, asked, where="here"), quiet=True), names) == names


def test_the_way_of_a_prompt_is_as_told(tmp_path: Path) -> None:
    asked = {
        "objective": "espo",
        "model": "tiny-direct",
        "tasks": "sudoku",
        "output_dir": str(tmp_path / "run"),
        "max_steps": 1,
        "rollout": {"prompts": 2, "completions": 2, "inner_updates": 1},
    }
    names = named("From a prompt to a policy update")
    assert len(names) > 20
    assert order_of(lambda: run_rl(from_dict(RlConfig, asked, where="here"), quiet=True), names) == names
