"""One reinforcement-learning run, from a config to a folder with the policy, its metrics and its completions."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from accelerate import PartialState
from transformers import TrainerCallback

from remask.config import DecodingConfig, RlConfig
from remask.errors import UserError
from remask.models.facts import Facts
from remask.rl.batches import Plan
from remask.rl.callbacks import CompletionsCallback, ReferenceSync, RolloutState
from remask.rl.held_out import HeldOut
from remask.rl.policy_loss import PolicyObjective
from remask.rl.presets import resolve
from remask.rl.prompts import Prompt, PromptOrder, data_prompts, fitting, task_prompts
from remask.rl.reference import Reference
from remask.rl.rewards import parse_rewards
from remask.rl.rollout import Rollout, Sampler
from remask.rl.trainer import PolicyTrainer
from remask.sampling.generate import decoding_for
from remask.sampling.schedule import Decoding
from remask.tasks import GeneratedTask, Split, get
from remask.tasks.benchmark import Asking, Benchmark, read_template
from remask.tasks.generator import digest, published_digests
from remask.training.arguments import training_arguments
from remask.training.callbacks import ProgressCallback
from remask.training.folder import check_engine, check_least, refuse_another_config, starting_point, status_of
from remask.training.model import load_trainable, trainable, without_dropout
from remask.training.run import Outcome, already_finished, carry_out, last_evaluation

GENERATED_PROBLEMS = 1500
FREE_ON_RESUME = frozenset(
    {"held_out.tasks", "held_out.n", "held_out.batch_size", "rollout.batch_size", "rollout.keep", "trainer.backward"}
)


def run_rl(config: RlConfig, *, label: str | None = None, quiet: bool = False) -> Outcome:
    """Train as the config says. Everything a user can get wrong is found before the output folder is touched."""
    started = time.perf_counter()
    check_numbers(config)
    objective = resolve(config.objective, **config.choices.given())
    folder = Path(config.output_dir)
    checkpoint = starting_point(config, folder)
    if checkpoint is not None:
        refuse_another_config(config, folder, free=FREE_ON_RESUME)
    if checkpoint is None and config.resume and (folder / "run.json").exists() and status_of(folder) == "finished":
        return already_finished(folder)
    trainer, tokenizer, described = _build(config, folder, objective)

    def begin(progress: ProgressCallback) -> Sequence[TrainerCallback]:
        completions = CompletionsCallback(folder / "completions.jsonl")
        own: list[TrainerCallback] = [completions, RolloutState(trainer)]
        if trainer.reference is not None:
            own.append(ReferenceSync(trainer.reference))
        if checkpoint is not None:
            RolloutState(trainer).restore(checkpoint)
            if trainer.reference is not None:
                trainer.reference.restore(checkpoint)

        def on_rollout(rollout: Rollout, step: int) -> None:
            if trainer.is_world_process_zero():
                completions.add(rollout, step)

        trainer.on_rollout = on_rollout
        trainer.sampler.on_progress = lambda done, total: progress.within(f"sampling {done}/{total}")
        return own

    return carry_out(
        config,
        trainer,
        tokenizer,
        described=described,
        checkpoint=checkpoint,
        begin=begin,
        finish=lambda: last_evaluation(trainer) or trainer.evaluate() if trainer.held_out else {},
        label=label or config.objective,
        quiet=quiet,
        started=started,
    )


def check_numbers(config: RlConfig) -> None:
    """Raises UserError for a setting out of its range, before anything is read or written."""
    check_engine(config)
    rollout = config.rollout
    check_least(
        {
            "seed": (config.seed, 0),
            "max_steps": (config.max_steps, 1),
            "problems": (config.problems, 1),
            "rollout.prompts": (rollout.prompts, 1),
            "rollout.inner_updates": (rollout.inner_updates, 1),
            "rollout.minibatches": (rollout.minibatches, 1),
            "rollout.batch_size": (rollout.batch_size, 1),
            "rollout.max_prompt_tokens": (rollout.max_prompt_tokens, 1),
            "rollout.keep": (rollout.keep, -1),
            "held_out.n": (config.held_out.n, 1),
            "held_out.batch_size": (config.held_out.batch_size, 1),
            "reference.sync_every": (config.reference.sync_every, 0),
        }
    )
    if rollout.completions < 2:
        raise UserError(
            f"rollout.completions = {rollout.completions}: an answer's advantage is over the others of its group",
            mend="give 2 or more",
        )
    if config.lora.dropout:
        raise UserError(
            f"lora.dropout = {config.lora.dropout}: with dropout a policy's ratio to itself would not be 1",
            mend="set it to 0",
        )
    greedy = rollout.decoding.temperature == 0
    if greedy and rollout.decoding.reveal != "random":
        raise UserError(
            "rollout.decoding.temperature = 0: all answers of a group would be the same", mend="give it more than 0"
        )


def _build(config: RlConfig, folder: Path, objective: PolicyObjective) -> tuple[PolicyTrainer, Any, dict[str, Any]]:
    """Model, prompts, rewards and trainer, from what the config names, and what run.json says. Writes nothing."""
    if config.trainer.eval_steps and held_out_tasks(config) is None:
        print("trainer.eval_steps has no effect: no problems are held out (held_out.tasks)", file=sys.stderr)
    state = PartialState(cpu=config.device == "cpu")
    rollout = config.rollout
    plan = Plan(
        rollout.prompts * rollout.completions,
        rollout.inner_updates,
        rollout.minibatches,
        config.trainer.per_device_train_batch_size,
        state.process_index,
        state.num_processes,
    )
    args = training_arguments(
        config.trainer,
        folder,
        device=config.device,
        seed=config.seed,
        evaluates=held_out_tasks(config) is not None,
        max_steps=config.max_steps,
        per_device_eval_batch_size=config.held_out.batch_size,
        gradient_accumulation_steps=plan.micro_batches,
        ignore_data_skip=True,
    )
    benchmarks = _benchmarks(config)  # problems and rewards are looked at before weights are loaded
    model, tokenizer, known = load_trainable(
        config.model, dtype=config.dtype, quantization=config.quantization, lora=config.lora, device=args.device
    )
    decoding = _decoding(model, rollout.decoding)
    rewards = parse_rewards(config.rewards.functions, config.rewards.weights, canvas=decoding.max_new_tokens)
    asking = Asking(
        cast(Any, config.prompt_style or known.prompt_style),
        read_template(config.prompt_template),
        config.system,
        config.prefill,
    )
    prompts, dropped = _prompts(config, benchmarks, tokenizer, asking, _room(model, decoding, config))
    held_out = _held_out(config, model, tokenizer, asking, rewards)
    model = trainable(model, config.model, quantization=config.quantization, lora=config.lora, seed=config.seed)
    model = without_dropout(model)
    sampler = Sampler(
        tokenizer,
        prompts,
        PromptOrder(len(prompts), per_rollout=rollout.prompts, seed=config.seed),
        rollout.completions,
        decoding,
        rewards,
        config.rewards.on_bad,
        objective.advantage,
        objective.scope,
        config.seed,
        rollout.batch_size,
        config.prefill,
        rollout.keep,
    )
    try:
        trainer = PolicyTrainer(
            model,
            args,
            objective=objective,
            sampler=sampler,
            plan=plan,
            mask_id=known.mask_id,
            reference=Reference(model, sync_every=config.reference.sync_every) if objective.uses_reference else None,
            held_out=held_out,
            log_every=config.trainer.logging_steps,
            whole_backward=config.trainer.backward == "whole",
            processing_class=tokenizer,
        )
    except (RuntimeError, ValueError, ImportError, OSError) as error:  # a tracker that is unknown or not installed
        raise UserError(f"trainer: {str(error).strip().splitlines()[0]}", mend="see `remask rl --help`") from error
    _refuse_sharding(trainer)
    return trainer, tokenizer, _described(config, objective, decoding, asking, len(prompts), dropped, known)


def _described(
    config: RlConfig,
    objective: PolicyObjective,
    decoding: Decoding,
    asking: Asking,
    prompts: int,
    dropped: int,
    known: Facts,
) -> dict[str, Any]:
    """What run.json says of an RL run."""
    return {
        "training": "rl",
        "objective": {"name": config.objective, **asdict(objective)},
        "seed": config.seed,
        "model": config.model,
        "data": {"source": config.data or config.tasks, "prompts": prompts, "dropped": dropped},
        "rewards": asdict(config.rewards),
        "rollout": {**asdict(config.rollout), "decoding": decoding.described(), **asking.described()},
    }


def _benchmarks(config: RlConfig) -> list[Benchmark]:
    """The tasks' training problems, the sandbox tried out first where code is to be run."""
    if config.data is not None:
        return []
    benchmarks = _parsed(config, config.tasks, count=config.problems, split="train")
    for benchmark in benchmarks:
        known = sum(digest(problem.key) in published_digests() for problem in benchmark.problems)
        if known:
            print(f"{benchmark.source}: {known} of its problems are in the published test files", file=sys.stderr)
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


def _prompts(
    config: RlConfig, benchmarks: Sequence[Benchmark], tokenizer: Any, asking: Asking, limit: int | None
) -> tuple[list[Prompt], int]:
    if config.data is not None:
        found = data_prompts(config.data, tokenizer, asking)
    else:
        found = [prompt for benchmark in benchmarks for prompt in task_prompts(benchmark, tokenizer, asking)]
    kept, dropped = fitting(found, limit, drop=config.rollout.over_long == "drop")
    if dropped:
        print(f"{dropped} of {len(found)} prompts are longer than {limit} tokens and dropped", file=sys.stderr)
    return kept, dropped


def _room(model: Any, decoding: Decoding, config: RlConfig) -> int | None:
    """The longest prompt: the one asked for, or what the canvas leaves of the model's positions."""
    positions = getattr(model.config, "max_position_embeddings", None)
    room = positions - decoding.max_new_tokens if positions else None
    limits = [limit for limit in (room, config.rollout.max_prompt_tokens) if limit is not None]
    return min(limits) if limits else None


def _decoding(model: Any, settings: DecodingConfig) -> Decoding:
    return decoding_for(model, **settings.given())


def held_out_tasks(config: RlConfig) -> str | None:
    """Which tasks progress is measured on: those named; by default the generated ones that are trained on."""
    if config.held_out.tasks is not None:
        return None if config.held_out.tasks == "none" else config.held_out.tasks
    names = [] if config.data is not None else [text.strip() for text in config.tasks.split(",")]
    return ",".join(name for name in names if "=" not in name and isinstance(get(name), GeneratedTask)) or None


def _held_out(config: RlConfig, model: Any, tokenizer: Any, asking: Asking, rewards: Any) -> HeldOut | None:
    tasks = held_out_tasks(config)
    if tasks is None:
        return None
    benchmarks = _parsed(config, tasks, count=config.held_out.n, split="validation")
    prompts = [prompt for benchmark in benchmarks for prompt in task_prompts(benchmark, tokenizer, asking)]
    decoding = _decoding(model, config.held_out.decoding)
    fitting(prompts, _room(model, decoding, config), drop=False)
    return HeldOut(
        tokenizer, prompts, decoding, rewards, config.rewards.on_bad, config.held_out.batch_size, config.prefill
    )


def _refuse_sharding(trainer: PolicyTrainer) -> None:
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise UserError(
            "rollouts on sharded weights (FSDP, DeepSpeed): rows end at different steps on different processes, "
            "which would wait for each other for ever",
            mend="use plain data parallelism, with adapters for a large model: --lora.rank 128",
        )
