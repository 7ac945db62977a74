"""The benchmarks run, at a toy size, and what they time computes the same as the projects compared with."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

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


def toy(benchmarks: Any) -> Any:
    return benchmarks.LAPTOP.__class__(vocabulary=300, width=32, layers=2, heads=2, feed_forward=64)


def checked(benchmarks: Any, figures: list[Any]) -> dict[str, dict[str, float]]:
    """The values by part and line; every ratio is one, and the table has every line."""
    assert all(figure.value > 0 for figure in figures if figure.unit == "×")
    assert benchmarks.table(figures).count("\n") > len(figures)
    found: dict[str, dict[str, float]] = {}
    for figure in figures:
        found.setdefault(figure.part.partition(":")[0], {})[figure.what] = figure.value
    return found


@pytest.mark.usefixtures("uncollected")
def test_losses_and_gradients_of_fine_tuning_are_those_of_other_projects(benchmarks: Any) -> None:
    found = checked(benchmarks, benchmarks.sft_speed.measure(1, toy(benchmarks)))
    apart = found["loss and gradient in float32"]
    assert len(apart) == 4  # dllm's, d1's and LIFT's twice, LIFT's GIFT
    assert max(apart.values()) < 1e-5
    assert sum(line.startswith("against ") for line in found["SFT step, full"]) == 3
    assert sum(line.startswith("against ") for line in found["GIFT step, LoRA"]) == 1


@pytest.mark.usefixtures("uncollected")
def test_tokens_at_temperature_0_are_those_of_other_projects(benchmarks: Any) -> None:
    found = checked(benchmarks, benchmarks.sampling_speed.measure(1, toy(benchmarks)))
    same = found["tokens at temperature 0 in float32"]
    assert len(same) == 4  # LLaDA's; Fast-dLLM's without a cache and with either
    assert set(same.values()) == {1.0}
    assert sum(line.startswith("against ") for line in found["sampling, exact, temperature 1"]) == 2
    assert sum(line.startswith("against ") for line in found["sampling, cached, temperature 0"]) == 2


@pytest.mark.usefixtures("uncollected")
def test_likelihoods_and_policy_gradients_are_espos(benchmarks: Any) -> None:
    found = checked(
        benchmarks,
        [
            *benchmarks.likelihood_speed.measure(1, toy(benchmarks)),
            *benchmarks.policy_speed.measure(1, toy(benchmarks)),
        ],
    )
    assert max(found["ELBO in float32"].values()) < 1e-5
    assert max(found["ESPO's gradient in float32"].values()) < 1e-5
    assert found["ELBO, K = 2 coupled"]["largest relative difference of the value in bfloat16"] < 0.02


def test_passes_that_other_projects_take(benchmarks: Any) -> None:
    """Rows and tokens of each forward pass, and the precision of a trainer's logits."""
    peers, model = sys.modules["peers"], sys.modules["shapes"].build(toy(benchmarks))
    taken: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(
        lambda _, __, given: taken.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )

    def passes(run: Callable[..., Any], *arguments: Any, **keywords: Any) -> list[tuple[int, ...]]:
        taken.clear()
        run(model, *arguments, **keywords)
        return list(taken)

    ids, response = sys.modules["shapes"].answers(2, toy(benchmarks), 8)
    L, t, u = ids.shape[1], torch.full((2,), 0.5), torch.rand(ids.shape)
    assert passes(peers.dllm_sft_loss, ids, response, t, u) == [(2, L)]
    assert passes(peers.d1_sft_loss, ids, response, t, u, autocast=False) == [(2, L)]
    assert passes(peers.lift_gift_loss, ids, response, t, u) == [(2, L)] * 2
    assert passes(peers.espo_elbo, ids, [response[:, -8:]] * 2) == [(2, L)] * 4
    assert peers.trainer_logits(model, ids, autocast=True).dtype == torch.float32
    assert peers.trainer_logits(model, ids, autocast=False).dtype == torch.bfloat16

    canvas = {"length": 8, "steps": 4, "block": 4, "temperature": 1.0, "generator": torch.Generator()}
    whole, prompt = (2, 14), ids[:, :6]
    assert passes(peers.llada_generate, prompt, **canvas) == [whole] * 4
    assert passes(peers.fast_dllm_generate, prompt, **canvas) == [whole] * 4
    assert passes(peers.fast_dllm_generate, prompt, **canvas, cache="prefix") == [whole, (2, 8), whole, (2, 4)]
    assert passes(peers.fast_dllm_generate, prompt, **canvas, cache="dual") == [whole, (2, 4), whole, (2, 4)]


@pytest.mark.usefixtures("uncollected")
def test_adapters_are_timed(benchmarks: Any) -> None:
    assert checked(benchmarks, benchmarks.adapters_speed.measure(1, toy(benchmarks)))


@pytest.mark.usefixtures("uncollected")
def test_nothing_of_a_model_is_left_when_it_was_measured(benchmarks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU two models of 8B parameters at once would not fit."""
    small, built, alive = toy(benchmarks), [], []

    def build(*arguments: Any, **keywords: Any) -> Any:
        gc.collect()
        alive.append(sum(model() is not None for model in built))
        model = made(*arguments, **keywords)
        built.append(weakref.ref(model))
        return model

    made = benchmarks.sft_speed.build
    monkeypatch.setattr(benchmarks.sft_speed, "build", build)
    benchmarks.sft_speed.measure(1, small)
    benchmarks.sft_speed.measure_probes(1, small)
    assert alive == [0] * 5


def test_shapes_that_fit(benchmarks: Any) -> None:
    """LLaDA-8B's weights, gradients and two states, 64 GB, in half of a GPU's memory."""
    from shapes import LLADA_8B, fitting

    assert fitting(LLADA_8B, None) == fitting(LLADA_8B, 141 * 10**9) == LLADA_8B
    assert fitting(LLADA_8B, 80 * 10**9).layers == 18


@pytest.mark.usefixtures("uncollected")
def test_what_a_gpu_times_besides_runs(benchmarks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    small = toy(benchmarks)
    for name, value in (("ROWS", 2), ("LENGTH", 8), ("LAYERS", 2), ("find_spec", lambda name: None)):
        monkeypatch.setattr(benchmarks.kernels_speed, name, value)
    figures = [
        *benchmarks.kernels_speed.parts(2, small, "cpu"),
        *benchmarks.kernels_speed.layers(1, small, "cpu"),
        *benchmarks.head_speed.measure(1, small),
        *benchmarks.passes_speed.measure(1, small, counts=(2,)),
    ]
    apart = [figure.value for figure in figures if figure.unit == "relative"]
    assert len(apart) == 4
    assert max(apart) < 0.02  # bf16
