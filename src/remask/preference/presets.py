"""Named methods: presets of the preference objective's choices. The first is LLaDA 1.5's (arXiv 2505.19223)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from remask.errors import UserError
from remask.preference.loss import PreferenceObjective
from remask.training.presets import choose

VRPO = PreferenceObjective()

PRESETS: dict[str, PreferenceObjective] = {
    "vrpo": VRPO,  # K = 8 times, one mask each, shared by policy and reference
    "dpo": replace(VRPO, draws=1, shared_noise=False),  # the naive estimate that the paper's Table 1 compares with
}


def resolve(name: str, **choices: Any) -> PreferenceObjective:
    """Return the preset of that name, with choices replaced. Raises UserError naming what is unknown or does
    not fit.
    """
    objective = choose(PRESETS, name, choices)
    check(objective)
    return objective


def check(objective: PreferenceObjective) -> None:
    """Raises UserError for choices out of their range or that make no sense together."""
    if objective.draws < 1:
        raise UserError(f"choices.draws = {objective.draws}", mend="give 1 or more")
    if not objective.beta > 0:
        raise UserError(f"choices.beta = {objective.beta}", mend="give more than 0")
    if not objective.sft_weight >= 0:
        raise UserError(f"choices.sft_weight = {objective.sft_weight}", mend="give 0 or more")
    if not 0 <= objective.label_smoothing < 0.5:
        raise UserError(f"choices.label_smoothing = {objective.label_smoothing}", mend="give 0 or more and below 0.5")
    if objective.likelihood == "mean_field" and objective.draws > 1:
        raise UserError(
            f"choices.draws = {objective.draws}: every draw of mean_field is the same: the whole answer masked",
            mend="set draws to 1",
        )
