"""Run a model on tasks and keep every prompt, answer and grade, the decoding settings, versions and hardware."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from remask.environment import command, hardware, versions
from remask.errors import UserError
from remask.evaluation.compare import ACCURACY, FORMAT, KIND, START
from remask.evaluation.statistics import mean_interval, wilson
from remask.models.facts import facts
from remask.progress import progress
from remask.sampling.generate import Generated, Row, generate
from remask.sampling.schedule import Decoding
from remask.tasks import GeneratedTask, Problem, Split, Task, get
from remask.tasks.base import PromptStyle


@dataclass(frozen=True)
class Benchmark:
    """Problems of one task and where they came from."""

    task: Task
    problems: list[Problem]
    source: str

    @classmethod
    def parse(cls, text: str, *, count: int | None, split: Split, seed: int) -> Benchmark:
        """`sudoku` (generated problems of a split), `gsm8k` (the hub's data set), or `name=SOURCE`: a published file or
        a folder in the hub's layout. Of published problems the first `count` are taken.
        """
        name, given, source = text.partition("=")
        task = get(name)
        if not given and isinstance(task, GeneratedTask):
            problems = task.generate(count or 100, split=split, seed=seed)
            return cls(task, problems, f"generated {split} split, seed {seed}")
        if given and not Path(source).exists():
            raise UserError("no such file", where=source, mend=f"give {name}=FILE with a file that is there")
        problems = task.load(source or None)
        return cls(task, problems[:count] if count else problems, source or str(task.hub))


def problem_seed(problem: Problem) -> int:
    """The number that ties a problem's random draws to the problem, not to its place in a batch."""
    return int.from_bytes(hashlib.blake2b(problem.key.encode(), digest_size=7).digest(), "big")


def evaluate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    benchmarks: Sequence[Benchmark],
    decoding: Decoding,
    *,
    name: str,
    arm: str = START,
    run_seed: int | None = None,
    prompt_style: str | None = None,
    batch_size: int = 32,
    quiet: bool = False,
    label: str = "evaluating",
) -> dict[str, Any]:
    """Answer and grade every problem; the record is what `remask compare` and `remask report` read.

    Accuracy has a Wilson interval, the other metrics a bootstrap interval over problems, both of 95 %.
    """
    started = time.perf_counter()
    style = cast(PromptStyle, prompt_style or facts(model, tokenizer).prompt_style)
    tasks: dict[str, Any] = {}
    strip = None
    for benchmark in benchmarks:
        prompts = [benchmark.task.prompt(problem, style) for problem in benchmark.problems]
        with progress(f"{label} {benchmark.task.name}", len(prompts), enabled=not quiet) as tick:
            generated = generate(
                model,
                tokenizer,
                prompts,
                decoding=decoding,
                batch_size=batch_size,
                row_seeds=[problem_seed(problem) for problem in benchmark.problems],
                on_batch=tick,
            )
        tasks[benchmark.task.name] = _graded(benchmark, prompts, generated)
        strip = strip or strip_of(tokenizer, prompts[0], generated.history[0])
    return {
        "kind": KIND,
        "format": FORMAT,
        "model": name,
        "arm": arm,
        "run_seed": run_seed,
        "decoding": {**decoding.described(), "prompt_style": style, "batch_size": batch_size},
        "versions": versions(),
        "hardware": hardware(str(model.device)),
        "command": command(),
        "seconds": round(time.perf_counter() - started, 2),
        "tasks": tasks,
        "strip": strip,
    }


def _graded(benchmark: Benchmark, prompts: Sequence[str], generated: Generated) -> dict[str, Any]:
    task = benchmark.task
    grades = [task.grade(p, text) for p, text in zip(benchmark.problems, generated.texts, strict=True)]
    metrics = {ACCURACY: asdict(wilson(sum(g.correct for g in grades), len(grades)))}
    for metric in task.metrics:
        metrics[metric] = asdict(mean_interval([g.metrics[metric] for g in grades]))
    stats = {key: value for key, value in generated.stats.items() if key != "decoding"}
    return {
        "source": benchmark.source,
        "n": len(grades),
        "metrics": metrics,
        "generation": stats,
        "problems": [
            {
                "id": problem.key,
                "prompt": prompt,
                "completion": text,
                "reference": json.dumps(problem.fields),
                "correct": grade.correct,
                "score": grade.score,
                "metrics": grade.metrics,
                "answer": grade.answer,
                "tokens": sum(step >= 0 for step in row.revealed_at),
            }
            for problem, prompt, text, grade, row in zip(
                benchmark.problems, prompts, generated.texts, grades, generated.history, strict=True
            )
        ],
    }


def strip_of(tokenizer: PreTrainedTokenizerBase, prompt: str, row: Row) -> dict[str, Any]:
    """One canvas being unmasked: its final tokens, the step that revealed each (None: filled), and how sure it was."""
    return {
        "prompt": prompt,
        "tokens": [tokenizer.decode([token]) for token in row.token_ids],
        "revealed_at": [step if step >= 0 else None for step in row.revealed_at],
        "confidence": [
            round(c, 4) if step >= 0 else None for c, step in zip(row.confidence, row.revealed_at, strict=True)
        ],
        "steps": max(row.revealed_at) + 1,
    }


def identity(model_path: str) -> tuple[str, int | None]:
    """(arm, training seed) of a model: those of its run where it is one, else the starting model."""
    folder = Path(model_path)
    record = folder / "run.json"
    if folder.name.startswith("checkpoint-") and not record.is_file():
        record = folder.parent / "run.json"  # a checkpoint belongs to its run
    if not record.is_file():
        return START, None
    try:
        info = json.loads(record.read_text())
        return str(info["objective"]["name"]), int(info["seed"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("not the record of a run", where=str(record)) from error
