"""`remask estimators`: what a likelihood and a gradient cost, and how far they can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any

from remask.commands import policy_estimators
from remask.commands.looked_at import read_rows
from remask.commands.options import console, load_named, parse
from remask.config import EstimatorsConfig
from remask.errors import UserError
from remask.files import refuse_unwritable

EXAMPLES = """Examples:
  remask estimators
  remask estimators --model runs/gift --data my.jsonl --parts elbo gradients --json estimators.json
  remask estimators --parts gradients --objectives sft gift gift-permuted --gradients 256
  remask estimators --policy --model tiny-direct
  remask estimators --policy espo,d2,justgrpo --model runs/gift --tasks sudoku --reveal left_to_right

The unit of compute is one forward pass of one row; a gradient takes three."""

ROWS, TASKS, PROMPTS = 8, "sudoku,countdown", 16
"""How many rows are read, and which tasks are asked how many problems each, where nothing is said."""


def run(arguments: Sequence[str]) -> int:
    """Run `remask estimators` with these arguments and return the exit code."""
    config = filled(parse(EstimatorsConfig, arguments, command="estimators", examples=EXAMPLES))
    check(config)
    refuse_unwritable(config.json)
    for part, record in measure(config):
        if config.json:
            from remask.files import as_json, write_atomically

            write_atomically(Path(config.json), as_json(record))
        show({"settings": record["settings"], part: record[part]})
    return 0


def filled(config: EstimatorsConfig) -> EstimatorsConfig:
    """Return the options with tasks and prompts filled in where nothing was said: those of `--policy` are other ones
    than those of the parts.
    """
    tasks, prompts = (TASKS, PROMPTS) if config.policy is None else (policy_estimators.TASKS, policy_estimators.PROMPTS)
    return replace(
        config,
        tasks=tasks if config.tasks is None else config.tasks,
        prompts=prompts if config.prompts is None else config.prompts,
    )


def check(config: EstimatorsConfig) -> None:
    """Raises UserError for a number or a name that nothing can be measured with."""
    least = {
        "rows": 1,
        "seed": 0,
        "replicates": 2,
        "reference": 2,
        "exact_tokens": 1,
        "prompts": 2,
        "completions": 2,
        "gradients": 4,
        "batch_size": 1,
    }
    for name, smallest in least.items():
        value = getattr(config, name)
        if value is not None and value < smallest:
            raise UserError(f"{name} = {value}", mend=f"give {smallest} or more")
    for name in ("draws", "orders"):
        values = getattr(config, name)
        if not values or min(values) < 1:
            raise UserError(f"{name} = {list(values)}", mend="give numbers of 1 or more")
    if any(max(config.orders) % m for m in config.orders):
        raise UserError(f"orders = {list(config.orders)}", mend="each divides the largest")
    if config.clip is not None and config.clip <= 0:
        raise UserError(f"clip = {config.clip}", mend="give a norm above 0, or leave it out")
    if config.temperature <= 0:
        raise UserError(f"temperature = {config.temperature}", mend="answers to compare are sampled: give more than 0")
    for name in ("parts", "objectives"):
        if not getattr(config, name):
            raise UserError(f"{name}: none named", mend=f"name one or more, or leave --{name} out")
    if config.policy is not None:
        policy_estimators.check(config)
    if config.policy is not None or "reward" in config.parts:
        _tasks(config)


def measure(config: EstimatorsConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Load, then measure the parts asked for. Yield (the part just done, the record of all that are)."""
    from remask.environment import hardware
    from remask.models.facts import facts
    from remask.sft.presets import resolve

    chosen = dict.fromkeys(config.parts if config.policy is None else ("policy",))
    objectives = {name: resolve(name) for name in config.objectives}
    if "gradients" in chosen and (wrong := [n for n, o in objectives.items() if o.uses_reference_model]):
        raise UserError(
            f"{wrong[0]} compares with a reference model, which here would be the model itself",
            mend="leave it out of objectives",
        )
    model, tokenizer = load_named(config)
    model.eval()
    if chosen.keys() & {"gradients", "policy"}:
        _require_gradients(model, quantised=config.quantization is not None)
    known = facts(model, tokenizer)
    rows, collator = _rows(config, tokenizer, known) if chosen.keys() - {"reward", "policy"} else ([], None)
    settings = {**asdict(config), "rows": len(rows)}
    record: dict[str, Any] = {"kind": "remask.estimators", "settings": settings, "hardware": hardware()}
    parts: dict[str, Callable[[], Any]] = {
        "elbo": lambda: _elbo(config, model, _canvas(model, rows, collator), known),
        "tightness": lambda: _tightness(config, model, _canvas(model, rows, collator), rows, known),
        "reward": lambda: _rewards(config, model, tokenizer, known),
        "gradients": lambda: _gradients(config, model, rows, collator, known, objectives),
        "policy": lambda: policy_estimators.measure(config, model, tokenizer, known, _tasks(config)),
    }
    for name in chosen:
        record[name] = parts[name]()
        yield name, record


def _require_gradients(model: Any, *, quantised: bool) -> None:
    """Of what training would change: the adapters of a model that has some, else all weights."""
    adapters = any("lora_" in name for name, _ in model.named_parameters())
    if quantised and not adapters:
        raise UserError("quantised weights have no gradient", mend="leave quantization out, or measure other parts")
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_("lora_" in name or not adapters)


def _tasks(config: EstimatorsConfig) -> list[Any]:
    """Raises UserError for a task that is not known, or that makes no problems of its own."""
    from remask.tasks import get
    from remask.tasks.generator import GeneratedTask

    tasks = [get(name.strip()) for name in (config.tasks or "").split(",")]
    for task in tasks:
        if not isinstance(task, GeneratedTask):
            raise UserError(f"{task.name} makes no problems of its own", mend="name generated tasks, such as sudoku")
    return tasks


def _rows(config: EstimatorsConfig, tokenizer: Any, known: Any) -> tuple[list[Any], Any]:
    from remask.data.canvas import Fill
    from remask.data.collate import Collator

    style, longest = known.prompt_style, config.max_length
    rows = read_rows(config.data, config.rows, ROWS, tokenizer, prompt_style=style, max_length=longest)
    return rows, Collator(Fill.parse(config.fill or known.fill), known.eos_ids[0], longest, config.seed)


def _canvas(model: Any, rows: list[Any], collator: Any) -> Any:
    """All rows as one batch, on the model's device."""
    from remask.data.collate import Visit
    from remask.diffusion.blocks import attention_of, in_blocks
    from remask.diffusion.corruption import Canvas

    batch = collator([(row, Visit(i, 0, 0)) for i, row in enumerate(rows)])
    canvas = Canvas.of({name: value.to(model.device) for name, value in batch.items()})
    return in_blocks(canvas, attention_of(model))


def _elbo(config: EstimatorsConfig, model: Any, canvas: Any, known: Any) -> dict[str, Any]:
    """Every estimator on whole canvases."""
    from remask.analysis.estimators import compare_estimators, pass_count
    from remask.diffusion.reader import reader_of
    from remask.progress import progress

    total, done = pass_count(len(canvas.ids), config.draws, config.replicates, config.reference), 0
    with progress("ELBO estimators: forward passes", total) as tick:

        def count(passes: int) -> None:
            nonlocal done
            done += passes
            tick(done)

        quality, truth = compare_estimators(
            reader_of(model),
            canvas,
            known.mask_id,
            draws=config.draws,
            count=config.replicates,
            reference_count=config.reference,
            seed=config.seed,
            batch_size=config.batch_size,
            tick=count,
        )
    return {"per_token": truth.tolist(), "estimators": [asdict(q) for q in quality]}


def _tightness(config: EstimatorsConfig, model: Any, canvas: Any, rows: list[Any], known: Any) -> list[dict[str, Any]]:
    """The ELBO beside the likelihood, on the answers' first tokens."""
    import torch

    from remask.analysis.estimators import first_tokens, tightness
    from remask.diffusion.reader import reader_of
    from remask.progress import progress

    generator = torch.Generator().manual_seed(config.seed)
    found = []
    with progress("tightness: answers", len(rows)) as tick:
        for i, row in enumerate(rows):
            one = first_tokens(canvas, i, min(config.exact_tokens, len(row.response)))
            tight = tightness(
                reader_of(model),
                one,
                known.mask_id,
                orders=config.orders,
                repetitions=4,
                generator=generator,
                batch_size=config.batch_size,
            )
            found.append(asdict(tight))
            tick(i + 1)
    return found


def _rewards(config: EstimatorsConfig, model: Any, tokenizer: Any, known: Any) -> list[dict[str, Any]]:
    """Per task and value: the within-prompt AUC, with a bootstrap interval over prompts."""
    from remask.analysis.reward_relation import concordance, sample_answers
    from remask.evaluation.statistics import mean_interval
    from remask.progress import progress
    from remask.sampling.generate import decoding_for

    found, prompts = [], config.prompts or 0
    for task in _tasks(config):
        problems = task.generate(prompts, split="validation", seed=config.seed)
        with progress(f"{task.name}: answers", prompts * config.completions) as tick:
            answers = sample_answers(
                model,
                tokenizer,
                task,
                problems,
                known,
                decoding_for(model, temperature=config.temperature),
                completions=config.completions,
                draws=max(config.draws),
                style=known.prompt_style,
                seed=config.seed,
                batch_size=config.batch_size,
                on_done=tick,
            )
        for value, by_prompt in answers.values.items():
            shares = [concordance(r, v) for r, v in zip(answers.rewards, by_prompt, strict=True)]
            decided = [share for share in shares if share is not None]
            interval = mean_interval(decided) if len(decided) > 1 else None
            found.append(
                {
                    "task": task.name,
                    "value": value,
                    "prompts": len(decided),
                    "same_reward": len(shares) - len(decided),
                    "auc": mean(decided) if decided else None,
                    "low": interval and interval.low,
                    "high": interval and interval.high,
                    "reward": sum(map(sum, answers.rewards)) / (prompts * config.completions),
                }
            )
    return found


def _gradients(
    config: EstimatorsConfig, model: Any, rows: list[Any], collator: Any, known: Any, objectives: dict[str, Any]
) -> list[dict[str, Any]]:
    from remask.analysis.gradients import compare_gradients
    from remask.progress import progress

    done = 0
    with progress("gradients", config.gradients * len(objectives)) as tick:

        def count() -> None:
            nonlocal done
            done += 1
            tick(done)

        found = compare_gradients(
            model,
            rows,
            collator,
            objectives,
            known.mask_id,
            count=config.gradients,
            clip=config.clip,
            on_gradient=count,
        )
    return [asdict(each) for each in found]


def show(record: dict[str, Any]) -> None:
    """Print the tables of the parts that were measured."""
    from remask.commands import estimator_tables, policy_tables

    module = policy_tables if "policy" in record else estimator_tables
    for title, table, notes in module.tables(record):
        console().print(f"\n[bold]{title}[/bold]", highlight=False)
        console().print(table)
        console().print(f"[dim]{notes}[/dim]", highlight=False)
