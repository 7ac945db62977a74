"""What a study file says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from remask.config.read import STRICT

Patch = dict[str, Any]
"""The changes {stage: {key: value}} over the stages `sft`, `rl` and `eval`; a stage that is null is left out."""


@dataclass(frozen=True)
class StudyConfig:
    """A study is a grid: arms × levels of each axis × seeds. Each cell is trained in its stages and evaluated."""

    __pydantic_config__ = STRICT

    question: str
    """The question of the study, in a sentence."""
    base: Patch
    """The settings that all cells have in common: keys of `remask sft`, `remask rl` and `remask eval` under these
    stages' names."""
    arms: dict[str, Patch]
    """For each name, what this way of training or decoding changes."""
    baseline: str
    """The arm that the others are compared with."""
    axes: dict[str, dict[str, Patch]] = field(default_factory=dict)
    """For each axis and level, what this level changes for every arm. Arms are compared within a level."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of training."""
    start: bool = True
    """Evaluate the model before training too: gains are also given relative to it."""
