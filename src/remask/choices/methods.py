"""The choices that make a method of fine-tuning or of sampling."""

from __future__ import annotations

from typing import Annotated, Literal

from remask.choices.choice import Meanings

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
            "diffusion-gemma": "for models that replace tokens by others: one canvas a row, and the encoder's loss",
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
