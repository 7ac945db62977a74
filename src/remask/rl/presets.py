"""Named methods: presets of the policy objective's choices (docs/theory.md §9)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from remask.diffusion.trajectory import Trajectory
from remask.errors import UserError
from remask.rl.effect import check_given, check_switched_on
from remask.rl.policy_loss import PolicyObjective
from remask.training.presets import choose

ESPO = PolicyObjective()
MEAN_FIELD = replace(ESPO, likelihood="mean_field", draws=1, prompt_mask=0.15)
TOKEN_RATIO: dict[str, Any] = {"level": "token", "clip_low": 0.5, "clip_high": 0.5, "kl": "k3", "normaliser": "tokens"}
D2 = replace(ESPO, **TOKEN_RATIO, likelihood="trajectory", draws=1, kl_weight=0.04, scope="until_eos", advantage="mean")
CJ = replace(D2, unit="view", normaliser="sequences")
OWN_POLICY: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.2, "kl_anchor": "old", "kl_weight": 0.01}
SPG = replace(
    ESPO,
    likelihood="block_random",
    prompt_mask=0.15,
    scope="until_eos",
    negatives="power",
    level="none",
    kl="none",
    advantage="mean",
    normaliser="tokens",
)
EACH_TOKEN = replace(
    ESPO,
    likelihood="left_to_right",
    draws=1,
    level="token",
    kl="none",
    normaliser="tokens",
    advantage="normalised",
)
ANSWER = replace(ESPO, kl="none", advantage="normalised")
SQUARE = replace(ESPO, loss="square", kl="none", advantage="mean")

PRESETS: dict[str, PolicyObjective] = {
    "espo": ESPO,  # 2512.03759
    "diffu-grpo": replace(MEAN_FIELD, **TOKEN_RATIO, kl_weight=0.04, scope="until_eos", advantage="mean"),  # d1
    "coupled-grpo": replace(ESPO, **TOKEN_RATIO, likelihood="coupled", draws=1, scope="until_eos"),  # DiffuCoder
    "wd1": replace(  # 2507.08838
        MEAN_FIELD, level="none", kl="none", scope="until_eos", advantage="softmax", normaliser="groups"
    ),
    "d2": replace(D2, segments=16),  # d2-StepMerge, 2509.21474
    "tracerl-blocks": replace(D2, **OWN_POLICY, advantage="normalised"),  # 2509.06949, as its file for SDAR
    "tracerl": replace(D2, **OWN_POLICY, steps_together=8, unit="view", advantage="normalised_population"),  # for LLaDA
    "cj-grpo": CJ,  # 2509.23924
    "agrpo": replace(CJ, pick=24, clip_low=0.2, clip_high=0.2, kl="none"),  # 2510.04019
    "justgrpo": EACH_TOKEN,  # 2601.15165
    "spg": SPG,  # 2510.09541
    "stabledrl": replace(SPG, level="sequence", loss="self_normalised", normaliser="sequences"),  # 2603.06743
    "trajectory-balance": replace(  # 2405.20971
        SQUARE, likelihood="trajectory", draws=1, level="whole", scope="until_eos", reward_scale=10.0
    ),
    "trafl": replace(SQUARE, likelihood="elbo", scope="until_eos"),  # 2605.13935
    "ebpo": replace(ANSWER, likelihood="elbo", draws=16, level="whole", scope="until_eos"),  # 2602.08676
    "gdpo": replace(ANSWER, likelihood="elbo_gauss"),  # 2510.08554
    "sepo": replace(EACH_TOKEN, likelihood="pseudo", scope="until_eos"),  # 2502.01384
    # ESPO's 2×2 ablation, {token, sequence} × {mean field, ELBO}: `espo` and these three.
    "token-elbo": replace(ESPO, level="token"),
    "sequence-mean-field": MEAN_FIELD,
    "token-mean-field": replace(MEAN_FIELD, level="token"),
}

ALIASES = {"gspo-elbo": "espo", "gspo-mean-field": "sequence-mean-field", "grpo-elbo": "token-elbo"}
"""Names of autoregressive methods for the same things: GSPO (2507.18071) is the length-normalised ratio of a whole
answer, GRPO that of a token."""


def resolve(name: str, **choices: Any) -> PolicyObjective:
    """Return the preset of that name, with choices replaced. Raises UserError naming what is unknown, does not fit or
    has no effect. What is given to an objective of a user's own may have any effect there.
    """
    presets = PRESETS | {alias: PRESETS[own] for alias, own in ALIASES.items()}
    objective = choose(presets, name, choices)
    check(objective)
    if name in presets:
        check_given(presets[name], objective, choices)
    return objective


def check(objective: PolicyObjective) -> None:
    """Raises UserError for choices out of their range or that make no sense together."""
    if objective.draws < 1:
        raise UserError(f"choices.draws = {objective.draws}", mend="give 1 or more")
    for name in ("clip_low", "clip_high", "kl_weight"):
        if not getattr(objective, name) >= 0:
            raise UserError(f"choices.{name} = {getattr(objective, name)}", mend="give 0 or more")
    if objective.dual_clip and not 1 < objective.dual_clip < math.inf:
        raise UserError(
            f"choices.dual_clip = {objective.dual_clip}", mend="give a finite number above 1, or 0 for none"
        )
    if math.isinf(objective.kl_weight):
        raise UserError("choices.kl_weight is infinite", mend="give a finite number")
    if not 0 <= objective.prompt_mask < 1:
        raise UserError(f"choices.prompt_mask = {objective.prompt_mask}", mend="give 0 or more and below 1")
    if objective.block_length < 0:
        raise UserError(f"choices.block_length = {objective.block_length}", mend="give 0 or more")
    if objective.advantage == "softmax" and objective.level != "none":
        raise UserError(
            f"softmax weights with a ratio per {objective.level}",
            mend="they weigh likelihoods: set choices.level to none, or take another advantage",
        )
    if objective.likelihood == "trajectory" and objective.scope == "canvas":
        raise UserError(
            "a trajectory's likelihood over the whole canvas: the fill after an answer's end was not written by steps",
            mend="set choices.scope to until_eos",
        )
    if objective.likelihood == "mean_field" and not objective.prompt_mask and objective.draws > 1:
        raise UserError(
            f"choices.draws = {objective.draws}: every draw of mean_field is the same where the prompt is not masked",
            mend="set draws to 1",
        )
    _check_trajectory(objective)
    _check_negatives(objective)
    _check_loss(objective)
    check_switched_on(objective)


def _check_loss(objective: PolicyObjective) -> None:
    """Raises UserError for a loss that does not fit."""
    if not objective.weight_cap > 0 or not 0 < objective.reward_scale < math.inf:
        raise UserError(
            f"choices.weight_cap = {objective.weight_cap}, choices.reward_scale = {objective.reward_scale}",
            mend="give a cap above 0, and a finite scale above 0",
        )
    if objective.loss != "clip" and objective.level not in ("sequence", "whole"):
        raise UserError(
            f"choices.loss = {objective.loss} at level {objective.level}: it is of whole answers",
            mend="set choices.level to sequence or whole, or choices.loss to clip",
        )


def _check_negatives(objective: PolicyObjective) -> None:
    """Raises UserError for a way to combine draws that does not fit."""
    if not 0 < objective.power < math.inf or not 0 <= objective.power_share <= 1:
        raise UserError(
            f"choices.power = {objective.power}, choices.power_share = {objective.power_share}",
            mend="give a finite power above 0, and a share from 0 to 1",
        )
    if objective.negatives == "power" and isinstance(objective.estimator, Trajectory):
        raise UserError(
            f"choices.negatives = power with the likelihood {objective.likelihood}, which has one draw",
            mend="set choices.negatives to mean, or take a likelihood of several draws",
        )
    if objective.negatives == "power" and objective.draws < 2:
        raise UserError(
            "choices.negatives = power with one draw, where it has the gradient of the mean",
            mend="set choices.draws to 2 or more, or choices.negatives to mean",
        )


def _check_trajectory(objective: PolicyObjective) -> None:
    """Raises UserError for choices of a trajectory that do not fit."""
    if objective.steps_together < 1 or objective.segments < 0 or objective.pick < 0:
        raise UserError(
            f"choices.steps_together = {objective.steps_together}, choices.segments = {objective.segments}, "
            f"choices.pick = {objective.pick}",
            mend="give 1 or more steps, and 0 or more segments and picks",
        )
    if isinstance(objective.estimator, Trajectory) and objective.draws > 1:
        raise UserError(
            f"choices.draws = {objective.draws}: an answer was written on one trajectory", mend="set draws to 1"
        )
