"""Heavy imports: the collector waits, comes back, and leaves alone what they made."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import gc
from remask.imports import uncollected
{before}
runs = []
gc.callbacks.append(lambda phase, info: runs.append(phase))
try:
    with uncollected():
        import http.client, email.message, xml.dom.minidom, unittest.mock, asyncio
        {within}
except ValueError:
    pass
print(len(runs), gc.isenabled(), gc.get_freeze_count() > 0)
frozen = gc.get_freeze_count()
with uncollected():
    kept = [[] for _ in range(1000)]
print(gc.isenabled(), gc.get_freeze_count() == frozen)
"""


def said(before: str = "", within: str = "") -> list[str]:
    script = SCRIPT.format(before=before, within=within)
    return subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split("\n")


@pytest.mark.parametrize("within", ["", "raise ValueError"])
def test_nothing_is_collected_meanwhile_and_everything_after(within: str) -> None:
    assert said(within=within)[:2] == ["0 True True", "True True"]


def test_a_collector_that_was_off_stays_off() -> None:
    assert said("gc.disable()")[:2] == ["0 False False", "False True"]


@pytest.mark.slow
def test_peft_is_imported_for_adapters_only() -> None:
    """It takes a second, on which every other command would wait."""
    script = "import sys, remask.models.load, remask.evaluation.evaluate; print('peft' in sys.modules)"
    script += "\nremask.models.load.load('tiny-direct', device='cpu'); print('peft' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"]
