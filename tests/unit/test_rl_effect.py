"""Choices that have no effect are refused, and those that have one are taken."""

from __future__ import annotations

import re
from dataclasses import asdict, fields
from typing import Any

import pytest

from remask.errors import UserError
from remask.rl.effect import EFFECTS, OFF
from remask.rl.policy_loss import PolicyObjective
from remask.rl.presets import ALIASES, PRESETS, resolve

CHOICES = [field.name for field in fields(PolicyObjective)]
CLIP = "choices.loss to clip and choices.level to another than none"
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("espo", {"weight_cap": 3.0}, "leave choices.weight_cap out, or set choices.loss to self_normalised"),
    ("trafl", {"weight_cap": 3.0}, "with the loss square, which weighs no answer by its ratio"),
    ("spg", {"reward_scale": 2.0}, "leave choices.reward_scale out, or set choices.loss to square"),
    ("stabledrl", {"reward_scale": 2.0}, "with the loss self_normalised, which takes advantages as they are"),
    ("espo", {"power": 2.0}, "leave choices.power out, or set choices.negatives to power"),
    ("spg", {"negatives": "mean", "power": 2.0}, "with negatives mean, where no power is taken"),
    ("espo", {"power_share": 0.0}, "leave choices.power_share out, or set choices.negatives to power"),
    (
        "wd1",
        {"clip_low": 0.1},
        f"(level none, loss clip): it has no effect there; leave choices.clip_low out, or set {CLIP}",
    ),
    ("trafl", {"clip_high": 0.1}, "where no ratio is clipped (level sequence, loss square)"),
    ("stabledrl", {"clip_high": 0.1}, f"leave choices.clip_high out, or set {CLIP}"),
    ("stabledrl", {"dual_clip": 3.0}, f"set choices.dual_clip to 0, or set {CLIP}"),
    ("ebpo", {"kl_weight": 0.05}, "set choices.kl_weight to 0, or set choices.kl to k1, k2 or k3"),
    ("espo", {"kl": "none", "kl_weight": 0.05}, "with kl none, where there is no KL to weigh"),
    (
        "gdpo",
        {"kl_anchor": "old"},
        "leave choices.kl_anchor out, or set choices.kl to k1, k2 or k3, or choices.loss to square",
    ),
    ("d2", {"steps_together": 4}, "with segments 16, which cut the trajectory instead"),
    ("espo", {"steps_together": 4}, "set choices.steps_together to 1, or set choices.likelihood to trajectory"),
    ("espo", {"segments": 4}, "set choices.segments to 0, or set choices.likelihood to trajectory"),
    ("espo", {"pick": 4}, "set choices.pick to 0, or set choices.likelihood to trajectory"),
    ("trajectory-balance", {"pick": 4}, "set choices.pick to 0, or set choices.level to token"),
    ("trajectory-balance", {"unit": "view"}, "at level whole, where an answer has one ratio"),
    ("espo", {"unit": "view"}, "set choices.unit to token, or set choices.likelihood to trajectory"),
    ("espo", {"block_length": 8}, "set choices.block_length to 0, or set choices.likelihood to block_random"),
    ("d2", {"prompt_mask": 0.1}, "set choices.prompt_mask to 0, or set choices.likelihood to one of these"),
]
TAKEN: list[tuple[str, dict[str, Any]]] = [
    ("stabledrl", {"weight_cap": 3.0}),
    ("trafl", {"reward_scale": 2.0}),
    ("spg", {"power": 2.0, "power_share": 0.0}),
    ("espo", {"negatives": "power", "power": 2.0}),
    ("espo", {"loss": "self_normalised", "weight_cap": 3.0}),
    ("wd1", {"level": "token", "advantage": "mean", "clip_low": 0.1}),
    ("ebpo", {"kl": "k3", "kl_weight": 0.05, "kl_anchor": "old"}),
    ("espo", {"kl": "none", "kl_weight": 0.0}),
    ("trafl", {"kl_anchor": "old"}),
    ("d2", {"segments": 0, "steps_together": 4}),
    ("tracerl", {"segments": 4}),
    ("espo", {"pick": 0, "unit": "token", "dual_clip": 0.0}),
]


@pytest.mark.parametrize(("name", "choices", "said"), REFUSED)
def test_a_choice_without_effect_is_one_error(name: str, choices: dict[str, Any], said: str) -> None:
    choice = list(choices)[-1]
    with pytest.raises(UserError, match=re.escape(said)) as refused:
        resolve(name, **choices)
    assert str(refused.value).startswith(f"choices.{choice} = {choices[choice]} ")
    assert refused.value.mend is not None


def test_every_choice_of_the_table_is_tried() -> None:
    named = {name for effect in EFFECTS for name in effect.names}
    assert named == {list(choices)[-1] for _, choices, _ in REFUSED}
    assert named <= set(CHOICES)
    assert {name for effect in EFFECTS if not effect.given for name in effect.names} <= set(OFF)


@pytest.mark.parametrize(("name", "choices"), TAKEN)
def test_a_choice_with_an_effect_is_taken(name: str, choices: dict[str, Any]) -> None:
    found = asdict(resolve(name, **choices))
    assert {key: found[key] for key in choices} == choices


@pytest.mark.parametrize("name", [*PRESETS, *ALIASES])
def test_a_presets_own_values_may_be_given(name: str) -> None:
    preset = resolve(name)
    assert resolve(name, **asdict(preset)) == preset


def test_an_objective_of_a_users_own_may_use_any_choice(tmp_path: Any) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "from dataclasses import dataclass\nfrom remask.rl.policy_loss import PolicyObjective\n"
        "@dataclass(frozen=True)\nclass Own(PolicyObjective):\n"
        "    def surrogate(self, log_ratio, advantage):\n        return -self.weight_cap * log_ratio * advantage\n"
    )
    assert resolve(f"{own}:Own", weight_cap=3.0).weight_cap == 3
