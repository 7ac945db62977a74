"""The choices that make a method: of fine-tuning, likelihoods, reinforcement learning, preferences and sampling."""

from __future__ import annotations

from typing import Annotated, Literal

from remask.choices.choice import Meanings, meanings

# ---- fine-tuning: one objective, four choices (docs/theory.md §5) ------------------------------

TuningName = Annotated[
    str,
    Meanings(
        {
            "sft": "every response token is masked at the rate t: plain masked diffusion, as in LLaDA",
            "gift": "each token is masked at a rate from the model's entropy; divided by the masked tokens",
            "gift-elbo": "gift divided by the response tokens, which noise does not change",
            "gift-raw": "gift with β the entropy itself",
            "gift-log": "gift with β = log(1 + entropy)",
            "gift-cbrt": "gift with β the cube root of the entropy",
            "gift-nll": "gift with β from the negative log-likelihood of the right token",
            "gift-permuted": "the control: gift's rates on the wrong tokens",
            "gift-alpha": "gift with the weight 1/√p, which counts tokens of high entropy more",
            "weft-sw": "uniform masking; a token's loss is weighted by its importance",
            "cart": "uniform masking; tokens with visible neighbours count more (Dream)",
            "dft": "uniform masking; a token's loss is weighted by its probability",
            "rho1": "uniform masking; only tokens that a reference model finds easier are learned",
            "lift2": "the easy or the hard tokens of a larger mask stay masked",
            "lift3": "the easy, the hard or any tokens of a larger mask stay masked",
            "sdar": "as sft; in a block model all blocks of a row have one time (SDAR)",
            "bd3lm": "as sft, with times between 0.3 and 0.8; in a block model each block has its own (BD3-LM)",
            "llada2": "times between 0.3 and 0.8, one a row; no weights, divided by the masked tokens (dFactory)",
            "fast-dllm-v2": "no weights, each row with a mask and with its complement (Fast-dLLM v2)",
        }
    ),
]

RateName = Annotated[
    Literal["uniform", "importance", "lift2", "lift3"],
    Meanings(
        {
            "uniform": "t for every token",
            "importance": "1 − (1 − t)^(β/β_ref): important tokens are masked more often (GIFT)",
            "lift2": "more than t is masked and scored; the easy or the hard tokens of it stay masked (LIFT)",
            "lift3": "as lift2, or any tokens of it",
        }
    ),
]

NoiseScheduleName = Annotated[
    Literal["linear", "cosine"],
    Meanings(
        {
            "linear": "all rates alike (LLaDA)",
            "cosine": "low rates more often: t = 1 − cos(πτ/2), its losses weighted with dt/dτ",
        }
    ),
]

TimePerName = Annotated[
    Literal["block", "row"],
    Meanings(
        {
            "block": "each block of a block model has a time of its own, stratified over a row's blocks",
            "row": "all tokens of a row have one time, as they have under full attention",
        }
    ),
]

SignalName = Annotated[
    Literal["entropy", "nll", "permuted_entropy", "constant"],
    Meanings(
        {
            "entropy": "the entropy of the prediction, with the whole response masked",
            "nll": "the negative log-likelihood of the right token there",
            "permuted_entropy": "the entropies of a response on other tokens of it: a control",
            "constant": "1 for every token",
        }
    ),
]

TransformName = Annotated[
    Literal["sqrt", "identity", "log1p", "cbrt"],
    Meanings(
        {
            "sqrt": "β = √signal",
            "identity": "β = signal",
            "log1p": "β = log(1 + signal)",
            "cbrt": "β = ∛signal",
        }
    ),
]

ReferenceName = Annotated[
    Literal["sequence", "batch"],
    Meanings({"sequence": "each response by itself", "batch": "all responses of the batch together"}),
]

WeightName = Annotated[
    Literal["inverse_rate", "importance", "cart", "dft", "rho1", "none"],
    Meanings(
        {
            "inverse_rate": "1/p^alpha, with p the token's masking rate",
            "importance": "β/(β_ref·t)",
            "cart": "the visible tokens around it, near ones more, divided by t (CART)",
            "dft": "the token's probability divided by t (DFT)",
            "rho1": "1/t on the tokens whose loss exceeds a reference model's most, 0 on the others (Rho-1)",
            "none": "1 (LLaDA2, Fast-dLLM v2)",
        }
    ),
]

NormaliserName = Annotated[
    Literal["response", "masked", "sequence"],
    Meanings(
        {
            "response": "the response tokens of the batch",
            "masked": "the masked tokens of the batch",
            "sequence": "the tokens of each row, then the rows",
        }
    ),
]

ProbePolicy = Annotated[
    Literal["policy", "frozen"],
    Meanings(
        {
            "policy": "read anew each step from the model in training",
            "frozen": "read once from the starting model and cached",
        }
    ),
]

Diagnostics = Annotated[
    Literal["auto", "on", "off"],
    Meanings(
        {
            "auto": "on as many rows as take a twentieth of the training's arithmetic or a few seconds, and on "
            "none where the model has more than 1 B weights",
            "on": "on 128 rows at most",
            "off": "on none",
        }
    ),
]


# ---- likelihoods (docs/theory.md §8) ------------------------------

LikelihoodName = Annotated[
    Literal["mean_field", "elbo", "elbo_coupled", "coupled", "block_random", "trajectory", "left_to_right"],
    Meanings(
        {
            "mean_field": "Σ log p of every token with the whole answer masked: one forward, no bound",
            "elbo": "a random number of tokens masked in each draw: unbiased for the ELBO",
            "elbo_coupled": "a mask and its complement in each draw: unbiased for the ELBO (ESPO)",
            "coupled": "the whole answer masked, then a mask and its complement: a proxy (DiffuCoder)",
            "block_random": "a part of one block masked and all behind it, as in sampling by blocks: a proxy (SPG)",
            "trajectory": "each token on the canvas before the step that wrote it (TraceRL, d2)",
            "left_to_right": "each token with what stands left of it shown: a forward a token, exact (JustGRPO)",
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


# ---- sampling (docs/theory.md §7) ------------------------------

RevealName = Annotated[
    Literal["confidence", "margin", "entropy", "random", "left_to_right"],
    Meanings(
        {
            "confidence": "those of the highest probability",
            "margin": "those farthest ahead of the second likeliest token",
            "entropy": "those with the least entropy",
            "random": "any",
            "left_to_right": "the leftmost",
        }
    ),
]

ScheduleName = Annotated[
    Literal["even", "t"],
    Meanings(
        {
            "even": "each step of a block the same number",
            "t": "each step the share 1 − s/t of the masks left, with t falling evenly from 1 to eps (Dream)",
        }
    ),
]

CacheName = Annotated[
    Literal["none", "prefix", "dual", "exact"],
    Meanings(
        {
            "none": "exact: compute every token at every step",
            "prefix": "approximate and faster: compute what stands before the block once a block",
            "dual": "approximate and faster: compute what stands before and after the block once a block",
            "exact": "exact and faster, of block models alone: compute a finished block once",
        }
    ),
]
