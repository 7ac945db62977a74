"""What an RL run asks, by its config: the prompts it trains on, and the held-out problems it is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from remask.choices import Split
from remask.config import DecodingConfig, RlConfig
from remask.diffusion.blocks import attention_of
from remask.errors import UserError
from remask.rl.grading import Grader
from remask.rl.held_out import HeldOut
from remask.rl.prompts import Prompt, columns_of, data_prompts, fitting, task_prompts
from remask.rl.ranks import tell
from remask.rl.rewards import OF_TASKS, Reward, refuse_missing_columns
from remask.sampling.engine import Engine, engine_of
from remask.sampling.generate import decoding_for
from remask.sampling.layout import longest_prompt
from remask.sampling.schedule import Decoding
from remask.tasks import GeneratedTask, get
from remask.tasks.benchmark import Asking, Benchmark, read_template
from remask.tasks.generator import digest, published_digests

GENERATED_PROBLEMS = 1500
SAMPLED, GREEDY = 1.0, 0.0
"""The temperature of rollouts and that of held-out answers where none is given; the checkpoint's is not used."""


def check_data(config: RlConfig) -> None:
    """Raises UserError for settings that have no meaning for rows of a user's data."""
    if config.data is None:
        return
    if set(config.rewards.functions) <= set(OF_TASKS):
        raise UserError(
            f"no answer would have a reward: rows of data belong to no task, as {config.rewards.functions[0]} needs",
            where="rewards.functions",
            mend="name a function of your own: --rewards.functions my_rewards.py:judge",
        )
    if config.prompt_template is not None and held_out_tasks(config) is None:
        raise UserError(
            "prompt_template is for the problems of tasks; a row of data has its own prompt",
            where=config.data,
            mend="leave --prompt-template out",
        )


def asking_of(config: RlConfig, style: str) -> Asking:
    """Return how prompts are put; `style` is the checkpoint's prompt style."""
    template = read_template(config.prompt_template)
    return Asking(cast(Any, config.prompt_style or style), template, config.system, config.prefill)


def decoding_of(model: Any, settings: DecodingConfig, *, temperature: float) -> Decoding:
    """Return the decoding settings: those given, then those of the checkpoint; `temperature` where no temperature is
    given.
    """
    return decoding_for(model, **{"temperature": temperature, **settings.given()})


def benchmarks_of(config: RlConfig) -> list[Benchmark]:
    """Return the tasks' training problems. Where code is to be run, the sandbox is tried out first."""
    if config.data is not None:
        return []
    benchmarks = _parsed(config, config.tasks, count=config.problems, split="train")
    for benchmark in benchmarks:
        known = sum(digest(problem.key) in published_digests() for problem in benchmark.problems)
        if known:
            tell(f"{benchmark.source}: {known} of its problems are in the published test files")
    return benchmarks


def _parsed(config: RlConfig, tasks: str, *, count: int | None, split: Split) -> list[Benchmark]:
    sandbox = None
    if config.allow_code_execution:
        from remask.sandbox import Sandbox

        sandbox = Sandbox()
        sandbox.check()
    default = GENERATED_PROBLEMS if split == "train" else None
    return [
        Benchmark.parse(
            text,
            count=count or (default if "=" not in text and isinstance(get(text), GeneratedTask) else None),
            split=split,
            seed=config.seed if split == "train" else 0,
            sandbox=sandbox,
        )
        for text in (part.strip() for part in tasks.split(","))
    ]


def prompts_of(
    config: RlConfig,
    benchmarks: Sequence[Benchmark],
    model: Any,
    tokenizer: Any,
    asking: Asking,
    decoding: Decoding,
    rewards: Sequence[Reward],
) -> tuple[list[Prompt], int]:
    """Return (the prompts to train on, how many prompts were too long). Raises UserError for what a prompt or a reward
    lacks.
    """
    limit, longest = _room(model, decoding, "rollout.decoding"), config.rollout.max_prompt_tokens
    if longest is not None:
        limit = longest if limit is None else min(limit, longest)
    if config.data is not None:
        found = data_prompts(config.data, tokenizer, asking)[: config.problems]
    else:
        found = [prompt for benchmark in benchmarks for prompt in task_prompts(benchmark, tokenizer, asking)]
    mend = "raise rollout.max_prompt_tokens (or shorten the canvas), or set rollout.over_long to drop"
    kept, dropped = fitting(found, limit, drop=config.rollout.over_long == "drop", mend=mend)
    if dropped:
        tell(f"{dropped} of {len(found)} prompts are longer than {limit} tokens and dropped")
    refuse_missing_columns(rewards, columns_of(kept), row="row")
    return kept, dropped


def held_out_tasks(config: RlConfig) -> str | None:
    """Return the tasks that progress is measured on: those named; by default the generated ones that are trained on."""
    if config.held_out.tasks is not None:
        return None if config.held_out.tasks == "none" else config.held_out.tasks
    names = [] if config.data is not None else [text.strip() for text in config.tasks.split(",")]
    return ",".join(name for name in names if "=" not in name and isinstance(get(name), GeneratedTask)) or None


def held_out_of(
    config: RlConfig,
    model: Any,
    tokenizer: Any,
    asking: Asking,
    rewards: Sequence[Reward],
    engine: Engine | None = None,
) -> HeldOut | None:
    """Return the held-out problems, answered by this engine, or by another of its kind.

    Raises UserError where they do not fit the canvas, or lack what a reward needs.
    """
    tasks = held_out_tasks(config)
    if tasks is None:
        return None
    benchmarks = _parsed(config, tasks, count=config.held_out.n, split="validation")
    prompts = [prompt for benchmark in benchmarks for prompt in task_prompts(benchmark, tokenizer, asking)]
    decoding = decoding_of(model, config.held_out.decoding, temperature=GREEDY)
    limit = _room(model, decoding, "held_out.decoding")
    fitting(prompts, limit, drop=False, mend="shorten held_out.decoding.max_new_tokens, or hold other problems out")
    refuse_missing_columns(rewards, columns_of(prompts), row="held-out problem")
    return HeldOut(
        engine or engine_of(config.rollout.engine, tokenizer, config.held_out.batch_size),
        Grader(rewards, config.rewards.on_bad, columns_of(prompts), config.prefill),
        prompts,
        decoding,
    )


def _room(model: Any, decoding: Decoding, where: str) -> int | None:
    """The longest prompt that the canvas leaves room for among the model's positions."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if not positions:
        return None
    room = longest_prompt(positions, decoding.max_new_tokens, attention_of(model))
    if room < 1:
        raise UserError(
            f"a canvas of {decoding.max_new_tokens} leaves no room for a prompt in the model's {positions} positions",
            where=where,
            mend="lower max_new_tokens",
        )
    return room
