"""One policy objective and its choices (docs/theory.md §9): likelihood, level, loss, KL, advantage, normaliser.

A method is a preset of the choices (`rl.presets`). What is minimised is

    (1/N) Σ_rows [ −min(ρ·A, clip(ρ, 1 − ε_low, 1 + ε_high)·A) + β·KL ]

with ρ per token (the bracket is the answer's mean) or per answer: `sequence` is exp((ℓ − ℓ_old)/n), the geometric mean
of its tokens' ratios, `whole` exp(ℓ − ℓ_old), their product. At level none −A·ℓ stands in place of the ratio's term.
Where N counts scored tokens, an answer's bracket counts n times, with −A·ℓ/n in it: ℓ is a sum over tokens.

Two losses may stand in place of the clipped ratio's, where an answer has one ratio. With sg[·] without gradient, the
mean over the row's group, and ℓ̄ = ℓ/n (`sequence`) or ℓ (`whole`):

    self_normalised     −sg[min(ρ, cap) / mean min(ρ, cap)]·A·ℓ̄         (StableDRL, arXiv 2603.06743)
    square              (d − sg[mean d] − scale·A)²,  d = ℓ̄ − ℓ̄_anchor  (trajectory balance, arXiv 2405.20971)

Each scored token has a share of its answer: 1, or with the unit `view` one part of the tokens that are scored in one
view with it, so that a view counts as much as any other. Means over an answer, and n, are taken with these shares.

An advantage belongs to a token. At the levels of an answer all its scored tokens share one.

Shapes: B rows, L length; ℓ a row's or a token's log-likelihood in nats, n the sum of a row's shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from remask.choices import (
    AdvantageName,
    AnchorName,
    KlName,
    LevelName,
    LikelihoodName,
    LossName,
    NegativesName,
    PolicyNormaliserName,
    ScopeName,
    UnitName,
)
from remask.diffusion.block_random import block_random_views, power_mean
from remask.diffusion.corruption import Canvas
from remask.diffusion.estimators import ESTIMATORS
from remask.diffusion.likelihood import Combine, Draws, Estimator, Likelihood, mean_field_views
from remask.diffusion.trajectory import Trajectory
from remask.errors import UserError

MAX_LOG_RATIO = 20.0
"""The bound to which log-ratios are cut before exp: ±20. How many were cut is logged."""


@dataclass(frozen=True)
class PolicyObjective:
    """A policy objective holds the choices that make a policy loss.

    likelihood, draws (K), scope, prompt_mask and fresh_noise say how answers are scored: by which proxy, on how many
    draws, over which positions, with what share of the prompt masked (mean_field, block_random), and whether every
    inner update draws new noise. steps_together and segments cut a trajectory into views, of which `pick` are scored.
    negatives, power and power_share say how draws are combined where A ≤ 0. loss says what is made of the ratio at the
    level, with clip_low, clip_high and dual_clip (clip), weight_cap (self_normalised) or reward_scale (square).
    normaliser is N: the answers, scored tokens or groups of the whole optimiser step; unit says whether a token or a
    view counts as one.
    """

    likelihood: LikelihoodName = "elbo_coupled"
    draws: int = 2
    scope: ScopeName = "canvas"
    prompt_mask: float = 0.0
    fresh_noise: bool = True
    block_length: int = 0
    steps_together: int = 1
    segments: int = 0
    pick: int = 0
    negatives: NegativesName = "mean"
    power: float = 1.5
    power_share: float = 0.5
    level: LevelName = "sequence"
    loss: LossName = "clip"
    weight_cap: float = 5.0
    reward_scale: float = 1.0
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 0.0
    kl: KlName = "k2"
    kl_weight: float = 0.01
    kl_anchor: AnchorName = "reference"
    advantage: AdvantageName = "leave_one_out"
    normaliser: PolicyNormaliserName = "sequences"
    unit: UnitName = "token"

    @property
    def uses_old(self) -> bool:
        """Return whether the likelihood at the time of the rollout is needed."""
        return self.has_ratio or (self.uses_anchor and self.kl_anchor == "old")

    @property
    def uses_kl(self) -> bool:
        """Return whether the loss has a KL term."""
        return self.kl != "none" and self.kl_weight > 0

    @property
    def uses_anchor(self) -> bool:
        """Return whether the loss holds likelihoods against those of an anchor."""
        return self.uses_kl or self.loss == "square"

    @property
    def uses_reference(self) -> bool:
        """Return whether the reference model's likelihood is needed."""
        return self.uses_anchor and self.kl_anchor == "reference"

    @property
    def has_ratio(self) -> bool:
        """Return whether likelihoods are compared with those at the time of the rollout."""
        return self.level != "none" and self.loss != "square"

    @property
    def uses_groups(self) -> bool:
        """Return whether an answer's loss depends on the others of its group, beyond its advantage."""
        return self.loss != "clip"

    @property
    def estimator(self) -> Estimator:
        """Return the estimator that scores answers. A subclass may have another (docs/extending.md)."""
        if self.likelihood == "mean_field" and self.prompt_mask:
            return Estimator(partial(mean_field_views, prompt_rate=self.prompt_mask))
        if self.likelihood == "block_random":
            return Estimator(partial(block_random_views, length=self.block_length, clean_rate=self.prompt_mask))
        estimator = ESTIMATORS[self.likelihood]
        if isinstance(estimator, Trajectory):
            return replace(estimator, run=self.steps_together, segments=self.segments, pick=self.pick)
        return estimator

    def shares(self, canvas: Canvas, draws: Draws) -> Float[Tensor, "B L"]:
        """Return what each token counts in its answer: 0 where it is not scored."""
        return self.estimator.shares(canvas, draws, of_views=self.unit == "view")

    def combine(self, advantage: Float[Tensor, "B L"]) -> Combine:
        """Return the rule from the draws' values to the likelihood's. Answers that are to become less likely may have
        another one than the others: the estimate that is pushed down should bound from above. A subclass may have a
        rule of its own.
        """
        mean = self.estimator.combine
        if self.negatives == "mean":
            return mean

        def of(values: Sequence[Tensor], draws: Draws = ()) -> Tensor:
            below, above = mean(values, draws), power_mean(values, draws, power=self.power)
            mixed = self.power_share * above + (1 - self.power_share) * below
            return torch.where(advantage > 0, below, mixed)

        return of

    def surrogate(self, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        """Return the loss of a ratio of likelihoods, of an answer [B] or of its tokens [B, L]: −min(ρ·A, clip(ρ)·A)
        (PPO, arXiv 1707.06347), with dual_clip c at most −c·A where A < 0 (arXiv 1912.09729). A subclass may have
        another (docs/extending.md).
        """
        ratio = bounded_exp(log_ratio)
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        loss = -torch.minimum(ratio * advantage, clipped * advantage)
        if not self.dual_clip:
            return loss
        return torch.where(advantage < 0, torch.minimum(loss, -self.dual_clip * advantage), loss)


@dataclass(frozen=True)
class PolicyTerms:
    """The terms of a policy loss in a micro-batch.

    row [B]: each row's part of the numerator. ratio, clipped_low, clipped_high, cut [M]: one value for every ratio
    there is (M rows or tokens). kl [B]: each row's KL estimate per token, unweighted.
    """

    row: Float[Tensor, "B"]
    ratio: Float[Tensor, "M"]
    clipped_low: Bool[Tensor, "M"]
    clipped_high: Bool[Tensor, "M"]
    cut: Bool[Tensor, "M"]
    kl: Float[Tensor, "B"]


def kl_estimate(name: KlName, log_ratio: Tensor) -> Tensor:
    """Estimate KL(π ‖ π_ref) from d = ℓ − ℓ_ref: k1 = d, k2 = ½d², k3 = e^(−d) + d − 1 (Schulman 2020).

    As a loss on the policy's samples, k2's gradient is that of this KL, k3's that of KL(π_ref ‖ π), and k1's vanishes
    in expectation.
    """
    if name == "k1":
        return log_ratio
    if name == "k2":
        return log_ratio.square() / 2
    if name == "k3":
        return bounded_exp(-log_ratio) + log_ratio - 1
    return torch.zeros_like(log_ratio)


def policy_terms(
    objective: PolicyObjective,
    advantage: Float[Tensor, "B #L"],
    current: Likelihood,
    old: Likelihood | None,
    reference: Likelihood | None,
    shares: Float[Tensor, "B L"] | Bool[Tensor, "B L"],
    group: Float[Tensor, "B"] | None = None,
) -> PolicyTerms:
    """Return the terms of a micro-batch. `old` and `reference` carry no gradient; each may be missing where it is not
    used. shares: what each token counts (`PolicyObjective.shares`); a mask stands for ones. group: what its group says
    of each row (`rl.in_groups`): its weight (self_normalised), or the group's mean log-ratio to the anchor (square). It
    may be missing where nothing has moved.

    Raises UserError where the level is of answers and the tokens of one have different advantages.
    """
    scored, n = shares > 0, sizes(shares)
    at_tokens = objective.level == "token"
    advantage = advantage.expand(scored.shape)
    anchor = reference if objective.kl_anchor == "reference" else _unmoved(current) if old is None else old
    gain = advantage if at_tokens else row_advantage(objective, advantage, scored)
    if at_tokens:
        log_ratio = current.token - (current.token.detach() if old is None else old.token)
        surrogate = _per_row(objective.surrogate(log_ratio, gain), shares)
    else:
        log_ratio, surrogate = _of_answers(objective, gain, current, old, anchor, n, group)
    kl = torch.zeros_like(current.sequence)
    if objective.uses_kl and anchor is not None and at_tokens:
        kl = _per_row(kl_estimate(objective.kl, current.token - anchor.token), shares)
    elif objective.uses_kl and anchor is not None:
        kl = kl_estimate(objective.kl, current.sequence - anchor.sequence) / n
    row = surrogate + objective.kl_weight * kl
    if objective.normaliser == "tokens":
        row = row * n
    shown, sign = (log_ratio.detach()[scored], gain[scored]) if at_tokens else (log_ratio.detach(), gain)
    ratio = bounded_exp(shown)
    clips = objective.loss == "clip"
    return PolicyTerms(
        row,
        ratio,
        clipped_low=(ratio < 1 - objective.clip_low) & (sign < 0) & clips,
        clipped_high=(ratio > 1 + objective.clip_high) & (sign > 0) & clips,
        cut=shown.abs() > MAX_LOG_RATIO,
        kl=kl.detach(),
    )


def _of_answers(
    objective: PolicyObjective,
    gain: Float[Tensor, "B"],
    current: Likelihood,
    old: Likelihood | None,
    anchor: Likelihood | None,
    n: Tensor,
    group: Float[Tensor, "B"] | None,
) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
    """The log-ratio and the loss of each answer, where it has one ratio or none."""
    if objective.level == "none":
        loss = -gain * current.sequence / (n if objective.normaliser == "tokens" else 1)
        return torch.zeros_like(current.sequence), loss
    length = n if objective.level == "sequence" else 1
    if objective.loss == "square":
        assert anchor is not None
        distance = (current.sequence - anchor.sequence) / length - (0 if group is None else group)
        return torch.zeros_like(distance), (distance - objective.reward_scale * gain).square()
    log_ratio = (current.sequence - (current.sequence.detach() if old is None else old.sequence)) / length
    if objective.loss == "self_normalised":
        return log_ratio, -(1 if group is None else group) * gain * current.sequence / length
    return log_ratio, objective.surrogate(log_ratio, gain)


def row_advantage(
    objective: PolicyObjective, advantage: Float[Tensor, "B L"], scored: Bool[Tensor, "B L"]
) -> Float[Tensor, "B"]:
    """Return the one advantage of each answer's scored tokens; 0 where none is scored."""
    first = scored.long().argmax(-1, keepdim=True)
    value = advantage.gather(1, first)
    if (torch.where(scored, advantage, value) != value).any():
        raise UserError(
            f"an answer's tokens have different advantages, and at level {objective.level} it has one likelihood",
            mend="use level: token",
        )
    return (value * scored.any(-1, keepdim=True))[:, 0]


def rows_counted(
    objective: PolicyObjective,
    counted: Bool[Tensor, "B"],
    shares: Float[Tensor, "B L"] | Bool[Tensor, "B L"],
    group_size: int,
) -> Float[Tensor, ""]:
    """Return N of these rows: answers, the sum of their tokens' shares, or groups (a row is 1/G of one). A row that is
    not counted adds 0.
    """
    if objective.normaliser == "tokens":
        return (shares.sum(-1) * counted).sum().float()
    rows = counted.sum().float()
    return rows / group_size if objective.normaliser == "groups" else rows


def _unmoved(current: Likelihood) -> Likelihood:
    """What the policy said of answers that it has just written: what it says now."""
    return Likelihood(current.token.detach(), current.sequence.detach(), current.scored)


def bounded_exp(log_ratio: Tensor) -> Tensor:
    """Return the ratio, of a log-ratio cut to ±20."""
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def sizes(shares: Tensor) -> Float[Tensor, "B"]:
    """Return the sum of each row's shares; 1 where nothing is scored, as it divides."""
    size = shares.sum(-1)
    return torch.where(size > 0, size, 1)


def _per_row(token: Float[Tensor, "B L"], shares: Tensor) -> Float[Tensor, "B"]:
    """The mean over a row's scored tokens, each with its share."""
    return torch.where(shares > 0, token * shares, 0.0).sum(-1) / sizes(shares)
