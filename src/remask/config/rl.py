"""Options of `remask rl`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from remask.choices import (
    AdvantageName,
    AnchorName,
    Backward,
    Device,
    Dtype,
    KlName,
    LevelName,
    LikelihoodName,
    LossName,
    NegativesName,
    OnBadReward,
    OverLongPrompt,
    PolicyName,
    PolicyNormaliserName,
    PromptStyle,
    Quantization,
    ScopeName,
    UnitName,
)
from remask.config.common import DecodingConfig, EngineConfig, LoraConfig
from remask.config.read import STRICT


@dataclass(frozen=True)
class PolicyChoicesConfig:
    """Override single choices of the objective's preset; what is not given stays the preset's."""

    __pydantic_config__ = STRICT

    likelihood: LikelihoodName | None = None
    """What stands for log p of an answer."""
    draws: int | None = None
    """Noise draws (K) the likelihood is the mean of."""
    scope: ScopeName | None = None
    """Which positions are scored."""
    prompt_mask: float | None = None
    """Share of the prompt's tokens masked by mean_field, and by block_random, there of earlier blocks too."""
    fresh_noise: bool | None = None
    """Draw new noise for every inner update (old and reference are scored on each), or keep the rollout's."""
    block_length: int | None = None
    """With block_random: tokens of a block (0: those that answers are sampled in)."""
    steps_together: int | None = None
    """With trajectory, left_to_right and pseudo: distinct steps whose tokens are scored in one forward (1)."""
    segments: int | None = None
    """With those: parts that the whole trajectory is cut into instead (0: steps_together decides)."""
    pick: int | None = None
    """With those: so many of the views are scored, drawn anew for every inner update (0: all)."""
    negatives: NegativesName | None = None
    """How the draws of an answer are combined where its advantage is not positive."""
    power: float | None = None
    """With negatives power: the exponent (beta)."""
    power_share: float | None = None
    """With negatives power: its share in the mixture with the mean (omega)."""
    level: LevelName | None = None
    """The unit that has a ratio of likelihoods."""
    loss: LossName | None = None
    """What is made of the ratio."""
    weight_cap: float | None = None
    """With loss self_normalised: the most that a ratio counts."""
    reward_scale: float | None = None
    """With loss square: the nats that an advantage of 1 is to be worth (beta)."""
    clip_low: float | None = None
    """Ratios are clipped below 1 - clip_low."""
    clip_high: float | None = None
    """Ratios are clipped above 1 + clip_high."""
    dual_clip: float | None = None
    """The most that a ratio counts where the advantage is negative, above 1 (0: no limit)."""
    kl: KlName | None = None
    """Estimator of the KL."""
    kl_anchor: AnchorName | None = None
    """What the KL, and the distance of loss square, is to."""
    kl_weight: float | None = None
    """Weight of the KL in the loss (beta)."""
    advantage: AdvantageName | None = None
    """How a group's rewards become advantages."""
    normaliser: PolicyNormaliserName | None = None
    """What the loss is divided by, counted over the whole optimiser step."""
    unit: UnitName | None = None
    """What counts alike within an answer, and as one where the loss is divided by tokens."""

    own: dict[str, float] = field(default_factory=dict)
    """Parameters of an objective of your own (file.py:Class), by their names."""

    def given(self) -> dict[str, Any]:
        """Return the choices that are made, with the parameters of a user's objective among them."""
        chosen = {key: value for key, value in asdict(self).items() if value is not None and key != "own"}
        return {**chosen, **self.own}


@dataclass(frozen=True)
class RewardsConfig:
    """Say what an answer is worth: a weighted sum of functions."""

    __pydantic_config__ = STRICT

    functions: tuple[str, ...] = ("task",)
    """task (the task's dense score), correct, format, length, length:<n>, share:<text>, or your own as module:function
    or file.py:function."""
    weights: tuple[float, ...] | None = None
    """One weight a function (default: 1 each)."""
    on_bad: OnBadReward = "error"
    """What to do when a function raises or gives NaN."""
    timeout: float = 300.0
    """Seconds that a call of a function of your own may take (0: no limit)."""


@dataclass(frozen=True)
class RolloutConfig:
    """Say what is sampled between updates. One rollout is prompts x completions answers."""

    __pydantic_config__ = STRICT

    prompts: int = 16
    """Prompts of a rollout, over all processes."""
    completions: int = 8
    """Answers to each prompt: a group."""
    inner_updates: int = 1
    """Passes over each rollout (mu)."""
    minibatches: int = 1
    """Optimiser steps that one pass is split into."""
    batch_size: int = 128
    """Canvases written at once by each process."""
    max_prompt_tokens: int | None = None
    """Longest prompt (default: what the model's positions allow)."""
    over_long: OverLongPrompt = "error"
    """What to do with a longer prompt."""
    keep: int = 8
    """Groups of each rollout to write to completions.jsonl (-1: all)."""
    max_lag: int = 0
    """How many rollouts old the weights may be that wrote an answer: 0 is on policy; from 1 on servers write the next
    rollout while the last one is trained on."""
    engine: str = "local"
    """What answers: local (the model in training), servers that are sent its weights (http://host:port, several after
    commas), ray (replicas of it on a Ray cluster), or a class of your own: file.py:Class."""
    replicas: int = 1
    """Replicas of the engine ray, for each training process."""
    decoding: DecodingConfig = field(default_factory=lambda: DecodingConfig(temperature=1.0))
    """How answers are sampled; what is not given comes from the checkpoint, but for the temperature: 1."""


@dataclass(frozen=True)
class HeldOutConfig:
    """Choose the fixed problems that progress is measured on."""

    __pydantic_config__ = STRICT

    tasks: str | None = None
    """Held-out tasks, written as tasks, or none (default: the validation split of the same generated tasks, and none of
    others)."""
    n: int = 64
    """Problems of each task."""
    batch_size: int = 64
    decoding: DecodingConfig = field(default_factory=lambda: DecodingConfig(temperature=0.0))
    """How they are answered; what is not given comes from the checkpoint, but for the temperature: 0."""


@dataclass(frozen=True)
class ReferenceConfig:
    """Set the model that the KL is measured from: the starting model (with adapters: the base with them off)."""

    __pydantic_config__ = STRICT

    sync_every: int = 0
    """Make it a copy of the policy every N steps (0: never)."""


@dataclass(frozen=True)
class PolicyEngineConfig(EngineConfig):
    """Set the training engine for policies, under transformers' names.

    Accumulation follows from the rollout: prompts x completions / (minibatches x processes x batch size).
    """

    __pydantic_config__ = STRICT

    learning_rate: float = 1e-5
    lr_scheduler_type: str = "constant"
    max_grad_norm: float = 0.2
    backward: Backward = "draw"
    """How the gradient of several noise draws is taken."""


@dataclass(frozen=True)
class RlConfig:
    """Train a diffusion language model by reinforcement learning with verifiable rewards."""

    __pydantic_config__ = STRICT

    model: str = "tiny"
    """A hub id, a local folder, a GGUF file, a run of Remask's, or an embedded model: tiny, tiny-direct, tiny-block."""
    model_attention: str | None = None
    """Which tokens attend to which: full, block:N, block:N:answer, either with :causal (default: the checkpoint's)."""
    tasks: str = "sudoku"
    """Comma-separated: a task's name (generated problems of the training split, or the hub's training split), gym:NAME
    for a task of reasoning-gym's, or name=SOURCE for a file or a folder."""
    data: str | None = None
    """Prompts of your own instead of tasks: rows with prompt or messages; other columns go to the reward functions."""
    problems: int | None = None
    """Distinct problems of each task to train on, or rows of data, the first ones (default: 1500 generated ones, or all
    of a source)."""
    objective: PolicyName = "espo"
    """The method of reinforcement learning."""
    output_dir: str = "runs/rl"
    """Where the model, its metrics, completions and checkpoints go."""
    resume: str | None = None
    """auto: from the newest whole checkpoint of output_dir, where there is one; or a checkpoint's folder."""
    overwrite: bool = False
    """Start anew in an output folder that holds a run."""
    seed: int = 0
    """Seeds prompts, sampling, noise and adapters."""
    max_steps: int = 200
    """Optimiser steps: inner_updates x minibatches of each rollout."""
    allow_code_execution: bool = False
    """Let humaneval, mbpp and the like run what the model wrote, in a sandbox."""
    prompt_style: PromptStyle | None = None
    """The wording of the prompts (default: the checkpoint's)."""
    prompt_template: str | None = None
    """A prompt to use instead of a task's, or @FILE that holds it; {question} and the like are the problem's."""
    system: str | None = None
    """A system turn to begin with, where a conversation has none."""
    prefill: str = ""
    """The words that every answer begins with, such as <reasoning>."""
    dtype: Dtype = "float32"
    """Precision the weights are loaded in."""
    quantization: Quantization | None = None
    """Load the base in 4 or 8 bits and train adapters on it (needs bitsandbytes and lora.rank)."""
    device: Device = "auto"
    choices: PolicyChoicesConfig = field(default_factory=PolicyChoicesConfig)
    rewards: RewardsConfig = field(default_factory=RewardsConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    trainer: PolicyEngineConfig = field(default_factory=PolicyEngineConfig)
