"""`remask profile`: parts that add up to the steps of the real trainer, and nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from remask.analysis.profile import PARTS, profile
from remask.cli import main
from remask.config import ProbeConfig, ProfileConfig, SftConfig


@pytest.fixture
def profiled(make_config: Callable[..., SftConfig]) -> Callable[..., dict[str, Any]]:
    """The record of a few steps; `trainer` and further keywords are settings of the run."""

    def run(trainer: dict[str, Any] | None = None, **keywords: Any) -> dict[str, Any]:
        config = make_config(trainer, **keywords)
        return profile(ProfileConfig(**{f.name: getattr(config, f.name) for f in fields(SftConfig)}, steps=3))

    return run


def seconds(record: dict[str, Any]) -> dict[str, float]:
    return {part["name"]: part["seconds"] for part in record["parts"]}


def test_the_parts_of_every_step_add_up_to_it(profiled: Callable[..., dict[str, Any]]) -> None:
    record = profiled(objective="gift")
    assert len(record["steps"]) == 3
    for step in record["steps"]:
        assert list(step["parts"]) == list(PARTS)
        assert all(value > 0 for value in step["parts"].values())
        assert sum(step["parts"].values()) == pytest.approx(step["seconds"], rel=1e-6)
        assert step["parts"]["other"] < 0.5 * step["seconds"]
    assert sum(part["share"] for part in record["parts"]) == pytest.approx(1)
    tokens = sum(step["tokens"] for step in record["steps"])
    assert record["tokens_per_second"] == pytest.approx(tokens / sum(step["seconds"] for step in record["steps"]))


@pytest.mark.parametrize(
    ("settings", "probes"),
    [
        ({"objective": "sft"}, False),
        ({"objective": "gift"}, True),
        ({"objective": "gift", "probe": ProbeConfig(policy="frozen")}, False),
        ({"objective": "lift3"}, True),
        ({"objective": "rho1"}, True),
    ],
)
def test_forward_passes_without_gradient_are_the_probe(
    settings: dict[str, Any], probes: bool, profiled: Callable[..., dict[str, Any]]
) -> None:
    record = profiled(**settings)
    assert (seconds(record)["probe"] > 0) == probes
    assert ("probe" in record["peak_bytes"]) == probes
    assert ("reference model" in record["bytes"]) == (settings["objective"] == "rho1")


def test_parts_and_accumulated_batches_take_their_gradient_in_backward(profiled: Callable[..., dict[str, Any]]) -> None:
    """micro_batch_tokens 16 cuts every batch; the gradients of all parts but the last are taken within the loss. Other
    work on the machine may lengthen either part, so that one of three profiles is to show it.
    """
    shares = []
    while len(shares) < 3 and max(shares, default=0.0) <= 0.2:
        record = profiled({"gradient_accumulation_steps": 2, "micro_batch_tokens": 16})
        assert record["rows_per_step"] == 8
        found = seconds(record)
        assert found["optimiser"] > 0
        shares.append(found["backward"] / found["forward"])
    assert max(shares) > 0.2


def test_bytes_are_those_of_the_model(profiled: Callable[..., dict[str, Any]], checkpoint: Path) -> None:
    record = profiled()
    weights = sum(tensor.nbytes for tensor in load_file(checkpoint / "model.safetensors").values())
    assert record["bytes"]["weights"] == record["bytes"]["gradients"] == weights
    assert record["bytes"]["optimiser states"] >= 2 * weights
    assert record["peak_bytes"]["backward"] >= weights
    assert record["peak_bytes"]["forward"] > 0


def test_the_command_prints_a_table_and_leaves_nothing_behind(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = Path(__file__).parents[2] / "recipes/tiny/gift.yaml"
    flags = ["--config", str(recipe), "--model", str(checkpoint), "--data", str(data), "--steps", "1"]
    cache = ["--probe.policy", "frozen", "--probe.cache", "cache.safetensors"]
    assert main(["profile", *flags, *cache, "--json", "p.json"]) == 0
    printed = capsys.readouterr().out
    for name in (*PARTS, "step"):
        assert f"\n{name} " in printed
    assert "useful tokens/s" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]
    record = json.loads((tmp_path / "p.json").read_text())
    assert record["kind"] == "remask.profile"
    assert record["objective"] == "gift"
    assert record["hardware"]["device"] == "cpu"


def test_settings_that_cannot_be_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--steps", "0"]) == 2
    assert main(["profile", "--objective", "gitf"]) == 2
    assert main(["profile", "--json", str(tmp_path / "no" / "p.json")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 3
