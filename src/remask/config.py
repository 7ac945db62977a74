"""What a user can set: frozen dataclasses, read from strict YAML and overridden by dotted flags. Loads no torch.

An unknown key or a wrong type is one error naming the key; `dump` then `load` is the identity.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from remask.errors import UserError

STRICT: dict[str, Any] = {"extra": "forbid"}

OverLong = Literal["truncate", "drop", "error"]
OnBadRow = Literal["error", "skip"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["4bit", "8bit"]


@dataclass(frozen=True)
class ChoicesConfig:
    """Override single choices of the objective's preset; what is not given stays the preset's."""

    __pydantic_config__ = STRICT

    rate: Literal["uniform", "importance", "lift2", "lift3"] | None = None
    """How the masking rate of a token is set."""
    signal: Literal["entropy", "nll", "permuted_entropy", "constant"] | None = None
    """What β is read from."""
    transform: Literal["sqrt", "identity", "log1p", "cbrt"] | None = None
    """From signal to β."""
    reference: Literal["sequence", "batch"] | None = None
    """Over what β_ref is the mean."""
    weight: Literal["inverse_rate", "importance", "cart", "dft", "rho1"] | None = None
    """How a masked token's loss is weighted."""
    alpha: float | None = None
    """Exponent of the weight 1/p^alpha."""
    keep: float | None = None
    """Share of the masked tokens that Rho-1 keeps."""
    cart_q: float | None = None
    """Parameter of CART's geometric kernel."""
    normaliser: Literal["response", "masked", "sequence"] | None = None
    """What the loss is divided by."""

    def given(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class ProbeConfig:
    """Where β comes from, for objectives that read it."""

    __pydantic_config__ = STRICT

    policy: Literal["policy", "frozen"] = "policy"
    """policy: read anew each step from the model in training. frozen: read once from the starting model and cached."""
    every: int = 0
    """With frozen: read again from the current model every N epochs (0: never)."""
    cache: str | None = None
    """With frozen: the cache file to write and reuse (default: in the output folder)."""


@dataclass(frozen=True)
class CanvasConfig:
    """How rows become canvases."""

    __pydantic_config__ = STRICT

    max_length: int = 512
    """Longest row in tokens, prompt and answer together."""
    fill: str | None = None
    """How far an answer is extended with EOS: batch, multiple:<n>, max or none (default: the checkpoint's)."""
    over_long: OverLong = "error"
    """What to do with a row longer than max_length."""


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters; rank 0 trains all weights."""

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
class TrainerConfig:
    """The training engine's settings, under transformers' names."""

    __pydantic_config__ = STRICT

    learning_rate: float = 5e-5
    num_train_epochs: float = 3.0
    per_device_train_batch_size: int = 16
    per_device_eval_batch_size: int = 32
    gradient_accumulation_steps: int = 1
    lr_scheduler_type: str = "linear"
    warmup_steps: float = 0
    """Steps of warm-up; below 1, a share of all steps."""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    logging_steps: int = 10
    """Metrics are averaged over this many steps and then written."""
    eval_steps: int = 0
    """Evaluate the held-out loss every N steps (0: at the end only)."""
    eval_draws: int = 4
    """Noise draws per held-out row: the same ones every time."""
    save_steps: int = 0
    """Write a checkpoint every N steps (0: none but the final model)."""
    save_total_limit: int | None = 2
    bf16: bool = False
    """Mixed precision."""
    gradient_checkpointing: bool = False
    report_to: tuple[str, ...] = ("tensorboard",)
    """Trackers, by transformers' names, or none."""
    dataloader_num_workers: int = 0
    extra: dict[str, Any] = field(default_factory=dict)
    """Any further argument of transformers.TrainingArguments."""


@dataclass(frozen=True)
class SftConfig:
    """Supervised fine-tuning of a diffusion language model."""

    __pydantic_config__ = STRICT

    model: str = "tiny"
    """A hub id, a local folder, a run of Remask's, or tiny (the embedded model)."""
    data: str = "generated:sudoku+countdown:1000"
    """A .jsonl or .parquet file, a hub id, or generated:<task>[+<task>]:<rows>."""
    eval_data: str | None = None
    """Held-out rows for the evaluation loss, in the same forms."""
    objective: str = "sft"
    """Which method: sft, gift, gift-elbo, gift-raw, gift-log, gift-cbrt, gift-nll, gift-permuted, gift-alpha, weft-sw,
    cart, dft, rho1, lift2, lift3."""
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
    """Precision the weights are loaded in (auto: the checkpoint's own)."""
    quantization: Quantization | None = None
    """Load the base in 4 or 8 bits and train adapters on it (needs bitsandbytes and lora.rank)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    on_bad_row: OnBadRow = "error"
    """skip counts and lists rows that cannot be used."""
    choices: ChoicesConfig = field(default_factory=ChoicesConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    canvas: CanvasConfig = field(default_factory=CanvasConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass(frozen=True)
class DecodingConfig:
    """How answers are written; what is not given comes from the checkpoint, or from Remask's defaults."""

    __pydantic_config__ = STRICT

    max_new_tokens: int | None = None
    """Length of the canvas."""
    steps: int | None = None
    """Model calls for the whole canvas (default: one token a step)."""
    block_length: int | None = None
    """Blocks are finished left to right (default: the whole canvas, in any order)."""
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    reveal: Literal["confidence", "margin", "entropy", "random", "left_to_right"] | None = None
    """Which proposals are kept first."""
    threshold: float | None = None
    """Reveal every proposal whose score reaches this, instead of a fixed number a step."""
    schedule: Literal["even", "t"] | None = None
    """How many tokens a step reveals: an even share, or Dream's share of t."""
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
    seed: int | None = None
    """Seeds sampling at temperature above 0 and random reveal."""

    def given(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class EvalConfig:
    """Evaluate a model on tasks, with every answer and setting kept."""

    __pydantic_config__ = STRICT

    model: str = "tiny"
    """A hub id, a local folder, a run of Remask's, or tiny."""
    adapter: str | None = None
    """A LoRA adapter to put on the model."""
    tasks: str = "sudoku,countdown"
    """Comma-separated: a task's name for generated problems, or name=FILE for a published file."""
    n: int | None = None
    """Problems per task (default: 100 generated ones, or the whole file)."""
    split: Literal["validation", "test"] = "test"
    """Which split generated problems are of."""
    problem_seed: int = 0
    """Seeds which problems are generated."""
    json: str | None = None
    """Where to write the record. Answers are kept beside it as they come: the same command goes on where it stopped."""
    overwrite: bool = False
    """Discard unfinished answers of another evaluation that stand beside the record."""
    processes: int = 1
    """Share the problems among this many processes, each with its own copy of the model (one a GPU). Needs json."""
    prompt_template: str | None = None
    """A prompt to use instead of the task's, or @FILE that holds it; {question} and the like are the problem's."""
    system: str | None = None
    """A system turn to begin with."""
    prefill: str = ""
    """What every answer begins with, such as <reasoning>."""
    allow_code_execution: bool = False
    """Let humaneval, mbpp and the like run what the model wrote, in a sandbox."""
    arm: str | None = None
    """The name results are pooled under (default: the run's objective, or start)."""
    prompt_style: Literal["compact", "instruct"] | None = None
    """Which wording of the prompts (default: the checkpoint's)."""
    batch_size: int = 32
    dtype: Dtype = "float32"
    quantization: Quantization | None = None
    """Load the weights in 4 or 8 bits (needs bitsandbytes)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    decoding: DecodingConfig = field(default_factory=DecodingConfig)


@dataclass(frozen=True)
class GenerateConfig:
    """Answer prompts; on a terminal, watch the canvas being unmasked."""

    __pydantic_config__ = STRICT

    model: str = "tiny"
    adapter: str | None = None
    json: bool = False
    """Print texts, token ids and statistics as JSON on stdout."""
    stream: bool | None = None
    """Draw the canvas as it is unmasked (default: on a terminal)."""
    dtype: Dtype = "float32"
    quantization: Quantization | None = None
    """Load the weights in 4 or 8 bits (needs bitsandbytes)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    decoding: DecodingConfig = field(default_factory=DecodingConfig)


@dataclass(frozen=True)
class ConvertConfig:
    """Make a diffusion model of a causal one, or merge an adapter into its base."""

    __pydantic_config__ = STRICT

    to_diffusion: str | None = None
    """A causal model of the Llama, Qwen2 or Qwen3 family: a hub id or a folder."""
    merge: str | None = None
    """A LoRA adapter to merge: a run of Remask's, a folder or (with --base) a hub id."""
    base: str | None = None
    """The model to merge into (default: the one the adapter names)."""
    output: str | None = None
    """The folder to write (default: the source's name with -diffusion or -merged)."""
    shift: bool = True
    """The output at i-1 goes on predicting token i, as in the causal model (Dream's way)."""
    mask_token: str = "<|mask|>"
    """The mask token to add where the tokenizer has none."""
    dtype: Dtype = "auto"
    """Precision to convert and save in (default: the checkpoint's own)."""


@dataclass(frozen=True)
class InspectConfig:
    """Per-token entropy, β and masking rate of examples, as terminal colours, JSON and HTML."""

    __pydantic_config__ = STRICT

    model: str = "tiny"
    adapter: str | None = None
    data: str = "generated:sudoku+countdown:4"
    """A .jsonl or .parquet file, a hub id, or generated:<task>[+<task>]:<rows>."""
    rows: int = 4
    """How many rows to look at."""
    objective: str = "gift"
    """Whose β and masking rate to show."""
    time: float = 0.5
    """The diffusion time t at which the masking rate is shown."""
    json: str | None = None
    """Where to write the record."""
    html: str | None = None
    """Where to write a page."""
    max_length: int = 4096
    dtype: Dtype = "float32"
    quantization: Quantization | None = None
    """Load the weights in 4 or 8 bits (needs bitsandbytes)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True)
class TourConfig:
    """Evaluate the tiny model, fine-tune it with sft and gift, compare them, write a report."""

    __pydantic_config__ = STRICT

    output_dir: str = "tour"
    """Where runs and report.html go."""
    objectives: tuple[str, ...] = ("sft", "gift")
    """What to compare; the first is the baseline."""
    seeds: tuple[int, ...] = (0, 1)
    rows: int = 1000
    """Worked examples to train on."""
    n: int = 100
    """Test problems per task."""
    recipe: str | None = None
    """A recipe whose settings the runs use (default: the embedded one)."""
    max_steps: int | None = None
    """Cut training short (for a quick look)."""


@dataclass(frozen=True)
class GradeConfig:
    """Grade stored answers again, by the published rules."""

    __pydantic_config__ = STRICT

    json: str | None = None
    """Where to write the scores with every answer's grade."""
    allow_code_execution: bool = False
    """Let humaneval, mbpp and the like run what the model wrote, in a sandbox."""


C = TypeVar("C")


def from_dict(kind: type[C], values: dict[str, Any], *, where: str) -> C:
    """Build a config from plain values. Raises UserError naming every key that is unknown or of the wrong type."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"])
            if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
                problems.append(f"unknown key {key!r}{_nearest(kind, item['loc'])}")
            else:
                problems.append(f"{key}: {item['msg']} (got {item['input']!r})")
        raise UserError("; ".join(problems), where=where) from None


def _nearest(kind: Any, location: tuple[int | str, ...]) -> str:
    """What the unknown key may have meant, or the keys there are."""
    import difflib
    from typing import get_type_hints

    for part in location[:-1]:
        kind = get_type_hints(kind).get(str(part), kind)
    if not is_dataclass(kind):
        return ""
    names = [f.name for f in fields(kind)]
    close = difflib.get_close_matches(str(location[-1]), names, n=1)
    return f" (did you mean {close[0]!r}?)" if close else f" (the keys are {', '.join(names)})"


def load(kind: type[C], path: str | Path) -> C:
    """Read a config from YAML. Raises UserError naming the file and what is wrong in it."""
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError("no such config file", where=str(path)) from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"not readable as YAML ({str(error).splitlines()[0]})", where=str(path)) from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError("a config is a mapping of keys to values", where=str(path))
    return from_dict(kind, values, where=str(path))


def dump(config: Any) -> str:
    """The config as YAML; `load` gives it back."""
    from pydantic import TypeAdapter

    return yaml.safe_dump(
        TypeAdapter(type(config)).dump_python(config, mode="json"), sort_keys=False, allow_unicode=True
    )
