"""Which choices of a policy objective have an effect beside which others: one table, and what is said where they have
none.

A choice that can be switched off (`OFF`) is refused wherever it is on without effect, whether a preset or a user says
so. Any other is refused where a user gives it another value than the preset's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from remask.diffusion.trajectory import Trajectory
from remask.errors import UserError
from remask.rl.policy_loss import PolicyObjective

OFF: dict[str, Any] = {
    "prompt_mask": 0,
    "block_length": 0,
    "dual_clip": 0,
    "steps_together": 1,
    "segments": 0,
    "pick": 0,
    "unit": "token",
    "kl_weight": 0,
}
"""The value of a choice with which nothing is chosen."""


@dataclass(frozen=True)
class Effect:
    """A condition under which choices have an effect.

    names: the choices. holds: whether an objective meets the condition. where: what is said of one that does not, with
    the objective's values in braces. mend: what to do instead of leaving the choice out. given: whether only a value
    that a user gives is refused, also of a choice that can be switched off.
    """

    names: tuple[str, ...]
    holds: Callable[[PolicyObjective], bool]
    where: str
    mend: str
    given: bool = True


def _steps(objective: PolicyObjective) -> bool:
    return isinstance(objective.estimator, Trajectory)


def _clips(objective: PolicyObjective) -> bool:
    return objective.loss == "clip" and objective.level != "none"


UNCLIPPED = "where no ratio is clipped (level {level}, loss {loss})"
TO_CLIP = "set choices.loss to clip and choices.level to another than none"

EFFECTS = (
    Effect(
        ("prompt_mask",),
        lambda objective: objective.likelihood in ("mean_field", "block_random"),
        "with the likelihood {likelihood}: only mean_field and block_random mask the prompt",
        "set choices.likelihood to one of these",
        given=False,
    ),
    Effect(
        ("block_length",),
        lambda objective: objective.likelihood == "block_random",
        "with the likelihood {likelihood}: only block_random takes a length",
        "set choices.likelihood to block_random",
        given=False,
    ),
    Effect(
        ("steps_together", "segments", "pick", "unit"),
        _steps,
        "with the likelihood {likelihood}, which has no steps",
        "set choices.likelihood to trajectory",
        given=False,
    ),
    Effect(
        ("pick", "unit"),
        lambda objective: objective.level == "token",
        "at level {level}, where an answer has one ratio",
        "set choices.level to token",
        given=False,
    ),
    Effect(
        ("steps_together",),
        lambda objective: not objective.segments,
        "with segments {segments}, which cut the trajectory instead",
        "set choices.segments to 0",
    ),
    Effect(
        ("power", "power_share"),
        lambda objective: objective.negatives == "power",
        "with negatives {negatives}, where no power is taken",
        "set choices.negatives to power",
    ),
    Effect(("dual_clip",), _clips, UNCLIPPED, TO_CLIP, given=False),
    Effect(("clip_low", "clip_high"), _clips, UNCLIPPED, TO_CLIP),
    Effect(
        ("weight_cap",),
        lambda objective: objective.loss == "self_normalised",
        "with the loss {loss}, which weighs no answer by its ratio",
        "set choices.loss to self_normalised",
    ),
    Effect(
        ("reward_scale",),
        lambda objective: objective.loss == "square",
        "with the loss {loss}, which takes advantages as they are",
        "set choices.loss to square",
    ),
    Effect(
        ("kl_weight",),
        lambda objective: objective.kl != "none",
        "with kl none, where there is no KL to weigh",
        "set choices.kl to k1, k2 or k3",
    ),
    Effect(
        ("kl_anchor",),
        lambda objective: objective.kl != "none" or objective.loss == "square",
        "with kl none and the loss {loss}, which hold the policy against no anchor",
        "set choices.kl to k1, k2 or k3, or choices.loss to square",
    ),
)


def check_switched_on(objective: PolicyObjective) -> None:
    """Raises UserError for a choice that is switched on and has no effect."""
    for effect in EFFECTS:
        if not effect.given and not effect.holds(objective):
            for name in effect.names:
                if getattr(objective, name) != OFF[name]:
                    raise _without(effect, name, objective)


def check_given(preset: PolicyObjective, objective: PolicyObjective, given: Mapping[str, Any]) -> None:
    """Raises UserError for a choice that a user gives, that is neither the preset's own nor off, and has no effect."""
    for effect in EFFECTS:
        for name in effect.names:
            if name not in given or given[name] in (getattr(preset, name), OFF.get(name)):
                continue
            if not effect.holds(objective):
                raise _without(effect, name, objective)


def _without(effect: Effect, name: str, objective: PolicyObjective) -> UserError:
    off = f"set choices.{name} to {OFF[name]}" if name in OFF else f"leave choices.{name} out"
    where = effect.where.format_map(vars(objective))
    return UserError(
        f"choices.{name} = {getattr(objective, name)} {where}: it has no effect there", mend=f"{off}, or {effect.mend}"
    )
