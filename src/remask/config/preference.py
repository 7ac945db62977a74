"""Options of `remask dpo`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from remask.choices import (
    Backward,
    Device,
    Dtype,
    OnBadRow,
    PreferenceLikelihoodName,
    PreferenceName,
    Quantization,
)
from remask.config.common import LoraConfig, RowEngineConfig
from remask.config.read import STRICT
from remask.config.sft import CanvasConfig


@dataclass(frozen=True)
class PreferenceChoicesConfig:
    """Override single choices of the objective's preset; what is not given stays the preset's."""

    __pydantic_config__ = STRICT

    likelihood: PreferenceLikelihoodName | None = None
    """What stands for log p of an answer."""
    draws: int | None = None
    """Noise draws (K) the likelihood is the mean of, each with one mask."""
    shared_noise: bool | None = None
    """Read policy and reference on the same noise."""
    beta: float | None = None
    """Scale of the implicit reward beta * (log p - log p_ref)."""
    label_smoothing: float | None = None
    """The chance that a pair is labelled the wrong way round."""
    sft_weight: float | None = None
    """Weight of an added SFT loss on the chosen answers: -log p per token."""
    length_normalised: bool | None = None
    """Divide each answer's reward by its number of tokens."""

    own: dict[str, float] = field(default_factory=dict)
    """Parameters of an objective of your own (file.py:Class), by their names."""

    def given(self) -> dict[str, Any]:
        """Return the choices that are made, with the parameters of a user's objective among them."""
        chosen = {key: value for key, value in asdict(self).items() if value is not None and key != "own"}
        return {**chosen, **self.own}


@dataclass(frozen=True)
class PreferenceEngineConfig(RowEngineConfig):
    """Set the training engine for pairs, under transformers' names. Batch sizes count pairs."""

    __pydantic_config__ = STRICT

    learning_rate: float = 1e-5
    num_train_epochs: float = 1.0
    per_device_train_batch_size: int = 16
    """The number of pairs, each of which is two rows."""
    eval_draws: int = 8
    """Noise draws per held-out answer: the same ones every time, and the same for policy and reference."""
    backward: Backward = "draw"
    """How the gradient of several noise draws is taken."""


@dataclass(frozen=True)
class DpoConfig:
    """Train a diffusion language model on preferences: DPO, with VRPO's variance reductions."""

    __pydantic_config__ = STRICT

    model: str = "tiny"
    """A hub id, a local folder, a GGUF file, a run of Remask's, or an embedded one: tiny, tiny-direct, tiny-block. It
    is also the reference."""
    model_attention: str | None = None
    """Which tokens attend to which: full, block:N, block:N:answer, either with :causal (default: the checkpoint's)."""
    data: str = "generated:sudoku+countdown:1000"
    """Pairs: a .jsonl or .parquet file, a hub id, or generated:<task>[+<task>]:<pairs>."""
    eval_data: str | None = None
    """Held-out pairs for the evaluation, in the same forms."""
    objective: PreferenceName = "vrpo"
    """The method of preference optimisation."""
    output_dir: str = "runs/dpo"
    """Where the model, its metrics and its checkpoints go."""
    resume: str | None = None
    """auto: from the newest whole checkpoint of output_dir, where there is one; or a checkpoint's folder."""
    overwrite: bool = False
    """Start anew in an output folder that holds a run."""
    seed: int = 0
    """Seeds noise, order and adapters."""
    max_steps: int | None = None
    """Stop after this many optimiser steps, whatever num_train_epochs says."""
    dtype: Dtype = "float32"
    """Precision the weights are loaded in."""
    quantization: Quantization | None = None
    """Load the base in 4 or 8 bits and train adapters on it (needs bitsandbytes and lora.rank)."""
    device: Device = "auto"
    on_bad_row: OnBadRow = "error"
    """What to do with a row that cannot be used."""
    choices: PreferenceChoicesConfig = field(default_factory=PreferenceChoicesConfig)
    canvas: CanvasConfig = field(default_factory=CanvasConfig)
    """As in `remask sft`, but fill batch extends the answers of a pair to the longer row of that pair."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    trainer: PreferenceEngineConfig = field(default_factory=PreferenceEngineConfig)
