"""`remask plan`: memory, arithmetic and time of a training step, before any GPU is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from remask.choices import GpuName
from remask.commands.options import console, parse
from remask.config import PlanConfig
from remask.errors import UserError
from remask.files import refuse_unwritable
from remask.imports import uncollected
from remask.progress import progress

EXAMPLES = """Examples:
  remask plan --model llada-8b --gpus 8 --length 4096 --strategy fsdp --gradient-checkpointing
  remask plan --model llada-8b --gpu h200 --lora-rank 128 --length 1024 --rows 4 --total-rows 20000
  remask plan --model dream-7b --gpus 4 --strategy zero2 --lora-rank 64 --json plan.json"""

GIB = 2**30
GPUS: dict[GpuName, tuple[float, float]] = {
    "a100-40gb": (40, 312),
    "a100-80gb": (80, 312),
    "l40s": (48, 362),
    "h100": (80, 989),
    "h200": (141, 989),
    "b200": (180, 2250),
    "rtx-4090": (24, 165),
}
"""The (memory in GB, peak of dense bfloat16 products in TFLOP/s) of each GPU, from the makers' data sheets."""

KINDS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimiser": "optimiser states",
    "activations": "activations",
    "working": "working memory",
}


def run(arguments: Sequence[str]) -> int:
    """Run `remask plan` with these arguments and return the exit code."""
    config = parse(PlanConfig, arguments, command="plan", examples=EXAMPLES)
    refuse_unwritable(config.json)
    record = plan(config)
    show(record)
    if config.json:
        from remask.files import as_json, write_atomically

        write_atomically(Path(config.json), as_json(record, indent=1))
    if not record["fits"]:
        raise UserError(
            f"{record['total_gib']:.1f} GiB do not fit into the {record['usable_gib']:.1f} GiB that a GPU has to spare",
            mend=advice(config, record),
        )
    return 0


def remedies(config: PlanConfig) -> list[tuple[str, PlanConfig]]:
    """Return changes that need less memory on this machine, the least intrusive first: (their flags, the
    changed plan).
    """
    single: dict[str, dict[str, Any]] = {
        "--rows 1": {"rows": 1} if config.rows > 1 else {},
        "--gradient-checkpointing": {} if config.gradient_checkpointing else {"gradient_checkpointing": True},
        "--strategy fsdp": {"strategy": "fsdp"} if config.gpus > 1 and config.strategy not in ("fsdp", "zero3") else {},
        "--lora-rank 64": {} if config.lora_rank else {"lora_rank": 64},
        "--dtype bfloat16": {"dtype": "bfloat16"} if config.dtype != "bfloat16" else {},
        **{f"--quantization {kind}": {} if config.quantization else {"quantization": kind} for kind in LESS},
    }
    if neither_sharded_nor_quantised(config.model):
        single = {
            flag: {} if "strategy" in change or "quantization" in change else change for flag, change in single.items()
        }
    changes = {flag: change for flag, change in single.items() if change}
    found: list[tuple[str, PlanConfig]] = []
    for count in range(1, len(changes) + 1):
        for flags in combinations(changes, count):
            whole: dict[str, Any] = {key: value for flag in flags for key, value in changes[flag].items()}
            changed = replace(config, **whole)
            if len(whole) == sum(len(changes[flag]) for flag in flags) and quantised_wrongly(changed) is None:
                found.append((" ".join(flags), changed))
    return found


def neither_sharded_nor_quantised(model: str) -> bool:
    """Return whether a model is of a kind that is held whole and in its own precision (DiffusionGemma)."""
    with uncollected():
        from remask.models.registry import CANVAS_MODELS
        from remask.models.shapes import shape_config

    return type(shape_config(model)) in CANVAS_MODELS


LESS = ("8bit", "4bit")
"""The ways to store a base that adapters are trained on, the more exact way first."""


def quantised_wrongly(config: PlanConfig) -> tuple[str, str] | None:
    """Return what keeps a plan's base from being quantised, and what to do about it; or None."""
    if config.quantization is None:
        return None
    if not config.lora_rank:
        return f"weights of {config.quantization} cannot be trained", "train adapters on them: --lora-rank 64"
    if config.strategy != "ddp":
        return f"weights of {config.quantization} are not sharded", "use --strategy ddp"
    return None


def advice(config: PlanConfig, record: dict[str, Any]) -> str:
    """Return what would fit, by planning it; else by how much the best of it does not."""
    least = math.inf
    fitting: list[str] = []
    candidates = remedies(config)
    with progress("looking for what fits", len(candidates)) as tick:
        for number, (flags, changed) in enumerate(candidates, 1):
            tick(number)
            if any(set(one.split()) <= set(flags.split()) for one in fitting):
                continue
            total = kept_gib(changed)
            if total <= record["usable_gib"] and (total := plan(changed)["total_gib"]) <= record["usable_gib"]:
                fitting.append(flags)
            least = min(least, total)
            if len(fitting) == MOST_ADVICE:
                break
    if fitting:
        return f"this would fit: {'; or '.join(fitting)}"
    if least == math.inf:
        return "use GPUs of more memory"
    return f"all that is tried takes {least:.1f} GiB or more: shorten the rows, or use more GPUs or GPUs of more memory"


MOST_ADVICE = 2
"""The most ways out that are named."""


def plan(config: PlanConfig) -> dict[str, Any]:
    """Return the figures of a plan, for people and machines."""
    with uncollected():
        from remask.analysis.plan import need

    check(config)
    scored = max(1, round(config.rows * config.length * config.response / 2))
    found = need(
        builder(config),
        rows=config.rows,
        length=config.length,
        scored=scored,
        strategy=config.strategy,
        devices=config.gpus,
        autocast=config.bf16,
        checkpointing=config.gradient_checkpointing,
    )
    peak = config.peak_tflops if config.peak_tflops is not None else GPUS[config.gpu][1]
    flops = config.accumulation * (found.flops + (found.probe_flops if config.probe else 0.0))
    seconds = flops / (peak * 1e12 * config.efficiency)
    step_rows = config.rows * config.accumulation * config.gpus
    usable = memory_gib(config) - config.reserve_gib
    return {
        "kind": "remask.plan",
        "settings": asdict(config),
        "parameters": found.parameters,
        "trained": found.trained,
        "memory_gib": {kind: getattr(found, kind) / GIB for kind in KINDS},
        "total_gib": found.total / GIB,
        "usable_gib": usable,
        "fits": found.total / GIB <= usable,
        "tflop_per_step_and_gpu": flops / 1e12,
        "rows_per_step": step_rows,
        "seconds_per_step": seconds,
        "tokens_per_second": step_rows * config.length / seconds,
        "hours": None if config.total_rows is None else seconds * -(-config.total_rows // step_rows) / 3600,
    }


def builder(config: PlanConfig) -> Callable[[], Any]:
    """Return a function that makes the model of a plan, its trained weights requiring gradient."""
    with uncollected():
        from remask.analysis.quantised import quantise
        from remask.config import LoraConfig
        from remask.models.lora import add_adapter
        from remask.models.registry import refuse_quantised
        from remask.models.shapes import empty_model, shape_config
        from remask.training.model import all_trained

    shape = shape_config(config.model)
    if config.quantization:
        refuse_quantised(shape, config.model)

    def build() -> Any:
        model = empty_model(shape, config.dtype)
        if config.quantization:
            model = quantise(model, config.quantization)
        if not config.lora_rank:
            return all_trained(model)
        return add_adapter(model, LoraConfig(rank=config.lora_rank, dropout=0.0), base_name=config.model)

    return build


def kept_gib(config: PlanConfig) -> float:
    """Return the memory that a plan takes at the least, in GiB: weights, gradients and optimiser states, which need no
    step to be counted.
    """
    import torch

    from remask.analysis.plan import kept

    with torch.device("meta"):
        model = builder(config)()
    return sum(kept(model, config.strategy, config.gpus).values()) / GIB


def check(config: PlanConfig) -> None:
    """Raises UserError for a number that no step can have."""
    for name in ("gpus", "length", "rows", "accumulation"):
        if getattr(config, name) < 1:
            raise UserError(f"{name} = {getattr(config, name)}", mend="give 1 or more")
    for name in ("efficiency", "response"):
        if not 0 < getattr(config, name) <= 1:
            raise UserError(f"{name} = {getattr(config, name)}", mend="give a number in (0, 1]")
    if (wrong := quantised_wrongly(config)) is not None:
        raise UserError(wrong[0], mend=wrong[1])
    if config.lora_rank < 0:
        raise UserError(f"lora_rank = {config.lora_rank}", mend="give 0 or more")
    if config.total_rows is not None and config.total_rows < 1:
        raise UserError(f"total_rows = {config.total_rows}", mend="give 1 or more")
    for name in ("memory_gib", "peak_tflops"):
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name} = {value}", mend="give more than 0")
    memory = memory_gib(config)
    if not 0 <= config.reserve_gib < memory:
        raise UserError(f"reserve_gib = {config.reserve_gib}", mend=f"give 0 or more, and below {memory:.1f}")


def memory_gib(config: PlanConfig) -> float:
    """Return the memory of one GPU, in GiB."""
    return config.memory_gib if config.memory_gib is not None else GPUS[config.gpu][0] * 1e9 / GIB


def show(record: dict[str, Any]) -> None:
    """Print the figures as a table."""
    from rich.table import Table

    settings, terminal = record["settings"], console()
    terminal.print(
        f"{settings['model']}: {record['parameters'] / 1e6:,.1f} M parameters, "
        f"{record['trained'] / 1e6:,.1f} M trained; "
        f"{settings['gpus']} × {settings['gpu']}, {settings['strategy']}, {settings['dtype']}"
        f"{', base in ' + settings['quantization'] if settings['quantization'] else ''}"
        f"{', mixed precision' if settings['bf16'] else ''}"
        f"{', checkpointing' if settings['gradient_checkpointing'] else ''}",
        highlight=False,
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("on each GPU")
    table.add_column("GiB", justify="right")
    for kind, name in KINDS.items():
        table.add_row(name, f"{record['memory_gib'][kind]:.2f}")
    table.add_row("in all", f"{record['total_gib']:.2f}", style="bold")
    table.add_row("usable", f"{record['usable_gib']:.2f}")
    terminal.print(table)
    rows = record["rows_per_step"]
    terminal.print(
        f"a step: {rows:,} row{'' if rows == 1 else 's'}, {record['tflop_per_step_and_gpu']:,.0f} TFLOP a GPU, "
        f"{record['seconds_per_step']:.2f} s at {100 * settings['efficiency']:.0f} % of the peak, "
        f"{record['tokens_per_second']:,.0f} tokens/s in all",
        highlight=False,
    )
    if record["hours"] is not None:
        terminal.print(f"{settings['total_rows']:,} rows: {record['hours']:.1f} h", highlight=False)
