"""The benchmarks run, at a toy size, and what they time computes the same as the textbook."""

from __future__ import annotations

import gc
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
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


@pytest.fixture
def uncollected(benchmarks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the collection of garbage before everything that is timed: most of a toy's time."""
    monkeypatch.setattr(sys.modules["measure"], "gc", SimpleNamespace(collect=lambda: None))


@pytest.mark.usefixtures("uncollected")
def test_training_sampling_and_scoring_agree_with_the_textbook(benchmarks: Any) -> None:
    toy = benchmarks.LAPTOP.__class__(vocabulary=300, width=32, layers=2, heads=2, feed_forward=64)
    figures = [
        *benchmarks.sft_speed.measure(1, toy),
        *benchmarks.sampling_speed.measure(1, (toy,)),
        *benchmarks.likelihood_speed.measure(1, toy),
        *benchmarks.policy_speed.measure(1, toy),
        *benchmarks.adapters_speed.measure(1, toy),
    ]
    found = {figure.what: figure.value for figure in figures}
    assert found["loss, of the textbook's, relative difference in float32"] < 1e-5
    assert found["gradient of the second pass, relative difference from the textbook's in float32"] < 1e-5
    assert found["tokens equal to the textbook's"] == 1.0
    assert found["largest relative difference of the value"] < 0.02  # bf16
    assert all(figure.value > 0 for figure in figures if figure.unit == "×")
    assert benchmarks.table(figures).count("\n") > len(figures)


@pytest.mark.usefixtures("uncollected")
def test_nothing_of_a_model_is_left_when_it_was_measured(benchmarks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU two models of 8B parameters at once would not fit."""
    toy, built, alive = benchmarks.LAPTOP.__class__(300, 32, 2, 2, 64), [], []

    def build(*arguments: Any, **keywords: Any) -> Any:
        gc.collect()
        alive.append(sum(model() is not None for model in built))
        model = made(*arguments, **keywords)
        built.append(weakref.ref(model))
        return model

    made = benchmarks.sft_speed.build
    monkeypatch.setattr(benchmarks.sft_speed, "build", build)
    benchmarks.sft_speed.measure(1, toy)
    assert alive == [0, 0, 0]


def test_shapes_that_fit(benchmarks: Any) -> None:
    """LLaDA-8B's weights, gradients and two states, 64 GB, in half of a GPU's memory."""
    from shapes import LLADA_8B, fitting

    assert fitting(LLADA_8B, None) == fitting(LLADA_8B, 141 * 10**9) == LLADA_8B
    assert fitting(LLADA_8B, 80 * 10**9).layers == 18


@pytest.mark.usefixtures("uncollected")
def test_what_a_gpu_times_besides_runs(benchmarks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = benchmarks.LAPTOP.__class__(vocabulary=300, width=32, layers=2, heads=2, feed_forward=64)
    for name, value in (("ROWS", 2), ("LENGTH", 8), ("LAYERS", 2), ("find_spec", lambda name: None)):
        monkeypatch.setattr(benchmarks.kernels_speed, name, value)
    figures = [
        *benchmarks.kernels_speed.parts(2, toy, "cpu"),
        *benchmarks.kernels_speed.layers(1, toy, "cpu"),
        *benchmarks.head_speed.measure(1, toy),
        *benchmarks.passes_speed.measure(1, toy, counts=(2,)),
    ]
    apart = [figure.value for figure in figures if figure.unit == "relative"]
    assert len(apart) == 4
    assert max(apart) < 0.02  # bf16
