"""Options of `remask sft`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from remask.choices import (
    Device,
    Diagnostics,
    Dtype,
    FillName,
    NoiseScheduleName,
    NormaliserName,
    OnBadRow,
    OverLong,
    ProbePolicy,
    Quantization,
    RateName,
    ReferenceName,
    SignalName,
    TimePerName,
    TransformName,
    TuningName,
    WeightName,
)
from remask.config.common import LoraConfig, TrainerConfig
from remask.config.read import STRICT


@dataclass(frozen=True)
class ChoicesConfig:
    """Override single choices of the objective's preset; what is not given stays the preset's."""

    __pydantic_config__ = STRICT

    rate: RateName | None = None
    """How the masking rate of a token is set."""
    schedule: NoiseScheduleName | None = None
    """How times t are drawn between rate_low and rate_high."""
    rate_low: float | None = None
    """The lowest time t (0.001)."""
    rate_high: float | None = None
    """The highest time t (1)."""
    time_per: TimePerName | None = None
    """What gets a separate time t: a row, or each block."""
    complement: bool | None = None
    """Read every row a second time, with the tokens masked that were not (false)."""
    signal: SignalName | None = None
    """What β is read from."""
    transform: TransformName | None = None
    """How the signal becomes β."""
    reference: ReferenceName | None = None
    """What β_ref is the mean over."""
    weight: WeightName | None = None
    """How a masked token's loss is weighted."""
    alpha: float | None = None
    """Exponent of the weight 1/p^alpha."""
    keep: float | None = None
    """Share of the masked tokens that Rho-1 keeps."""
    cart_q: float | None = None
    """Parameter of CART's geometric kernel."""
    normaliser: NormaliserName | None = None
    """What the loss is divided by."""

    own: dict[str, float] = field(default_factory=dict)
    """Parameters of an objective of your own (file.py:Class), by their names."""

    def given(self) -> dict[str, Any]:
        """Return the choices that are made, with the parameters of a user's objective among them."""
        chosen = {key: value for key, value in asdict(self).items() if value is not None and key != "own"}
        return {**chosen, **self.own}


@dataclass(frozen=True)
class ProbeConfig:
    """Say where β comes from, for objectives that read it."""

    __pydantic_config__ = STRICT

    policy: ProbePolicy = "policy"
    """Which model β is read from, and when."""
    every: int = 0
    """With frozen: read again from the current model every N epochs (0: never)."""
    cache: str | None = None
    """With frozen: the cache file to write and reuse (default: in the output folder)."""


@dataclass(frozen=True)
class CanvasConfig:
    """Say how rows become canvases."""

    __pydantic_config__ = STRICT

    max_length: int = 512
    """Longest row in tokens, prompt and answer together."""
    fill: FillName | None = None
    """How far an answer is extended with EOS (default: the checkpoint's)."""
    over_long: OverLong = "error"
    """What to do with a row longer than max_length."""


@dataclass(frozen=True)
class ReportConfig:
    """Say what is read for the report besides training."""

    __pydantic_config__ = STRICT

    diagnostics: Diagnostics = "auto"
    """Which tokens are masked, and which are right before and after training."""


@dataclass(frozen=True)
class SftConfig:
    """Fine-tune a diffusion language model on answers."""

    __pydantic_config__ = STRICT

    model: str = "tiny"
    """A hub id, a local folder, a GGUF file, a run of Remask's, or an embedded model: tiny, tiny-direct, tiny-block."""
    model_attention: str | None = None
    """Which tokens attend to which: full, block:N, block:N:answer, either with :causal (default: the checkpoint's)."""
    data: str = "generated:sudoku+countdown:1000"
    """A .jsonl or .parquet file, a hub id, or generated:<task>[+<task>]:<rows> (direct:… without work), or
    gym:<name>[+<name>]:<rows> with reasoning-gym's problems."""
    eval_data: str | None = None
    """Held-out rows for the evaluation loss, in the same forms."""
    apart_from: str | None = None
    """Files that a model will be tested on, joined by commas: rows near one of their texts are left out, and listed."""
    objective: TuningName = "sft"
    """The method of fine-tuning."""
    output_dir: str = "runs/sft"
    """Where the model, its metrics and its checkpoints go."""
    resume: str | None = None
    """auto: from the newest whole checkpoint of output_dir, where there is one; or a checkpoint's folder."""
    overwrite: bool = False
    """Start anew in an output folder that holds a run."""
    seed: int = 0
    """Seeds noise, order and initialisation."""
    max_steps: int | None = None
    """Stop after this many optimiser steps, whatever num_train_epochs says."""
    dtype: Dtype = "float32"
    """Precision the weights are loaded in."""
    quantization: Quantization | None = None
    """Load the base in 4 or 8 bits and train adapters on it (needs bitsandbytes and lora.rank)."""
    device: Device = "auto"
    on_bad_row: OnBadRow = "error"
    """What to do with a row that cannot be used."""
    choices: ChoicesConfig = field(default_factory=ChoicesConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    canvas: CanvasConfig = field(default_factory=CanvasConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass(frozen=True)
class ProfileConfig(SftConfig):
    """Measure the time and the memory of fine-tuning steps: real steps of the run that the other options describe.

    Nothing is kept: output_dir, resume, overwrite, eval_data, max_steps and what is saved or reported have no effect.
    """

    __pydantic_config__ = STRICT

    steps: int = 8
    """How many steps to time, after two that warm up; one more is taken to measure memory."""
    json: str | None = None
    """Where to write the figures for machines."""
