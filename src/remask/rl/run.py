"""One reinforcement-learning run, from a config to a folder with the policy, its metrics and its completions."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainingArguments

from remask.config import RlConfig
from remask.diffusion.blocks import attention_of
from remask.models.facts import Facts
from remask.progress import working
from remask.rl.apart import set_apart
from remask.rl.batches import Plan
from remask.rl.callbacks import ReferenceSync, RolloutState, ShareOfSteps
from remask.rl.grading import Grader
from remask.rl.policy_loss import PolicyObjective
from remask.rl.presets import resolve
from remask.rl.problems import (
    SAMPLED,
    asking_of,
    benchmarks_of,
    decoding_of,
    held_out_of,
    held_out_tasks,
    prompts_of,
)
from remask.rl.prompts import Prompt, PromptOrder, columns_of
from remask.rl.ranks import tell
from remask.rl.rewards import Reward, parse_rewards
from remask.rl.rollout import Rollout, RolloutMaker
from remask.rl.rollout_rows import Layout
from remask.rl.settings import (
    check_groups_are_whole,
    check_numbers,
    in_blocks_of,
    tell_what_has_no_effect,
    tell_what_the_gradient_lacks,
    tell_what_was_not_sampled,
)
from remask.rl.trainer import PolicyTrainer
from remask.sampling.engine import Engine, engine_of
from remask.sampling.schedule import Decoding
from remask.tasks.benchmark import Asking
from remask.training.arguments import training_arguments
from remask.training.callbacks import ProgressCallback
from remask.training.folder import (
    digest,
)
from remask.training.lines import Lines
from remask.training.model import load_trainable, trainable, without_dropout
from remask.training.presets import recorded
from remask.training.reference import Reference
from remask.training.run import Job, Outcome, carry_out, in_folder, last_evaluation, trainer_errors

FREE_ON_RESUME = frozenset(
    {
        "rewards.timeout",
        "held_out.tasks",
        "held_out.n",
        "held_out.batch_size",
        "rollout.batch_size",
        "rollout.replicas",
        "rollout.keep",
        "trainer.backward",
        "trainer.per_device_train_batch_size",
    }
)


def run_rl(config: RlConfig, *, label: str | None = None, quiet: bool = False) -> Outcome:
    """Train as the config says. Everything a user can get wrong is found before the output folder is touched."""
    started = time.perf_counter()
    check_numbers(config)
    objective = resolve(config.objective, **config.choices.given())
    check_groups_are_whole(config, objective)

    def train(folder: Path, checkpoint: Path | None) -> Outcome:
        with ExitStack() as ending:
            built = _build(config, folder, objective, ending)
            return carry_out(_job(config, checkpoint, built, label or config.objective, quiet, started))

    return in_folder(config, free=FREE_ON_RESUME, train=train)


def _job(
    config: RlConfig,
    checkpoint: Path | None,
    built: tuple[PolicyTrainer, Any, dict[str, Any]],
    label: str,
    quiet: bool,
    started: float,
) -> Job:
    trainer, tokenizer, described = built
    if checkpoint is not None:
        RolloutState(trainer).restore(checkpoint)
        if trainer.reference is not None:
            trainer.reference.restore(checkpoint)

    completions = Lines(Path(config.output_dir) / "completions.jsonl")

    def begin(progress: ProgressCallback) -> Sequence[TrainerCallback]:
        own: list[TrainerCallback] = [ShareOfSteps(), RolloutState(trainer)]
        if trainer.reference is not None:
            own.append(ReferenceSync(trainer, trainer.reference))

        def on_rollout(rollout: Rollout, step: int) -> None:
            if trainer.is_world_process_zero():
                completions.append({"step": step, **group} for group in rollout.kept)

        trainer.on_rollout = on_rollout
        trainer.maker.on_progress = progress.within
        return own

    def finish() -> dict[str, float]:
        if 0 < trainer.silence.rollouts == trainer.silence.seen < trainer.silence.FIRST:  # not said before
            tell(trainer.silence.warning())
        return last_evaluation(trainer) or trainer.evaluate()

    return Job(
        config,
        trainer,
        tokenizer,
        described,
        checkpoint,
        begin,
        finish,
        label,
        quiet,
        started,
        files=[completions],
        compares=trainer.reference is not None and not config.reference.sync_every,
    )


def _build(
    config: RlConfig, folder: Path, objective: PolicyObjective, ending: ExitStack
) -> tuple[PolicyTrainer, Any, dict[str, Any]]:
    """Model, prompts, rewards and trainer, from what the config names, and what run.json says. Writes nothing. `ending`
    ends what is begun for it.
    """
    state = PartialState(cpu=config.device == "cpu")
    tell_what_has_no_effect(config, objective)
    plan = _plan(config, state)
    args = _arguments(config, folder, plan)
    # What can be looked at before weights are loaded is; rewards again below, where the canvas is known.
    parse_rewards(config.rewards.functions, config.rewards.weights, canvas=sys.maxsize)
    with working("problems", enabled=state.is_main_process):
        benchmarks = benchmarks_of(config)
    model, tokenizer, known = load_trainable(
        config.model,
        dtype=config.dtype,
        quantization=config.quantization,
        lora=config.lora,
        device=args.device,
        attention=config.model_attention,
    )
    asking = asking_of(config, known.prompt_style)
    decoding = decoding_of(model, config.rollout.decoding, temperature=SAMPLED)
    objective = in_blocks_of(objective, decoding, attention_of(model))
    tell_what_was_not_sampled(objective, decoding)
    tell_what_the_gradient_lacks(objective, decoding)
    rewards = parse_rewards(config.rewards.functions, config.rewards.weights, canvas=decoding.max_new_tokens)
    rewards, apart = set_apart(rewards, config.rewards.timeout)
    if apart is not None:
        ending.callback(apart.end)
    prompts, dropped = prompts_of(config, benchmarks, model, tokenizer, asking, decoding, rewards)
    engine = engine_of(config.rollout.engine, tokenizer, config.rollout.batch_size, config.rollout.replicas)
    shared = engine if config.rollout.engine == "ray" else None
    held_out = held_out_of(config, model, tokenizer, asking, rewards, shared)
    model = trainable(model, config.model, quantization=config.quantization, lora=config.lora, seed=config.seed)
    model = without_dropout(model)
    with trainer_errors("rl"):
        trainer = PolicyTrainer(
            model,
            args,
            objective=objective,
            maker=_maker(config, objective, engine, known, prompts, decoding, rewards),
            max_lag=config.rollout.max_lag,
            plan=plan,
            mask_id=known.mask_id,
            reference=Reference(model, sync_every=config.reference.sync_every) if objective.uses_reference else None,
            held_out=held_out,
            log_every=config.trainer.logging_steps,
            whole_backward=config.trainer.backward == "whole",
            processing_class=tokenizer,
        )
    if apart is not None:
        trainer.maker.on_failure = apart.end
    if trainer.ahead is not None:
        ending.callback(trainer.ahead.end)
    return trainer, tokenizer, _described(config, objective, decoding, asking, prompts, dropped)


def _plan(config: RlConfig, state: PartialState) -> Plan:
    """How a rollout becomes updates."""
    return Plan(
        config.rollout.prompts * config.rollout.completions,
        config.rollout.inner_updates,
        config.rollout.minibatches,
        config.trainer.per_device_train_batch_size,
        state.process_index,
        state.num_processes,
    )


def _arguments(config: RlConfig, folder: Path, plan: Plan) -> TrainingArguments:
    return training_arguments(
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


def _maker(
    config: RlConfig,
    objective: PolicyObjective,
    engine: Engine,
    known: Facts,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    rewards: Sequence[Reward],
) -> RolloutMaker:
    rollout = config.rollout
    return RolloutMaker(
        engine,
        Grader(rewards, config.rewards.on_bad, columns_of(prompts), config.prefill),
        Layout(known.mask_id, known.stop_ids, objective.scope),
        prompts,
        PromptOrder(len(prompts), per_rollout=rollout.prompts, seed=config.seed),
        rollout.completions,
        decoding,
        objective.advantage,
        config.seed,
        rollout.batch_size,
        rollout.keep,
    )


def _described(
    config: RlConfig,
    objective: PolicyObjective,
    decoding: Decoding,
    asking: Asking,
    prompts: Sequence[Prompt],
    dropped: int,
) -> dict[str, Any]:
    """What run.json says of an RL run."""
    return {
        "training": "rl",
        "objective": recorded(config.objective, objective),
        "seed": config.seed,
        "model": config.model,
        **({"model_attention": config.model_attention} if config.model_attention else {}),
        "data": {
            "source": config.data or config.tasks,
            "prompts": len(prompts),
            "dropped": dropped,
            "digest": digest([prompt.ids] for prompt in prompts),
        },
        "rewards": asdict(config.rewards),
        "rollout": {**asdict(config.rollout), "decoding": decoding.described(), **asking.described()},
    }
