"""An evaluation as a config says: model, tasks, journal and record."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch

from remask.config import EvalConfig
from remask.errors import UserError
from remask.evaluation.arms import KIND
from remask.evaluation.journal import Journal, fingerprint, weights_stamp
from remask.evaluation.likelihood import TASK as LIKELIHOOD
from remask.evaluation.likelihood import evaluate_likelihood
from remask.evaluation.run import Shard, evaluate, identity
from remask.files import as_json, from_json, refuse_unwritable, write_atomically
from remask.locks import locked
from remask.models.facts import facts
from remask.models.load import load, pick_device
from remask.models.lora import base_of, is_adapter
from remask.own_code import is_own, stamp
from remask.progress import working
from remask.sampling.engine import engine_of
from remask.sampling.generate import decoding_for
from remask.sandbox import Sandbox
from remask.tasks.benchmark import Asking, Benchmark, named, read_template

MOST = 1_000_000
"""The most problems of a task."""


def evaluate_model(config: EvalConfig, *, quiet: bool = False, label: str = "evaluating") -> dict[str, Any] | None:
    """Evaluate as the config says and write the record where it says. All processes but the first return None.

    Where that evaluation exists already, its record is returned, and nothing is done. Raises UserError where the file
    holds anything else, or another process is writing it.
    """
    if config.n is not None and config.n < 1:
        raise UserError(f"n = {config.n}", mend="give 1 or more")
    if config.n is not None and config.n > MOST:
        raise UserError(f"n = {config.n}", mend=f"give {MOST} or less")
    if config.batch_size < 1:
        raise UserError(f"batch_size = {config.batch_size}", mend="give 1 or more")
    if config.draws < 1:
        raise UserError(f"draws = {config.draws}", mend="give 1 or more")
    if config.likelihood != (config.data is not None):
        raise UserError(
            f"--{'data' if config.data else 'likelihood'} is given without --{'likelihood' if config.data else 'data'}",
            mend="give --data FILE --likelihood; to have rows answered, give --tasks match=FILE",
        )
    if not config.likelihood and not config.named_tasks():
        raise UserError("there is no task", mend="name one with --tasks")
    refuse_unwritable(config.json)
    shard = Shard.from_environment()
    if shard.world > 1 and not config.json:
        raise UserError(
            "--processes needs --json: the processes put their answers into one file", mend="add --json FILE"
        )
    with _alone_at(config.json, shard):
        return _evaluated(config, shard, quiet=quiet, label=label)


def _alone_at(record: str | None, shard: Shard) -> AbstractContextManager[None]:
    """Of several processes each has answers of its own."""
    if record is None:
        return nullcontext()
    path = Path(record)
    return locked(path.with_name(f".{path.name}.{shard.rank}.lock"), holding=path)


def _evaluated(config: EvalConfig, shard: Shard, *, quiet: bool, label: str) -> dict[str, Any] | None:
    finished = _finished(config)
    template = read_template(config.prompt_template)
    with working(f"problems of {', '.join(config.named_tasks())}", enabled=not quiet and shard.rank == 0):
        benchmarks = _benchmarks(config)
    if template is not None and len(benchmarks) > 1:
        raise UserError("one prompt template cannot serve several tasks", mend="evaluate them one by one")
    stamps, problems = _weights_and_problems(config, benchmarks)
    request = fingerprint([_asked(config), template, stamps, problems])
    if finished is not None and finished.get("request") == request:
        return finished if shard.rank == 0 else None
    if finished is not None and shard.rank == 0:  # which may have written it before another one looked
        raise UserError(
            "holds a finished evaluation of another model, or of other tasks or settings",
            where=config.json,
            mend="give another --json, or replace it with --overwrite",
        )
    arm, run_seed = identity(config.adapter or config.model)
    model, tokenizer = load(
        config.model,
        dtype=config.dtype,
        device=device_of(config.device, shard.local_rank),
        adapter=config.adapter,
        quantization=config.quantization,
        attention=config.model_attention,
    )
    decoding = decoding_for(model, **config.decoding.given())
    style = config.prompt_style or facts(model, tokenizer).prompt_style
    asking = Asking(cast(Any, style), template, config.system, config.prefill)
    weights = [config.model, config.adapter, config.dtype, config.quantization, *_own_engine(config)]
    journal = Journal(
        Path(config.json) if config.json else None,
        fingerprint([weights, stamps, problems, decoding.described(), asking.described()]),
        rank=shard.rank,
        overwrite=config.overwrite,
    )
    if journal.answers and shard.rank == 0 and not quiet:
        print(f"{len(journal.answers)} answers of an unfinished run are there: going on", file=sys.stderr)
    record = evaluate(
        model,
        tokenizer,
        benchmarks,
        decoding,
        asking=asking,
        name=config.model,
        arm=config.arm or arm,
        run_seed=run_seed,
        batch_size=config.batch_size,
        engine=engine_of(config.engine, tokenizer, config.batch_size),
        journal=journal,
        shard=shard,
        quiet=quiet or shard.rank != 0,
        label=label,
    )
    if record is not None and config.data is not None:
        record["tasks"][LIKELIHOOD] = _likelihood(config, model, tokenizer, quiet=quiet, label=label)
    if record is not None and config.json:
        write_atomically(Path(config.json), as_json({**record, "request": request}))
        journal.remove()
    return record


def _own_engine(config: EvalConfig) -> list[str]:
    """An engine of the user's own, with the version of its file."""
    return [f"{config.engine}@{stamp(config.engine)}"] if is_own(config.engine) else []


def _weights_and_problems(config: EvalConfig, benchmarks: Sequence[Benchmark]) -> tuple[list[Any], list[Any]]:
    """What tells the weights from others, and the problems."""
    folders = [config.model, config.adapter, base_of(config.model) if is_adapter(config.model) else None]
    stamps = [weights_stamp(folder) for folder in folders if folder]
    problems = [[b.task.name, b.source, [p.key for p in b.problems]] for b in benchmarks]
    if config.data is not None:
        is_file = Path(config.data).is_file()
        rows = hashlib.sha256(Path(config.data).read_bytes()).hexdigest() if is_file else config.data
        which: list[str] = [] if is_file else [config.split]
        problems.append([LIKELIHOOD, rows, which if config.n is None else [*which, str(config.n)]])
    return stamps, problems


def _likelihood(config: EvalConfig, model: Any, tokenizer: Any, *, quiet: bool, label: str) -> Any:
    """What the record says of the likelihood of the rows that --data names."""
    assert config.data is not None
    return evaluate_likelihood(
        model,
        tokenizer,
        config.data,
        count=config.n,
        draws=config.draws,
        split=config.split,
        batch_size=config.batch_size,
        quiet=quiet,
        label=label,
    )


MAKE_NO_OTHER = ("json", "overwrite", "processes", "device", "batch_size", "allow_code_execution")
"""The settings that do not make an evaluation another one."""
IN_PROBLEMS = ("tasks", "n", "split", "problem_seed", "prompt_template")
"""The settings that decide what is asked, which is compared instead."""


ADDED_LATER = {"engine": "local"}
"""The settings that records of 0.1 do not have, and the values that mean what those records did."""


def _asked(config: EvalConfig) -> dict[str, Any]:
    return {
        name: value
        for name, value in asdict(config).items()
        if name not in MAKE_NO_OTHER + IN_PROBLEMS and (name not in ADDED_LATER or ADDED_LATER[name] != value)
    }


def _finished(config: EvalConfig) -> dict[str, Any] | None:
    """The record that is there already. Raises UserError where something else is."""
    if config.json is None or config.overwrite or not Path(config.json).exists():
        return None
    try:
        record = from_json(Path(config.json).read_bytes())
        is_record = record["kind"] == KIND
    except (ValueError, KeyError, TypeError, OSError):
        is_record = False
    if not is_record:
        raise UserError(
            "is there already, and no evaluation",
            where=config.json,
            mend="give another --json, or replace it with --overwrite",
        )
    return dict(record)


def _benchmarks(config: EvalConfig) -> list[Benchmark]:
    """What to evaluate on, the sandbox tried out first where code is to be run."""
    texts = config.named_tasks()
    names = [named(text)[0].name for text in texts]
    if len(set(names)) < len(names):
        raise UserError(
            f"a task is given twice: {', '.join(texts)}", mend="evaluate the second source with a run of its own"
        )
    sandbox = None
    if config.allow_code_execution:
        sandbox = Sandbox()
        sandbox.check()
    return [
        Benchmark.parse(text, count=config.n, split=config.split, seed=config.problem_seed, sandbox=sandbox)
        for text in texts
    ]


def device_of(device: str, local_rank: int) -> str:
    """Return the device of one of several processes. Raises UserError where there are more of them than GPUs."""
    picked = pick_device(device)
    if picked != "cuda":
        return picked
    if local_rank >= (count := torch.cuda.device_count()):
        raise UserError(
            f"process {local_rank + 1} has no GPU: there are {count}", mend="use as many --processes as GPUs"
        )
    return f"cuda:{local_rank}"
