"""Timing in turns, peak memory, and the table both end in.

This machine may be busy with something else: what counts is the ratio of two things timed in the same round, its
median over the rounds, and its range.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

Variant = Callable[[], object]


@dataclass(frozen=True)
class Figure:
    """One line: what was compared, the ratio (and its range over the rounds), the bar it is held to and whether more is
    better; `unit` is × for a ratio, else what is measured.
    """

    part: str
    what: str
    value: float
    low: float | None = None
    high: float | None = None
    bar: float | None = None
    more_is_better: bool = True
    unit: str = "×"
    detail: str = ""

    @property
    def holds(self) -> bool | None:
        if self.bar is None:
            return None
        return self.value >= self.bar if self.more_is_better else self.value <= self.bar

    def row(self) -> dict[str, object]:
        return {**asdict(self), "holds": self.holds}


def in_turns(variants: Mapping[str, Variant], *, rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each variant in each round, all of them once a round."""
    for _ in range(warm_up):
        for run in variants.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            gc.collect()
            wait()
            started = time.perf_counter()
            run()
            wait()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def release() -> None:
    """Give back what is no longer used, of a CUDA device too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def ratio(over: list[float], under: list[float]) -> tuple[float, float, float]:
    """(median, lowest, highest) of the rounds' over/under."""
    each = sorted(a / b for a, b in zip(over, under, strict=True))
    return statistics.median(each), each[0], each[-1]


def peak_memory(run: Variant) -> int:
    """Bytes above what was in use before, at the highest."""
    gc.collect()
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # else what was freed before and kept by the allocator would not count
    Path("/proc/self/clear_refs").write_text("5")  # the process's peak starts anew
    before = _status("VmRSS")
    run()
    return max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def table(figures: list[Figure]) -> str:
    """Markdown."""
    lines = ["| | measured | range | bar | |", "|---|---:|---:|---:|---|"]
    part = None
    for figure in figures:
        if figure.part != part:
            part = figure.part
            lines.append(f"| **{part}** | | | | |")
        spread = "" if figure.low is None else f"{shown(figure.low, figure.unit)} – {shown(figure.high, figure.unit)}"
        sign = "≥" if figure.more_is_better else "≤"
        bar = "" if figure.bar is None else f"{sign} {shown(figure.bar, figure.unit)}"
        verdict = {True: "met", False: "**missed**", None: ""}[figure.holds]
        lines.append(
            f"| {figure.what}{f' ({figure.detail})' if figure.detail else ''} | "
            f"{shown(figure.value, figure.unit)} | {spread} | {bar} | {verdict} |"
        )
    return "\n".join(lines)


def shown(value: float | None, unit: str) -> str:
    assert value is not None
    if unit == "%":
        return f"{100 * value:.1f} %"
    if unit == "relative":
        return f"{value:.1e}"
    return f"{value:.2f}×" if unit == "×" else f"{value:,.2f} {unit}"
