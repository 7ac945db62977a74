"""Every named SFT method as a choice of the four (docs/theory.md §5). To add one: a function for a new choice where
needed, one line here, and its test.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from remask.diffusion.objective import Objective
from remask.diffusion.uniform import UniformObjective
from remask.training.presets import choose

GIFT = Objective(rate="importance", signal="entropy", transform="sqrt", weight="inverse_rate", normaliser="masked")

PRESETS: dict[str, Objective] = {
    "sft": Objective(),  # LLaDA, 2502.09992
    "gift": GIFT,  # GIFT = WeFT, 2509.20863
    "gift-elbo": replace(GIFT, normaliser="response"),  # unbiased: every token has the expected weight 1
    "gift-raw": replace(GIFT, transform="identity"),
    "gift-log": replace(GIFT, transform="log1p"),
    "gift-cbrt": replace(GIFT, transform="cbrt"),
    "gift-nll": replace(GIFT, signal="nll"),
    "gift-permuted": replace(GIFT, signal="permuted_entropy"),  # control: same rates, wrong tokens
    "gift-alpha": replace(GIFT, alpha=0.5),  # a true up-weighting, biased on purpose
    "weft-sw": Objective(weight="importance", normaliser="masked"),
    "cart": Objective(weight="cart"),  # Dream, 2508.15487
    "dft": Objective(weight="dft"),  # 2508.05629
    "rho1": Objective(weight="rho1"),  # 2404.07965
    "lift2": Objective(rate="lift2"),  # 2605.22939
    "lift3": Objective(rate="lift3"),
    # Published recipes of block models (tests/unit/test_block_models.py holds them against the published losses).
    "sdar": Objective(time_per="row"),  # SDAR, 2510.06303, which draws again where a row has no mask
    "bd3lm": Objective(rate_low=0.3, rate_high=0.8),  # BD3-LM, 2503.09573: what it found for blocks of 16
    "llada2": Objective(weight="none", normaliser="masked", rate_low=0.3, rate_high=0.8, time_per="row"),  # dFactory
    "fast-dllm-v2": Objective(weight="none", normaliser="masked", complement=True),  # 2509.26328
    "diffusion-gemma": UniformObjective(),  # as NVIDIA's NeMo Automodel trains it; for models that replace tokens
}


def resolve(name: str, **choices: Any) -> Objective:
    """Return the preset of that name, with choices replaced. Raises UserError naming what is unknown."""
    return choose(PRESETS, name, choices)
