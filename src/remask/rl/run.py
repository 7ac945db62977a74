"""One reinforcement-learning run, from a config to a folder with the policy, its metrics and its completions."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainingArguments

from remask.config import RlConfig
from remask.errors import UserError
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
    check_data,
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
from remask.rl.trainer import PolicyTrainer
from remask.sampling.engine import engine_of
from remask.sampling.schedule import Decoding
from remask.tasks.benchmark import Asking
from remask.training.arguments import training_arguments
from remask.training.callbacks import ProgressCallback
from remask.training.folder import (
    MOST,
    MOST_DRAWS,
    check_engine,
    check_least,
    check_most,
    digest,
)
from remask.training.lines import Lines
from remask.training.model import load_trainable, trainable, without_dropout
from remask.training.presets import recorded
from remask.training.reference import Reference
from remask.training.run import Job, Outcome, carry_out, in_folder, last_evaluation, trainer_errors

MOST_LAG = 64
"""The most rollouts that may wait for their use."""
FREE_ON_RESUME = frozenset(
    {
        "rewards.timeout",
        "held_out.tasks",
        "held_out.n",
        "held_out.batch_size",
        "rollout.batch_size",
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
            "rollout.max_lag": (rollout.max_lag, 0),
            "held_out.n": (config.held_out.n, 1),
            "held_out.batch_size": (config.held_out.batch_size, 1),
            "reference.sync_every": (config.reference.sync_every, 0),
            "rewards.timeout": (config.rewards.timeout, 0),
        }
    )
    check_most(
        {
            "rollout.prompts × rollout.completions": (rollout.prompts * rollout.completions, MOST),
            "rollout.inner_updates": (rollout.inner_updates, MOST),
            "rollout.minibatches": (rollout.minibatches, MOST),
            "rollout.max_lag": (rollout.max_lag, MOST_LAG),
            "held_out.n": (config.held_out.n, MOST),
            "problems": (config.problems, MOST),
            "choices.draws": (config.choices.draws, MOST_DRAWS),
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
    for name, value in (("temperature", 0), ("top_k", 1)):
        if getattr(rollout.decoding, name) == value and rollout.decoding.reveal != "random":
            raise UserError(
                f"rollout.decoding.{name} = {value}: all answers of a group would be the same",
                mend=f"give it more than {value}",
            )
    check_data(config)


def _build(
    config: RlConfig, folder: Path, objective: PolicyObjective, ending: ExitStack
) -> tuple[PolicyTrainer, Any, dict[str, Any]]:
    """Model, prompts, rewards and trainer, from what the config names, and what run.json says. Writes nothing. `ending`
    ends what is begun for it.
    """
    state = PartialState(cpu=config.device == "cpu")
    _tell_what_has_no_effect(config, objective)
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
    objective = in_blocks_of(objective, decoding)
    _tell_what_was_not_sampled(objective, decoding)
    rewards = parse_rewards(config.rewards.functions, config.rewards.weights, canvas=decoding.max_new_tokens)
    rewards, apart = set_apart(rewards, config.rewards.timeout)
    if apart is not None:
        ending.callback(apart.end)
    prompts, dropped = prompts_of(config, benchmarks, model, tokenizer, asking, decoding, rewards)
    held_out = held_out_of(config, model, tokenizer, asking, rewards)
    model = trainable(model, config.model, quantization=config.quantization, lora=config.lora, seed=config.seed)
    model = without_dropout(model)
    with trainer_errors("rl"):
        trainer = PolicyTrainer(
            model,
            args,
            objective=objective,
            maker=_maker(config, objective, tokenizer, known, prompts, decoding, rewards),
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
    tokenizer: Any,
    known: Facts,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    rewards: Sequence[Reward],
) -> RolloutMaker:
    rollout = config.rollout
    return RolloutMaker(
        engine_of(rollout.engine, tokenizer, rollout.batch_size),
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


def _tell_what_has_no_effect(config: RlConfig, objective: PolicyObjective) -> None:
    if config.trainer.eval_steps and held_out_tasks(config) is None:
        tell("trainer.eval_steps has no effect: no problems are held out (held_out.tasks)")
    if config.reference.sync_every and not objective.uses_reference:
        tell("reference.sync_every has no effect: the objective has no KL")


def in_blocks_of(objective: PolicyObjective, decoding: Decoding) -> PolicyObjective:
    """Return the objective with the blocks that answers are sampled in, where it scores blocks and names no length."""
    if objective.likelihood != "block_random" or objective.block_length:
        return objective
    return replace(objective, block_length=decoding.block_length or 0)


def _tell_what_was_not_sampled(objective: PolicyObjective, decoding: Decoding) -> None:
    """Tell where answers are scored in another order than they are written in."""
    one_by_one = decoding.threshold is None and decoding.steps in (None, decoding.max_new_tokens)
    in_order = decoding.rule is None and (decoding.reveal == "left_to_right" or decoding.block_length == 1)
    if objective.likelihood == "left_to_right" and not (one_by_one and in_order):
        tell(
            "the likelihood left_to_right scores answers as if each token had been written after those left of it, and "
            "they are written otherwise: set rollout.decoding.reveal to left_to_right, and rollout.decoding.steps to "
            f"{decoding.max_new_tokens}"
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
