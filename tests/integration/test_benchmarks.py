"""The benchmarks run, at a toy size, and what they time computes the same as the textbook."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules, which import each other by their plain names."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import bench

    yield bench
    for name in [path.stem for path in BENCHMARKS.glob("*.py")]:
        sys.modules.pop(name, None)


def test_training_sampling_and_scoring_agree_with_the_textbook(benchmarks: Any) -> None:
    toy = benchmarks.LAPTOP.__class__(vocabulary=300, width=32, layers=2, heads=2, feed_forward=64)
    figures = [
        *benchmarks.sft_speed.measure(1, toy),
        *benchmarks.sampling_speed.measure(1, (toy,)),
        *benchmarks.likelihood_speed.measure(1, toy),
    ]
    found = {figure.what: figure.value for figure in figures}
    assert found["loss, of the textbook's, relative difference in float32"] < 1e-5
    assert found["tokens equal to the textbook's"] == 1.0
    assert found["largest relative difference of the value"] < 0.02  # bf16
    assert all(figure.value > 0 for figure in figures if figure.unit == "×")
    assert benchmarks.table(figures).count("\n") > len(figures)
