"""Rollouts that are sampled while the last one is trained on: those of a run that samples first, then trains."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import remask.rl.run
from remask.config import (
    DecodingConfig,
    HeldOutConfig,
    LoraConfig,
    PolicyEngineConfig,
    ReferenceConfig,
    RewardsConfig,
    RlConfig,
    RolloutConfig,
)
from remask.errors import UserError
from remask.rl.run import run_rl
from remask.sampling.engine import Answer, LocalEngine, Request
from remask.sampling.schedule import Decoding
from remask.training.run import Outcome

Weights = Callable[[Path], dict[str, torch.Tensor]]
Asked = list[tuple[int, bool]]


class Copied(LocalEngine):
    """Answers with a copy of the weights. asked: (version, whether the training thread asked) of every call."""

    def __init__(self, tokenizer: Any, asked: Asked, fails_at: int) -> None:
        super().__init__(tokenizer, 8)
        self.asked, self.fails_at = asked, fails_at

    def update(self, model: Any, version: int) -> None:
        self.model, self.version = copy.deepcopy(model).eval(), version

    def answer(self, requests: Sequence[Request], decoding: Decoding) -> list[Answer]:
        self.asked.append((self.version, threading.current_thread() is threading.main_thread()))
        if self.version == self.fails_at:
            raise UserError("no server answers")
        time.sleep(0.01 * (len(self.asked) % 3))
        return super().answer(requests, decoding)


class Outside(Copied):
    def snapshot(self, model: Any, version: int) -> tuple[Any, int]:
        return copy.deepcopy(model).eval(), version

    def install(self, weights: tuple[Any, int]) -> None:
        self.model, self.version = weights


CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "a rollout ahead": (1, {}),
    "two ahead, adapters, a reference that follows": (
        2,
        {"lora": LoraConfig(rank=2), "reference": ReferenceConfig(sync_every=2), "objective": "token-elbo"},
    ),
    "on policy": (0, {}),
}


@pytest.fixture
def run(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Outcome, Asked]]:
    def ran(name: str, kind: type[Copied], lag: int, fails_at: int = -1, **more: Any) -> tuple[Outcome, Asked]:
        asked: Asked = []
        monkeypatch.setattr(remask.rl.run, "engine_of", lambda _, tokenizer, *__: kind(tokenizer, asked, fails_at))
        decoding = DecodingConfig(max_new_tokens=8, steps=2, temperature=1.0)
        values: dict[str, Any] = {
            "model": str(checkpoint),
            "tasks": "countdown",
            "problems": 6,
            "max_steps": 6,
            "output_dir": str(tmp_path / name),
            "rewards": RewardsConfig(functions=("share:a", "length")),
            "rollout": RolloutConfig(prompts=2, completions=4, inner_updates=2, max_lag=lag, decoding=decoding),
            "held_out": HeldOutConfig(tasks="none"),
            "trainer": PolicyEngineConfig(
                learning_rate=3e-3, logging_steps=1, save_steps=3, save_total_limit=None, report_to=("none",)
            ),
        }
        return run_rl(RlConfig(**{**values, **more}), quiet=True), asked

    return ran


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_run_that_samples_when_rollouts_are_due_bit_for_bit(
    case: str, run: Callable[..., tuple[Outcome, Asked]], weights: Weights, tmp_path: Path
) -> None:
    """Weights and completions; and those of a run that goes on from a checkpoint in the middle of a rollout."""
    lag, more = CASES[case]
    (due, asked_due), (ahead, asked) = run("due", Copied, lag, **more), run("ahead", Outside, lag, **more)
    resumed, asked_again = run("on", Outside, lag, resume=str(tmp_path / "ahead" / "checkpoint-3"), **more)
    expected = weights(due.folder)
    for other in (ahead, resumed):
        found = weights(other.folder)
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert (ahead.folder / "completions.jsonl").read_bytes() == (due.folder / "completions.jsonl").read_bytes()

    versions = [max(0, 2 * (number - lag)) for number in range(3 + lag)]  # two steps a rollout, three rollouts used
    assert [version for version, _ in asked] == [version for version, _ in asked_due] == versions
    assert [version for version, _ in asked_again] == versions[2 + lag :]  # those begun before step 3 are kept
    assert {by_trainer for _, by_trainer in asked_due} == {True}
    assert {by_trainer for _, by_trainer in asked} == {lag == 0}
    logged = [json.loads(line) for line in (ahead.folder / "metrics.jsonl").read_text().splitlines()]
    assert any("share_waiting" in row for row in logged) == bool(lag)
    assert all(row.get("share_update", 0) >= 0 for row in logged)


def test_what_goes_wrong_while_it_samples_ends_the_run(run: Callable[..., tuple[Outcome, Asked]]) -> None:
    with pytest.raises(UserError, match="in rollout 2, no server answers"):
        run("fails", Outside, 1, fails_at=2)


@pytest.mark.parametrize("lag", [0, 1])
def test_answers_of_older_weights_than_were_given_end_the_run(
    lag: int, run: Callable[..., tuple[Outcome, Asked]]
) -> None:
    class Late(Outside):
        def install(self, weights: tuple[Any, int]) -> None:
            super().install((weights[0], 0))

        def update(self, model: Any, version: int) -> None:
            self.install(self.snapshot(model, version))

    with pytest.raises(UserError, match=f"rollout {lag + 1} has answers of version 0; the engine was given 2"):
        run("late", Late, lag, max_steps=4)
