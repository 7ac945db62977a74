"""One SFT objective, four choices (docs/theory.md §5):

    loss = (1/N) Σ_{i∈R} w_i · m_i · ce_i ,    m_i = [u_i < p_i]

A method is a choice of masking rate p, importance β, weight w and normaliser N. `corrupt` masks, `token_weights` gives
w, `denominator` counts N; nothing here draws a random number or knows a method's name.

Shapes: B batch, L length, N scored positions (masked and supervised, in row-major order).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from remask.choices import (
    NoiseScheduleName,
    NormaliserName,
    RateName,
    ReferenceName,
    SignalName,
    TimePerName,
    TransformName,
    WeightName,
    refuse_unknown,
)
from remask.diffusion.corruption import (
    Canvas,
    Corrupted,
    LiftRule,
    apply_mask,
    bernoulli_mask,
    importance_rate,
    lift_mask,
    lift_rule,
    lift_superset_rate,
    uniform_rate,
)
from remask.diffusion.importance import Importance, importance
from remask.diffusion.noise import Noise
from remask.diffusion.reader import Reader
from remask.diffusion.times import MIN_TIME, Schedule
from remask.diffusion.weights import READ_LOSSES, WEIGHTS, Scored
from remask.errors import UserError

LIFT_RULES: dict[str, tuple[LiftRule, ...]] = {"lift2": ("easy", "hard"), "lift3": ("easy", "hard", "plain")}


@dataclass(frozen=True)
class Objective:
    """An objective holds the four choices and their parameters. A subclass with further fields may weigh losses
    otherwise, or have losses other than cross-entropies (docs/extending.md).

    rate: p_i. signal, transform, reference: β_i and β_ref. weight: w_i; alpha its exponent (1/p^α), keep the share of
    masked tokens Rho-1 keeps, cart_q the parameter of CART's geometric kernel. normaliser: N. schedule, rate_low,
    rate_high: how times are drawn (`times.Schedule`). time_per: whether in a block model each row has one time, or each
    block. complement: read every row a second time with the tokens masked that were not (`complement_of`).
    """

    rate: RateName = "uniform"
    signal: SignalName = "entropy"
    transform: TransformName = "sqrt"
    reference: ReferenceName = "sequence"
    weight: WeightName = "inverse_rate"
    alpha: float = 1.0
    keep: float = 0.6
    cart_q: float = 0.1
    normaliser: NormaliserName = "response"
    schedule: NoiseScheduleName = "linear"
    rate_low: float = MIN_TIME
    rate_high: float = 1.0
    time_per: TimePerName = "block"
    complement: bool = False

    masks: ClassVar[bool] = True
    """Whether noise masks tokens: `corrupt` is for those objectives alone."""

    def __post_init__(self) -> None:
        choices = (
            ("rate", RateName),
            ("schedule", NoiseScheduleName),
            ("time_per", TimePerName),
            ("signal", SignalName),
            ("transform", TransformName),
            ("reference", ReferenceName),
            ("weight", WeightName),
            ("normaliser", NormaliserName),
        )
        for name, kind in choices:
            refuse_unknown(name, getattr(self, name), kind)
        for name, low, high in (("alpha", 0.0, 1.0), ("keep", 0.0, 1.0), ("cart_q", 0.0, 1.0)):
            if not low <= getattr(self, name) <= high:
                raise UserError(f"{name} = {getattr(self, name)}", mend=f"give a number in [{low:g}, {high:g}]")
        if self.keep == 0:
            raise UserError("keep = 0: no token would be learned", mend="give more than 0")
        _ = self.times  # refuses a range of rates that is none

    @property
    def times(self) -> Schedule:
        """Return the schedule of masking rates."""
        return Schedule(self.schedule, self.rate_low, self.rate_high)

    @property
    def uses_importance(self) -> bool:
        """Return whether β is read at all."""
        return self.rate == "importance" or self.weight == "importance"

    @property
    def uses_probe(self) -> bool:
        """Return whether β needs a forward of the model (a constant β does not)."""
        return self.uses_importance and self.signal != "constant"

    @property
    def uses_reference_model(self) -> bool:
        """Return whether the weight needs a reference model's losses."""
        return self.weight == "rho1"

    @property
    def reads_losses(self) -> bool:
        """Return whether a weight depends on the losses it weighs."""
        return self.weight in READ_LOSSES or type(self).weigh is not Objective.weigh

    @property
    def knows_weights(self) -> bool:
        """Return whether the losses are cross-entropies whose weights can be computed before them."""
        return not self.reads_losses and type(self).token_losses is Objective.token_losses

    def weigh(self, scored: Scored) -> Float[Tensor, "N"]:
        """Return the weight w_i of each scored token."""
        return WEIGHTS[self.weight](scored)

    def token_losses(
        self, reader: Reader, canvas: Canvas, corrupted: Corrupted, where: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "N"]:
        """Return the loss at each scored position that is weighed, with its gradient: −log p(x_i)."""
        return reader.losses(corrupted.ids, canvas, where)


def read_importance(objective: Objective, canvas: Canvas, noise: Noise, signal: Float[Tensor, "B L"]) -> Importance:
    """Return β and β/β_ref from a probe's signal, shuffled for the permuted control."""
    shuffle = None
    if objective.signal == "permuted_entropy":
        if noise.v is None:
            raise UserError("the permuted control needs Noise.v", mend="make the noise with row_noise")
        shuffle = noise.v
    return importance(signal, canvas.corruptible, objective.transform, objective.reference, shuffle)


def refuse_unmasking(objective: Objective) -> None:
    """Raises UserError for an objective whose noise does not mask."""
    if not objective.masks:
        raise UserError("this objective replaces tokens by others", mend="use one that masks, such as sft")


def corrupt(
    objective: Objective,
    canvas: Canvas,
    noise: Noise,
    mask_id: int,
    *,
    signal: Float[Tensor, "B L"] | None = None,
    reader: Reader | None = None,
) -> Corrupted:
    """Mask a canvas as the objective says.

    `signal` (from `probe_signal` or a cache) is needed where `objective.uses_importance`; `reader` where the mask
    depends on a further forward (LIFT). Raises UserError if the one needed is missing, or for an objective that does
    not mask.
    """
    refuse_unmasking(objective)
    if canvas.block is not None and objective.time_per == "block" and objective.rate not in LIFT_RULES:
        noise = noise.per_block(canvas.block)  # LIFT chooses a rule for a row by its one time
    ratio, times = None, objective.times
    time = times.rate(noise.tau)
    if objective.uses_importance:
        if signal is None:
            raise UserError("this objective reads β", mend="pass the probe's signal")
        ratio = read_importance(objective, canvas, noise, signal).ratio
    if objective.rate in LIFT_RULES:
        if reader is None or noise.s is None:
            raise UserError("LIFT needs a model's predictions and Noise.s", mend="pass reader and full noise")
        rate = uniform_rate(time, canvas.corruptible)
        mask = _lift(LIFT_RULES[objective.rate], canvas, noise, time.amax(-1), mask_id, reader)
    else:
        if objective.rate == "importance":
            assert ratio is not None
            rate = importance_rate(time, ratio, canvas.corruptible)
        else:
            rate = uniform_rate(time, canvas.corruptible)
        mask = bernoulli_mask(noise.u, rate, canvas.corruptible)
    return Corrupted(apply_mask(canvas.ids, mask, mask_id), mask, rate, time, ratio, times.weight(noise.tau))


def complement_of(canvas: Canvas, corrupted: Corrupted, mask_id: int) -> Corrupted:
    """Return the canvas with the response's other tokens masked, at the rates 1 − p: of the pair every token is learned
    once (Fast-dLLM v2, arXiv 2509.26328).
    """
    mask = canvas.corruptible & ~corrupted.mask
    rate, time = ((1 - value).clamp(MIN_TIME, 1.0) for value in (corrupted.rate, corrupted.time))
    ids = apply_mask(canvas.ids, mask, mask_id)
    return replace(corrupted, ids=ids, mask=mask, rate=rate * canvas.corruptible, time=time)


def _lift(
    rules: tuple[LiftRule, ...], canvas: Canvas, noise: Noise, t: Float[Tensor, "B"], mask_id: int, reader: Reader
) -> Bool[Tensor, "B L"]:
    """Sample a superset, score it in one forward without gradient, keep part of it. A row chooses its rule by its own
    t: a batch mean of stratified times is always near ½ and would choose the same rule for ever.
    """
    assert noise.s is not None
    superset_rate = lift_superset_rate(t, noise.s)
    superset = bernoulli_mask(noise.u, uniform_rate(superset_rate[:, None], canvas.corruptible), canvas.corruptible)
    gold_nll = torch.zeros(canvas.ids.shape, dtype=torch.float32, device=canvas.ids.device)
    with torch.no_grad():
        hidden = apply_mask(canvas.ids, superset, mask_id)
        gold_nll[superset] = reader.losses(hidden, canvas, superset)
    chosen = [lift_rule(time, rules) for time in t.tolist()]
    return lift_mask(superset, gold_nll, noise.u, t, superset_rate, chosen)


def scored_positions(canvas: Canvas, corrupted: Corrupted) -> Bool[Tensor, "B L"]:
    """Return where loss is taken: at the tokens that are masked and supervised."""
    return corrupted.mask & canvas.supervised


def token_weights(
    objective: Objective,
    canvas: Canvas,
    corrupted: Corrupted,
    ce: Float[Tensor, "N"],
    ce_reference: Float[Tensor, "N"] | None = None,
) -> Float[Tensor, "N"]:
    """Return w_i at the scored positions, without gradient. Raises UserError where a reference loss is needed and
    missing.
    """
    if objective.uses_reference_model and ce_reference is None:
        raise UserError("this objective compares with a reference model", mend="pass ce_reference")
    where = scored_positions(canvas, corrupted)
    ratio, density = corrupted.importance, corrupted.density
    weights = objective.weigh(
        Scored(
            objective,
            corrupted.rate[where],
            corrupted.time.expand(where.shape)[where],
            None if ratio is None else ratio[where],
            ce.detach(),
            ce_reference,
            where,
            corrupted.mask,
            canvas.attended,
            canvas.block,
        )
    )
    return weights if density is None else weights * density[where]


def _row_divisor(objective: Objective, canvas: Canvas) -> Float[Tensor, "B"]:
    """Supervised tokens of each row under `sequence`, else 1."""
    if objective.normaliser == "sequence":
        return canvas.supervised.sum(-1).clamp(min=1).float()
    return torch.ones(len(canvas.ids), device=canvas.ids.device)


def row_losses(
    objective: Objective,
    canvas: Canvas,
    corrupted: Corrupted,
    ce: Float[Tensor, "N"],
    ce_reference: Float[Tensor, "N"] | None = None,
) -> Float[Tensor, "B"]:
    """Return each row's share of the numerator: Σ_i w_i·m_i·ce_i, divided by its supervised tokens under `sequence`.

    A row with nothing masked contributes 0. The loss of a global batch is the sum of its rows over its `denominator`.
    """
    where = scored_positions(canvas, corrupted)
    weights = token_weights(objective, canvas, corrupted, ce, ce_reference)
    return _summed(objective, canvas, where, weights * ce)


def _summed(
    objective: Objective, canvas: Canvas, where: Bool[Tensor, "B L"], weighted: Float[Tensor, "N"]
) -> Float[Tensor, "B"]:
    """The sum over each row's scored tokens, over the row's divisor."""
    rows = weighted.new_zeros(where.shape[0]).index_add(0, where.nonzero()[:, 0], weighted)
    return rows / _row_divisor(objective, canvas)


@dataclass(frozen=True)
class SftTerms:
    """The terms are what a micro-batch adds to the numerator: `loss`, with its gradient, and without gradient each
    row's share `rows` and the weight w_i of each scored token.
    """

    loss: Float[Tensor, ""]
    rows: Float[Tensor, "B"]
    weights: Float[Tensor, "N"]


def sft_terms(
    objective: Objective,
    reader: Reader,
    canvas: Canvas,
    corrupted: Corrupted,
    ce_reference: Float[Tensor, "N"] | None = None,
) -> SftTerms:
    """Read the corrupted rows and weigh the losses of their scored tokens. Where the weights do not depend on the
    losses, the gradient is formed in the same pass as they (`Reader.weighted_loss`).
    """
    where = scored_positions(canvas, corrupted)
    if not objective.knows_weights:
        each = objective.token_losses(reader, canvas, corrupted, where)
        weights = token_weights(objective, canvas, corrupted, each, ce_reference)
        rows = _summed(objective, canvas, where, weights * each)
        return SftTerms(rows.sum(), rows.detach(), weights)
    unread = corrupted.rate.new_zeros(int(where.sum()))
    weights = token_weights(objective, canvas, corrupted, unread, ce_reference)
    divisor = _row_divisor(objective, canvas)[where.nonzero()[:, 0]]
    loss, ce = reader.weighted_loss(corrupted.ids, canvas, where, weights / divisor)
    rows = _summed(objective, canvas, where, weights * ce)
    return SftTerms(rows.sum() + (loss - loss.detach()), rows, weights)  # the rows' sum, with the gradient of `loss`


def denominator(objective: Objective, canvas: Canvas, corrupted: Corrupted) -> Float[Tensor, ""]:
    """Return this micro-batch's part of N, to be added up over accumulation steps and ranks before dividing.

    response: supervised tokens. masked: supervised tokens that were masked. sequence: rows with a supervised token.
    """
    if objective.normaliser == "response":
        count = canvas.supervised.sum()
    elif objective.normaliser == "masked":
        count = scored_positions(canvas, corrupted).sum()
    else:
        count = canvas.supervised.any(-1).sum()
    return count.float()
