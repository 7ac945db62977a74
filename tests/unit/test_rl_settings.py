"""What a trajectory's gradient leaves out is told, where the weights choose the order of writing."""

from __future__ import annotations

from typing import Any

import pytest

from remask.rl.presets import PRESETS, resolve
from remask.rl.settings import tell_what_the_gradient_lacks
from remask.sampling.schedule import Decoding


def told(capsys: pytest.CaptureFixture[str], name: str, **decoding: Any) -> str:
    tell_what_the_gradient_lacks(resolve(name), Decoding(**{"max_new_tokens": 8, "temperature": 1.0, **decoding}))
    return capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.likelihood == "trajectory"])
@pytest.mark.parametrize("reveal", ["confidence", "margin", "entropy"])
def test_an_order_that_the_weights_choose_is_told(name: str, reveal: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = told(capsys, name, reveal=reveal)
    assert said.count("\n") == 1
    assert f"(reveal {reveal})" in said
    assert "with --rollout.decoding.reveal random it adds nothing" in said


def test_a_threshold_is_told_with_what_has_to_go(capsys: pytest.CaptureFixture[str]) -> None:
    assert "(reveal confidence, threshold 0.9)" in told(capsys, "cj-grpo", threshold=0.9)
    assert "reveal random and no threshold it adds nothing" in told(capsys, "cj-grpo", threshold=0.9)
    said = told(capsys, "cj-grpo", threshold=0.9, stop_last=True)
    assert "reveal random and no threshold and no stop_last it adds nothing" in said


@pytest.mark.parametrize(
    ("name", "decoding"),
    [
        ("cj-grpo", {"reveal": "random"}),
        ("cj-grpo", {"reveal": "left_to_right"}),
        ("cj-grpo", {"block_length": 1}),  # nothing to choose from
        ("cj-grpo", {"block_length": 1, "threshold": 0.9}),
        ("cj-grpo", {"block_length": 4, "steps": 2}),  # a step writes a whole block
        ("espo", {}),
        ("justgrpo", {}),  # told of otherwise
    ],
)
def test_nothing_is_told_where_the_weights_choose_no_place(
    name: str, decoding: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(capsys, name, **decoding) == ""


def test_the_places_are_chosen_within_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    assert "(reveal confidence)" in told(capsys, "cj-grpo", block_length=4, steps=4)
