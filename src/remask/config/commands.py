"""Options of the commands that do not train."""

from __future__ import annotations

from dataclasses import dataclass, field

from remask.choices import (
    Device,
    Dtype,
    GpuName,
    HeldOutSplit,
    PlannedDtype,
    PromptStyle,
    Quantization,
    StrategyName,
    TuningName,
)
from remask.config.common import DecodingConfig
from remask.config.read import STRICT


@dataclass(frozen=True)
class EvalConfig:
    """Evaluate a model on tasks, with every answer and setting kept."""

    __pydantic_config__ = STRICT

    model: str = "tiny"
    """A hub id, a local folder, a GGUF file, a run of Remask's, or an embedded model: tiny, tiny-direct, tiny-block."""
    model_attention: str | None = None
    """Which tokens attend to which: full, block:N, block:N:answer, either with :causal (default: the checkpoint's)."""
    adapter: str | None = None
    """A LoRA adapter to put on the model."""
    tasks: str | None = None
    """Comma-separated: a task's name for generated problems, gym:NAME for a task of reasoning-gym's, name=FILE for a
    published file, match=FILE for rows of your own, file.py:Class for a task of your own (default: sudoku,countdown, or
    none beside likelihood)."""
    data: str | None = None
    """Rows whose answers' likelihood is read, with likelihood: a file or any source that `remask sft` trains on."""
    likelihood: bool = False
    """How likely the model finds the answers in data: the ELBO of each row, on noise that all models share."""
    draws: int = 16
    """Noise draws of each row, with likelihood."""
    n: int | None = None
    """Problems per task (default: 100 generated ones, or the whole file)."""
    split: HeldOutSplit = "test"
    """The split that generated problems are of."""
    problem_seed: int = 0
    """The seed that decides which problems are generated."""
    json: str | None = None
    """Where to write the record. Answers are kept beside it as they come: the same command goes on where it stopped."""
    overwrite: bool = False
    """Replace the file that is there, and discard unfinished answers of another evaluation beside it."""
    processes: int = 1
    """Share the problems among this many processes, each with its own copy of the model (one a GPU). Needs json."""
    prompt_template: str | None = None
    """A prompt to use instead of the task's, or @FILE that holds it; {question} and the like are the problem's."""
    system: str | None = None
    """A system turn to begin with."""
    prefill: str = ""
    """The words that every answer begins with, such as <reasoning>."""
    allow_code_execution: bool = False
    """Let humaneval, mbpp and the like run what the model wrote, in a sandbox."""
    arm: str | None = None
    """The name results are pooled under (default: the run's objective, or start)."""
    prompt_style: PromptStyle | None = None
    """The wording of the prompts (default: the checkpoint's)."""
    batch_size: int = 32
    engine: str = "local"
    """What answers: local (the model in this process), a server (http://host:port, several after commas), or a class of
    your own: file.py:Class."""
    dtype: Dtype = "float32"
    quantization: Quantization | None = None
    """Load the weights in 4 or 8 bits (needs bitsandbytes)."""
    device: Device = "auto"
    decoding: DecodingConfig = field(default_factory=DecodingConfig)

    def named_tasks(self) -> list[str]:
        """Return the names of the tasks to answer."""
        default = "" if self.likelihood else "sudoku,countdown"
        return [text.strip() for text in (default if self.tasks is None else self.tasks).split(",") if text.strip()]


@dataclass(frozen=True)
class GenerateConfig:
    """Answer prompts; on a terminal, watch the canvas being unmasked."""

    __pydantic_config__ = STRICT

    model: str = "tiny"
    model_attention: str | None = None
    """Which tokens attend to which: full, block:N, block:N:answer, either with :causal (default: the checkpoint's)."""
    adapter: str | None = None
    infill: str | None = None
    """A text to fill in where it has masks: the model's mask token, once for each token to write. A prompt may come
    before it."""
    json: bool = False
    """Print texts, token ids and statistics as JSON on stdout."""
    stream: bool | None = None
    """Draw the canvas as it is unmasked (default: on a terminal)."""
    dtype: Dtype = "float32"
    quantization: Quantization | None = None
    """Load the weights in 4 or 8 bits (needs bitsandbytes)."""
    device: Device = "auto"
    decoding: DecodingConfig = field(default_factory=DecodingConfig)


@dataclass(frozen=True)
class ConvertConfig:
    """Make a diffusion model of a causal one, or merge an adapter into its base."""

    __pydantic_config__ = STRICT

    to_diffusion: str | None = None
    """A causal model of the Llama, Qwen2 or Qwen3 family: a hub id, a folder or a GGUF file."""
    merge: str | None = None
    """A LoRA adapter to merge: a run of Remask's, a folder or (with --base) a hub id."""
    base: str | None = None
    """The model to merge into (default: the one the adapter names)."""
    output: str | None = None
    """The folder to write (default: the source's name with -diffusion or -merged)."""
    shift: bool = True
    """The output at i-1 goes on predicting token i, as in the causal model (Dream's way)."""
    attention: str = "full"
    """Which of the diffusion model's tokens attend to which: full, block:N, block:N:answer, either with :causal."""
    mask_token: str = "<|mask|>"
    """The mask token to add where the tokenizer has none."""
    vocabulary_multiple: int = 64
    """Where the vocabulary grows by the mask token, let it grow to a multiple of this (1: by that token alone)."""
    dtype: Dtype = "auto"
    """Precision to convert and save in (default: the checkpoint's own)."""


@dataclass(frozen=True)
class DistilConfig:
    """Let a causal model answer prompts, and keep its answers as rows to train its diffusion model on."""

    __pydantic_config__ = STRICT

    teacher: str | None = None
    """A causal model with a chat template: a hub id, a folder or a GGUF file."""
    output: str = "answers.jsonl"
    """The file to write, a row with `messages` each."""
    data: str = "topics:1000"
    """Where the prompts are from: topics:<prompts>[:<seed>] (everyday things, in plain English), topics-held-out:…
    (other things), or any source that `remask sft` trains on, whose own answers are not used."""
    max_new_tokens: int = 48
    """An answer that has not ended after so many tokens is left out."""
    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    batch_size: int = 64
    """Prompts that are answered at once."""
    seed: int = 0
    dtype: Dtype = "auto"
    """Precision to compute in (default: the checkpoint's own)."""
    device: Device = "auto"


@dataclass(frozen=True)
class InspectConfig:
    """Show per-token entropy, β and masking rate of examples, as terminal colours, JSON and HTML."""

    __pydantic_config__ = STRICT

    model: str = "tiny"
    model_attention: str | None = None
    """Which tokens attend to which: full, block:N, block:N:answer, either with :causal (default: the checkpoint's)."""
    adapter: str | None = None
    data: str | None = None
    """A .jsonl or .parquet file, a hub id, or generated:<task>[+<task>]:<rows>, or gym:… (default: so many generated
    rows)."""
    rows: int | None = None
    """How many rows to read (default: 4, or 64 with classes)."""
    classes: bool = False
    """Show which kinds of tokens have high entropy, and whether entropy predicts what the model gets wrong, over all
    rows."""
    objective: TuningName = "gift"
    """The method whose β and masking rate are shown."""
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
    device: Device = "auto"


@dataclass(frozen=True)
class TourConfig:
    """Fine-tune a small embedded model with SFT, GIFT and a control, reinforce it with ESPO, and say what was found.

    The settings are those of recipes/studies/tour.yaml, which `remask study` runs too.
    """

    __pydantic_config__ = STRICT

    output_dir: str = "tour"
    """Where runs, evaluations and report.html go."""
    quick: bool = False
    """One training seed, fewer test problems and no reinforcement learning: half a minute instead of four."""
    seeds: tuple[int, ...] | None = None
    """Training seeds (default: 0 1 2; with quick 0)."""
    n: int | None = None
    """Test puzzles (default: 500; with quick 200)."""
    rows: int | None = None
    """Answers to fine-tune on (default: 1000)."""
    steps: int | None = None
    """Steps of reinforcement learning (default: the recipe's; 0: none)."""
    processes: int | None = None
    """Jobs at a time (default: one a core, 2 at most)."""
    overwrite: bool = False
    """Do everything anew. Otherwise what an earlier tour of this folder did is kept."""


@dataclass(frozen=True)
class GradeConfig:
    """Grade stored answers again, by the published rules."""

    __pydantic_config__ = STRICT

    json: str | None = None
    """Where to write the scores with every answer's grade."""
    allow_code_execution: bool = False
    """Let humaneval, mbpp and the like run what the model wrote, in a sandbox."""
    extract: bool = False
    """Find the code in samples that hold a model's whole answer. Otherwise they are run as they stand, as the
    benchmarks' own programs do."""


@dataclass(frozen=True)
class PlanConfig:
    """Compute what a training step will need: memory on each GPU, arithmetic, time. Nothing is loaded or downloaded."""

    __pydantic_config__ = STRICT

    model: str = "llada-8b"
    """llada-8b, dream-7b, a local folder whose config.json is read, a GGUF file, or a hub id."""
    gpus: int = 1
    gpu: GpuName = "h100"
    """The GPU, which gives memory and peak; the next two options override them."""
    memory_gib: float | None = None
    """Memory of one GPU, in GiB."""
    peak_tflops: float | None = None
    """Peak of one GPU in dense bfloat16 matrix products, in 10^12 operations a second."""
    efficiency: float = 0.4
    """Share of that peak which the step reaches."""
    reserve_gib: float = 2.0
    """GiB left free on each GPU for the driver, the communication library and the allocator."""
    length: int = 4096
    """Tokens of a row, prompt and answer."""
    rows: int = 1
    """Rows of a micro-batch on each GPU."""
    accumulation: int = 1
    """Micro-batches of an optimiser step."""
    response: float = 0.75
    """Share of a row that is answer."""
    strategy: StrategyName = "ddp"
    """What is spread over the GPUs instead of kept on each."""
    lora_rank: int = 0
    """Adapters of this rank on a frozen base (0: all weights are trained)."""
    quantization: Quantization | None = None
    """Quantise the base that adapters are trained on; its other weights are then float32."""
    dtype: PlannedDtype = "bfloat16"
    """Precision of the weights, their gradients and the optimiser's states."""
    bf16: bool = False
    """Mixed precision: compute in bfloat16 with float32 weights."""
    gradient_checkpointing: bool = False
    probe: bool = False
    """Add one forward pass a step: GIFT's policy probe."""
    total_rows: int | None = None
    """Training rows over all epochs, for the time of a whole run."""
    json: str | None = None
    """Where to write the figures for machines."""


@dataclass(frozen=True)
class DoctorConfig:
    """Say what is there, and what to do about each thing that is missing. Nothing is downloaded.

    The exit code is 0 where all that is required works, and 1 otherwise. What is optional does not change it.
    """

    __pydantic_config__ = STRICT

    folder: str = "."
    """Where runs will be written: its disk is looked at."""
    json: bool = False
    """Print all that was found as JSON on stdout."""


@dataclass(frozen=True)
class PushConfig:
    """Publish a run's model with a card written from its record, on the hub or in a folder in the hub's layout."""

    __pydantic_config__ = STRICT

    to: str | None = None
    """OWNER/NAME on the hub (or hf://OWNER/NAME, which no folder can be meant by), or a folder: ./NAME."""
    evaluations: tuple[str, ...] = ()
    """Files of `remask eval --json` whose scores the card shows (default: those in the run's folder)."""
    base: str | None = None
    """The hub's name of the model that the run began from, where the run knows it as a local folder."""
    licence: str | None = None
    """The model's licence as the hub calls it, such as apache-2.0 (default: the base's, where its card says it)."""
    private: bool = False
    """Let the repository be seen by its owner alone, where it has to be made."""
    overwrite: bool = False
    """Replace another model that stands there."""
    dry_run: bool = False
    """List the files and their sizes. Nothing is written, and the hub is asked for nothing."""
