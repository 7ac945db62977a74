"""DPO with estimated likelihoods (VRPO, arXiv 2505.19223, eq. 7–8). What is minimised is the mean over pairs of

    −(1 − s)·log σ(m) − s·log σ(−m) + λ·(−ℓ_θ(y_w)/n_w) ,   m = r(y_w) − r(y_l) ,   r(y) = β·(ℓ_θ(y) − ℓ_ref(y))

with y_w the chosen and y_l the rejected answer, ℓ an estimate of log p in nats over n tokens, s the label smoothing
(the chance that a pair is labelled the wrong way round) and λ the weight of the SFT term. Length-normalised, r is
divided by the answer's n.

As −log σ is not linear, the variance of m biases the loss as well as making it noisy. VRPO lowers it by K draws, each
with a time and a mask of its own, and by reading policy and reference on the same draws: what they have in common
cancels.

Shapes: P pairs; likelihoods have 2P rows, the P chosen answers first, then the P rejected ones in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from remask.choices import PreferenceLikelihoodName
from remask.diffusion.likelihood import Likelihood


@dataclass(frozen=True)
class PreferenceObjective:
    """A preference objective holds the choices that make a preference loss.

    likelihood, draws (K) and shared_noise say how answers are scored: by which estimate, on how many draws, and whether
    policy and reference are read on the same ones. The rest are the loss's s, λ, β, and its normalisation. The defaults
    are LLaDA 1.5's: β = 0.2, K = 8, λ = 0.05 (its appendix D.3).
    """

    likelihood: PreferenceLikelihoodName = "elbo"
    draws: int = 8
    shared_noise: bool = True
    beta: float = 0.2
    label_smoothing: float = 0.0
    sft_weight: float = 0.05
    length_normalised: bool = False


@dataclass(frozen=True)
class PreferenceTerms:
    """The terms of a preference loss in a micro-batch.

    pair [P]: each pair's loss. reward_chosen, reward_rejected [P]: r, without gradient. margin [P]: their difference m.
    right [P]: 1 where the margin is above 0, ½ where it is 0 (nothing has moved), else 0.
    """

    pair: Float[Tensor, "P"]
    reward_chosen: Float[Tensor, "P"]
    reward_rejected: Float[Tensor, "P"]
    margin: Float[Tensor, "P"]
    right: Float[Tensor, "P"]


def preference_terms(objective: PreferenceObjective, current: Likelihood, reference: Likelihood) -> PreferenceTerms:
    """Return the terms of a micro-batch. `reference` carries no gradient."""
    n = current.scored.clamp(min=1)
    gain = current.sequence - reference.sequence
    reward = objective.beta * (gain / n if objective.length_normalised else gain)
    chosen, rejected = reward.chunk(2)
    margin = chosen - rejected
    smoothing = objective.label_smoothing
    pair = -(1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin)
    if objective.sft_weight:
        pair = pair - objective.sft_weight * (current.sequence / n).chunk(2)[0]
    shown = margin.detach()
    return PreferenceTerms(
        pair,
        chosen.detach(),
        rejected.detach(),
        shown,
        right=(shown > 0).float() + (shown == 0).float() / 2,
    )


def measured(terms: PreferenceTerms, current: Likelihood) -> dict[str, Float[Tensor, "P"]]:
    """Return what is logged of each pair, by name."""
    per_token = (current.sequence.detach() / current.scored.clamp(min=1)).chunk(2)
    return {
        "loss": terms.pair.detach(),
        "accuracy": terms.right,
        "margin": terms.margin,
        "reward_chosen": terms.reward_chosen,
        "reward_rejected": terms.reward_rejected,
        "elbo_per_token_chosen": per_token[0],
        "elbo_per_token_rejected": per_token[1],
    }
