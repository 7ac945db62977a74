"""Options of the instruments: commands that measure estimators, tokens and steps."""

from __future__ import annotations

from dataclasses import dataclass

from remask.choices import Device, Dtype, FillName, InstrumentName, Quantization, RevealName
from remask.config.read import STRICT


@dataclass(frozen=True)
class EstimatorsConfig:
    """Measure bias and variance of ELBO estimators and of SFT gradients, per unit of compute; how tight the ELBO is,
    and whether it tells which answer is better. With --policy: bias and variance of policy gradients instead, held
    against the gradient of the sampler itself.
    """

    __pydantic_config__ = STRICT

    model: str = "tiny"
    """A hub id, a local folder, a GGUF file, a run of Remask's, or an embedded model: tiny, tiny-direct, tiny-block."""
    model_attention: str | None = None
    """Which tokens attend to which: full, block:N, block:N:answer, either with :causal (default: the checkpoint's)."""
    adapter: str | None = None
    data: str | None = None
    """Answers to score: a .jsonl or .parquet file, a hub id, or generated:<task>[+<task>]:<rows> (the default), or
    gym:…."""
    rows: int | None = None
    """How many of them (default: 8, or all where there are fewer)."""
    parts: tuple[InstrumentName, ...] = (
        "elbo",
        "tightness",
        "reward",
        "gradients",
    )
    """What to measure."""
    draws: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of draws (K) of the ELBO estimators."""
    replicates: int = 32
    """Independent estimates of each answer, for every estimator and K."""
    reference: int = 512
    """Draws of the coupled estimator that stand for the true ELBO of answers too long to write out."""
    exact_tokens: int = 8
    """Tightness: how many first tokens of an answer to write all orders out for, the rest masked (exactly up to 14)."""
    orders: tuple[int, ...] = (1, 4, 16, 64)
    """Tightness: orders of the multi-sample bounds."""
    tasks: str | None = None
    """Reward, policy: generated tasks to answer (default: sudoku,countdown; of policy sudoku)."""
    prompts: int | None = None
    """Reward: problems a task (default: 16). Policy: problems a rollout (default: 8)."""
    completions: int = 8
    """Reward, policy: sampled answers a problem."""
    temperature: float = 1.0
    """Reward: temperature of the sampling. That of policy is 1: answers are scored at 1 too."""
    objectives: tuple[str, ...] = ("sft", "gift-elbo", "gift", "gift-permuted", "gift-raw", "weft-sw", "cart", "dft")
    """Gradients: methods; the first is what the others are held against."""
    gradients: int = 64
    """Gradients: how many of each method, on all rows as one batch."""
    clip: float | None = 1.0
    """Gradients: the norm that trainers clip them to; they are measured as they are, and clipped."""
    policy: tuple[str, ...] | None = None
    """In place of the parts, compare gradients of policy objectives with the sampler's own: presets of `remask rl`,
    espo,diffu-grpo,… (alone: a choice of nine)."""
    rollouts: int = 32
    """Policy: how many rollouts, with a gradient of each for every objective."""
    reveal: RevealName = "random"
    """Policy: which proposals a step of the sampler keeps. Under random and left_to_right the weights have no say in
    it, and what is compared with is the gradient of the expected reward; under the others the part through the choice
    of places is missing in it (docs/theory.md, 12)."""
    moved: float = 0.0
    """Policy: how far the weights have moved along the sampler's own gradient since they wrote the answers: ratios are
    no longer 1. At 0 it is the first update."""
    step: float = 0.0
    """Policy: also measure the reward that a step of this length along each mean gradient gains (0: do not)."""
    seed: int = 0
    batch_size: int = 64
    fill: FillName | None = None
    """How far an answer is extended with EOS (default: the checkpoint's)."""
    max_length: int = 4096
    json: str | None = None
    """Where to write the record."""
    dtype: Dtype = "float32"
    quantization: Quantization | None = None
    """Load the weights in 4 or 8 bits (needs bitsandbytes)."""
    device: Device = "auto"
