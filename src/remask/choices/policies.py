"""The choices that score an answer and make a method of reinforcement learning or preferences."""

from __future__ import annotations

from typing import Annotated, Literal

from remask.choices.choice import Meanings, meanings

# ---- likelihoods (docs/theory.md §8) ------------------------------

LikelihoodName = Annotated[
    Literal[
        "mean_field",
        "elbo",
        "elbo_gauss",
        "elbo_coupled",
        "coupled",
        "block_random",
        "trajectory",
        "left_to_right",
        "pseudo",
    ],
    Meanings(
        {
            "mean_field": "Σ log p of every token with the whole answer masked: one forward, no bound",
            "elbo": "a random number of tokens masked in each draw: unbiased for the ELBO",
            "elbo_gauss": "fixed numbers of tokens masked, a draw for each point of Gauss and Legendre's rule (GDPO)",
            "elbo_coupled": "a mask and its complement in each draw: unbiased for the ELBO (ESPO)",
            "coupled": "the whole answer masked, then a mask and its complement: a proxy (DiffuCoder)",
            "block_random": "a part of one block masked and all behind it, as in sampling by blocks: a proxy (SPG)",
            "trajectory": "each token on the canvas before the step that wrote it (TraceRL, d2)",
            "left_to_right": "each token with what stands left of it shown: a forward a token, exact (JustGRPO)",
            "pseudo": "each token with all others shown: a forward a token, a proxy (SEPO)",
        }
    ),
]

PreferenceLikelihoodName = Annotated[
    Literal["elbo", "elbo_coupled", "mean_field"],
    Meanings({name: meanings(LikelihoodName)[name] for name in ("elbo", "elbo_coupled", "mean_field")}),
]

AnchorName = Annotated[
    Literal["reference", "old"],
    Meanings(
        {
            "reference": "the model that the run began with, or its last copy (reference.sync_every)",
            "old": "the policy that wrote the answers (TraceRL)",
        }
    ),
]

Backward = Annotated[
    Literal["draw", "whole"],
    Meanings(
        {
            "draw": "one noise draw at a time: memory does not grow with the draws, but all draws except one may be "
            "read twice",
            "whole": "all draws at once",
        }
    ),
]


# ---- reinforcement learning and preferences (docs/theory.md §9) ------------------------------

PolicyName = Annotated[
    str,
    Meanings(
        {
            "espo": "the whole answer is one action, its likelihood the ELBO",
            "diffu-grpo": "d1: a ratio per token of mean-field likelihoods",
            "coupled-grpo": "DiffuCoder: a ratio per token, likelihoods from a mask and its complement",
            "wd1": "likelihoods weighted by the softmax of advantages, no ratio",
            "d2": "d2-StepMerge: a ratio per token on the answer's own trajectory, in 16 parts",
            "tracerl-blocks": "TraceRL: the same step by step, its KL to the policy that wrote the answer",
            "tracerl": "TraceRL's form for full attention: eight steps together, every view counts alike",
            "cj-grpo": "a ratio per token on each step's own canvas, every step of an answer counts alike",
            "agrpo": "a ratio per token on 24 steps of the answer's own trajectory, drawn anew each time",
            "justgrpo": "a ratio per token, answers read from left to right: a forward a token",
            "spg": "a bound from below pushed up, one from above pushed down; no ratio",
            "stabledrl": "spg with each answer weighed by its ratio over those of its group",
            "trajectory-balance": "likelihoods of trajectories drawn to the reference's tilted by the reward (RTB)",
            "trafl": "the same with the ELBO per token (TraFL)",
            "ebpo": "the whole answer is one action, its ratio not divided by its length; 16 draws, of blocks",
            "gdpo": "espo with the ELBO at two fixed shares masked",
            "sepo": "a ratio per token, each token read with all others shown: a forward a token",
            "token-elbo": "ablation of espo: a ratio per token",
            "sequence-mean-field": "ablation of espo: mean-field likelihood",
            "token-mean-field": "ablation of espo: a ratio per token of mean-field likelihoods",
            "gspo-elbo": "another name for espo",
            "gspo-mean-field": "another name for sequence-mean-field",
            "grpo-elbo": "another name for token-elbo",
        }
    ),
]

ScopeName = Annotated[
    Literal["canvas", "until_eos"],
    Meanings(
        {
            "canvas": "the whole canvas, with the EOS tokens that fill it",
            "until_eos": "the answer up to its end; what fills the canvas is masked and not scored",
        }
    ),
]

LevelName = Annotated[
    Literal["token", "sequence", "whole", "none"],
    Meanings(
        {
            "token": "a ratio of likelihoods for each token",
            "sequence": "one ratio for the answer: the geometric mean of its tokens' ratios",
            "whole": "one ratio for the answer: the product of its tokens' ratios",
            "none": "no ratio: the likelihood itself, weighted by the advantage",
        }
    ),
]

LossName = Annotated[
    Literal["clip", "self_normalised", "square"],
    Meanings(
        {
            "clip": "the ratio times the advantage, clipped (PPO)",
            "self_normalised": "the likelihood times the advantage, weighed by the ratio over its group's (StableDRL)",
            "square": "the squared distance to the anchor's likelihood tilted by the reward (trajectory balance)",
        }
    ),
]

KlName = Annotated[
    Literal["k1", "k2", "k3", "none"],
    Meanings(
        {
            "k1": "d = log p − log p_ref, whose gradient is 0 on average",
            "k2": "d²/2, with the gradient of KL(policy ‖ reference)",
            "k3": "e^(−d) + d − 1, with the gradient of KL(reference ‖ policy)",
            "none": "no KL",
        }
    ),
]

AdvantageName = Annotated[
    Literal["mean", "normalised", "normalised_population", "leave_one_out", "softmax"],
    Meanings(
        {
            "mean": "reward − the group's mean",
            "normalised": "that divided by the group's standard deviation, with G − 1",
            "normalised_population": "the same, with G in the standard deviation (TraceRL)",
            "leave_one_out": "reward − the mean of the group's other rewards",
            "softmax": "softmax(A) − softmax(−A), with A = reward − mean (wd1; needs level none)",
        }
    ),
]

PolicyNormaliserName = Annotated[
    Literal["sequences", "tokens", "groups"],
    Meanings({"sequences": "answers", "tokens": "scored tokens", "groups": "groups: prompts with their answers"}),
]

NegativesName = Annotated[
    Literal["mean", "power"],
    Meanings(
        {
            "mean": "the mean over draws, as for all others",
            "power": "the logarithm of a mean of powers, from above, mixed with the mean (SPG; two draws or more)",
        }
    ),
]

UnitName = Annotated[
    Literal["token", "view"],
    Meanings(
        {
            "token": "every scored token counts alike",
            "view": "every view of a trajectory counts alike: the tokens scored in it share 1 (CJ-GRPO)",
        }
    ),
]

OnBadReward = Annotated[
    Literal["error", "skip"],
    Meanings({"error": "stop", "skip": "leave that completion out and count it"}),
]

PreferenceName = Annotated[
    str,
    Meanings(
        {
            "vrpo": "eight draws, the same ones for policy and reference (LLaDA 1.5)",
            "dpo": "the plain estimate: one draw, and another one for the reference",
        }
    ),
]
