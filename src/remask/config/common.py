"""Settings that several commands share."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from remask.choices import CacheName, RevealName, ScheduleName
from remask.config.read import STRICT


@dataclass(frozen=True)
class LoraConfig:
    """Train low-rank adapters; rank 0 trains all weights."""

    __pydantic_config__ = STRICT

    rank: int = 0
    """Rank of the adapters (0: full fine-tuning)."""
    alpha: float = 16.0
    """Scale of the adapters is alpha / rank."""
    dropout: float = 0.0
    """Dropout on the adapters' input."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """Names of the linear layers to adapt, or all-linear."""


@dataclass(frozen=True)
class EngineConfig:
    """Set the training engine as every way of training does, under transformers' names."""

    __pydantic_config__ = STRICT

    learning_rate: float = 5e-5
    per_device_train_batch_size: int = 16
    lr_scheduler_type: str = "linear"
    warmup_steps: float = 0
    """Steps of warm-up; below 1, a share of all steps."""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    logging_steps: int = 10
    """Metrics are averaged over this many steps and then written."""
    eval_steps: int = 0
    """Evaluate on what is held out every N steps (0: at the end only)."""
    save_steps: int = 0
    """Write a checkpoint every N steps (0: none but the final model)."""
    save_total_limit: int | None = 2
    bf16: bool = False
    """Compute in mixed precision (bfloat16)."""
    gradient_checkpointing: bool = False
    report_to: tuple[str, ...] = ("tensorboard",)
    """Trackers, by transformers' names, or none."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Any further argument of transformers.TrainingArguments."""


@dataclass(frozen=True)
class RowEngineConfig(EngineConfig):
    """Set the training engine for rows of data, under transformers' names."""

    __pydantic_config__ = STRICT

    num_train_epochs: float = 3.0
    per_device_eval_batch_size: int = 32
    gradient_accumulation_steps: int = 1
    dataloader_num_workers: int = 0


@dataclass(frozen=True)
class TrainerConfig(RowEngineConfig):
    """Set the training engine for supervised fine-tuning, under transformers' names."""

    __pydantic_config__ = STRICT

    micro_batch_tokens: int = 16384
    """A batch is computed in parts of rows of like length, of at most this many tokens each (0: all at once)."""
    eval_draws: int = 4
    """Noise draws per held-out row: the same ones every time."""


@dataclass(frozen=True)
class DecodingConfig:
    """Say how answers are written; what is not given comes from the checkpoint, or from Remask's defaults."""

    __pydantic_config__ = STRICT

    max_new_tokens: int | None = None
    """Length of the canvas."""
    steps: int | None = None
    """Model calls for the whole canvas (default: one token a step)."""
    block_length: int | None = None
    """Blocks are finished left to right (default: the whole canvas, in any order; a block model's own block)."""
    sub_block_length: int | None = None
    """Within a block, so many tokens are written before those after them (Fast-dLLM v2)."""
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    reveal: RevealName | None = None
    """Which proposals are kept first."""
    rule: str | None = None
    """A rule of your own in place of reveal: file.py:Class (docs/extending.md)."""
    threshold: float | None = None
    """Reveal every proposal whose score reaches this, instead of a fixed number a step."""
    at_least: int | None = None
    """Under a threshold, the fewest tokens that a step reveals (default: 1)."""
    edit_threshold: float | None = None
    """Under a threshold, replace written tokens of the block where another's probability reaches this (LLaDA2.1)."""
    edit_steps: int | None = None
    """With edit_threshold, how many steps a block without masks has at most (default: 16)."""
    schedule: ScheduleName | None = None
    """How many tokens a step reveals."""
    eps: float | None = None
    """Where t ends under schedule t."""
    guidance: float | None = None
    """Classifier-free guidance (0: none; above 0 each step takes two forwards)."""
    suppress_eos: bool | None = None
    """Never write the EOS that fills a canvas."""
    stop_last: bool | None = None
    """Write tokens that end a text after all others."""
    stop_early: bool | None = None
    """Stop a row when its text can no longer change."""
    cache: CacheName | None = None
    """Which keys and values are kept from one step to the next (default: none; exact in block models)."""
    entropy_bound: float | None = None
    """DiffusionGemma: a step keeps the surest tokens whose entropies but the highest add up to this at most."""
    t_min: float | None = None
    """DiffusionGemma: the temperature of logits falls from t_max to just above this over a canvas's steps."""
    t_max: float | None = None
    """DiffusionGemma: the temperature of a canvas's first step."""
    stability_threshold: int | None = None
    """DiffusionGemma: a canvas is done when its likeliest tokens stay the same for so many steps…"""
    confidence_threshold: float | None = None
    """DiffusionGemma: … and their mean entropy is below this."""
    seed: int | None = None
    """The seed of sampling at temperature above 0 and of random reveal."""

    def given(self) -> dict[str, Any]:
        """Return the settings that are given, by name."""
        return {key: value for key, value in asdict(self).items() if value is not None}
