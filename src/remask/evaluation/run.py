"""Run a model on tasks and keep every prompt, answer and grade, the decoding settings, versions and hardware."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from remask.environment import command, hardware, versions
from remask.errors import UserError
from remask.evaluation.arms import ACCURACY, FORMAT, KIND, START
from remask.evaluation.calibration import sureness
from remask.evaluation.journal import Journal, Key, Written
from remask.evaluation.statistics import mean_interval, wilson
from remask.files import from_json
from remask.models.facts import stop_token_ids
from remask.progress import progress, working
from remask.sampling.engine import Engine, LocalEngine, Request
from remask.sampling.generate import Row, encode_prompts
from remask.sampling.schedule import Decoding
from remask.tasks import Problem
from remask.tasks.benchmark import Asking, Benchmark, problem_seed


@dataclass(frozen=True)
class Shard:
    """A shard says which of how many processes this one is, as launchers such as torchrun set it."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> Shard:
        """Read it from the variables that launchers set."""
        read = os.environ.get
        return cls(int(read("RANK", 0)), int(read("WORLD_SIZE", 1)), int(read("LOCAL_RANK", 0)))


@dataclass(frozen=True)
class Item:
    """An item is one problem to answer."""

    benchmark: Benchmark
    problem: Problem
    prompt: str
    ids: list[int]

    @property
    def key(self) -> Key:
        """Return the item's task and problem."""
        return self.benchmark.task.name, self.problem.key


def evaluate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    benchmarks: Sequence[Benchmark],
    decoding: Decoding,
    *,
    asking: Asking,
    name: str,
    arm: str = START,
    run_seed: int | None = None,
    batch_size: int = 32,
    engine: Engine | None = None,
    journal: Journal | None = None,
    shard: Shard | None = None,
    quiet: bool = False,
    label: str = "evaluating",
) -> dict[str, Any] | None:
    """Answer and grade every problem; the record is what `remask compare` and `remask report` read.

    engine: what answers, with this model's weights (None: the model itself). Answers that the journal holds are not
    asked for again. Of several processes each answers its share and the first one grades (the others return None).
    Accuracy has a Wilson interval, the other metrics a bootstrap interval over problems, both of 95 %.
    """
    started = time.perf_counter()
    journal, shard = journal or Journal(None, ""), shard or Shard()
    engine = engine or LocalEngine(tokenizer, batch_size)
    engine.update(model, 0)
    with working("prompts", enabled=not quiet):
        items = _items(model, tokenizer, benchmarks, decoding, asking)
    stops = stop_token_ids(model.config)
    of_task = {b.task.name: [item for item in items if item.benchmark is b] for b in benchmarks}
    for task, own in of_task.items():
        todo = [item for item in own[shard.rank :: shard.world] if item.key not in journal.answers]
        doing = f"{label} {task}"
        _answer(engine, stops, tokenizer, todo, decoding, asking, batch_size, journal, doing, quiet)
    if shard.rank != 0:
        return None
    journal.wait_for({item.key for item in items})
    tasks = {b.task.name: _graded(b, of_task[b.task.name], journal, asking.prefill, quiet) for b in benchmarks}
    return {
        "kind": KIND,
        "format": FORMAT,
        "model": name,
        "arm": arm,
        "run_seed": run_seed,
        "decoding": {**decoding.described(), **asking.described(), "batch_size": batch_size},
        "versions": versions(),
        "hardware": {**hardware(str(model.device)), "processes": shard.world},
        "command": command(),
        "seconds": round(time.perf_counter() - started, 2),
        "tasks": tasks,
        "strip": next((a.strip for item in items if (a := journal.answers[item.key]).strip), None),
    }


def _items(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    benchmarks: Sequence[Benchmark],
    decoding: Decoding,
    asking: Asking,
) -> list[Item]:
    """Every problem with its prompt. A prompt that leaves no room for the canvas is found before the first answer."""
    items = []
    for benchmark in benchmarks:
        prompts = [asking.prompt(benchmark.task, problem) for problem in benchmark.problems]
        turns = [asking.turns(benchmark.task, problem) for problem in benchmark.problems]
        try:
            encoded = encode_prompts(model, tokenizer, turns, decoding, prefill=asking.prefill)
        except UserError as error:
            raise UserError(f"{benchmark.task.name}: {error}", mend="correct the template or the problem") from error
        items += [Item(benchmark, *parts) for parts in zip(benchmark.problems, prompts, encoded, strict=True)]
    return items


def _answer(
    engine: Engine,
    stops: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    decoding: Decoding,
    asking: Asking,
    batch_size: int,
    journal: Journal,
    label: str,
    quiet: bool,
) -> None:
    """Batches of like lengths, each written to the journal as soon as it is done."""
    order = sorted(items, key=lambda item: len(item.ids))
    with progress(label, len(order), enabled=bool(order) and not quiet) as tick:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            answers = engine.answer([Request(item.ids, problem_seed(item.problem)) for item in batch], decoding)
            journal.add(
                [
                    Written(
                        *item.key,
                        text=asking.prefill + answer.text,
                        tokens=answer.tokens,
                        ended=answer.row.ended,
                        forwards=answer.forwards,
                        seconds=answer.seconds,
                        strip=strip_of(tokenizer, item.prompt, answer.row) if number == 0 else None,
                        confidence=_sureness(tokenizer, answer.row, stops),
                        row_forwards=answer.row_forwards,
                    )
                    for number, (item, answer) in enumerate(zip(batch, answers, strict=True), start)
                ]
            )
            tick(start + len(batch))


def _graded(benchmark: Benchmark, items: Sequence[Item], journal: Journal, prefill: str, quiet: bool) -> dict[str, Any]:
    task = benchmark.task
    answers = [journal.answers[item.key] for item in items]
    with progress(f"grading {task.name}", len(items), enabled=task.runs_code and not quiet) as tick:
        grades = task.grade_all(benchmark.problems, [answer.text for answer in answers], on_done=tick)
    metrics = {ACCURACY: asdict(wilson(sum(g.correct for g in grades), len(grades)))}
    for metric in task.metrics:
        metrics[metric] = asdict(mean_interval([g.metrics[metric] for g in grades]))
    return {
        "source": benchmark.source,
        "n": len(grades),
        "published_metric": task.published,
        "metrics": metrics,
        "generation": {
            "forwards": round(sum(a.forwards for a in answers), 3),
            "row_forwards": round(sum(a.row_forwards for a in answers), 3),
            "tokens": sum(a.tokens for a in answers),
            "seconds": round(sum(a.seconds for a in answers), 3),
            "unended": sum(not a.ended for a in answers),
        },
        "problems": [
            {
                "id": item.problem.key,
                "prompt": item.prompt,
                "completion": answer.text,
                "reference": json.dumps(item.problem.fields),
                "correct": grade.correct,
                "score": grade.score,
                "metrics": grade.metrics,
                "answer": grade.answer,
                "tokens": answer.tokens,
                "ended": answer.ended,
                "confidence": answer.confidence,
            }
            for item, answer, grade in zip(items, answers, grades, strict=True)
        ],
    }


def _sureness(tokenizer: PreTrainedTokenizerBase, row: Row, stops: Sequence[int]) -> dict[str, Any] | None:
    """How sure the model was of an answer, for JSON."""
    found = sureness(tokenizer, row.token_ids, row.revealed_at, row.confidence, stops)
    return None if found is None else asdict(found)


def strip_of(tokenizer: PreTrainedTokenizerBase, prompt: str, row: Row) -> dict[str, Any]:
    """Return one canvas being unmasked: its final tokens, the step that revealed each (None: filled), how sure it was,
    the block of each, and the tokens that did not stay.
    """
    return {
        "prompt": prompt,
        "tokens": [tokenizer.decode([token]) for token in row.token_ids],
        "revealed_at": [step if step >= 0 else None for step in row.revealed_at],
        "confidence": [
            round(c, 4) if step >= 0 else None for c, step in zip(row.confidence, row.revealed_at, strict=True)
        ],
        "block": row.block,
        "earlier": [asdict(one) | {"token": tokenizer.decode([one.token])} for one in row.earlier],
        "steps": max(row.revealed_at) + 1,
    }


def identity(model_path: str) -> tuple[str, int | None]:
    """Return (arm, training seed) of a model: those of its run where it is one, else the starting model."""
    folder = Path(model_path)
    record = folder / "run.json"
    if folder.name.startswith("checkpoint-") and not record.is_file():
        record = folder.parent / "run.json"  # a checkpoint belongs to its run
    if not record.is_file():
        return START, None
    try:
        info = from_json(record.read_text(encoding="utf-8"))
        return str(info["objective"]["name"]), int(info["seed"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("not the record of a run", where=str(record), mend="give the folder of a whole run") from error
