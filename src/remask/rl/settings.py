"""What is said of a run's settings before it begins: which are out of range, without effect, or do not fit together."""

from __future__ import annotations

from dataclasses import replace

from remask.config import RlConfig
from remask.diffusion.attention import Attention, BlockCausal
from remask.errors import UserError
from remask.rl.policy_loss import PolicyObjective
from remask.rl.problems import check_data, held_out_tasks
from remask.rl.ranks import tell
from remask.sampling.schedule import Decoding
from remask.training.folder import MOST, MOST_DRAWS, check_engine, check_least, check_most

MOST_LAG = 64
"""The most rollouts that may wait for their use."""


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
            "rollout.replicas": (rollout.replicas, 1),
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
            "rollout.replicas": (rollout.replicas, MOST),
            "held_out.n": (config.held_out.n, MOST),
            "problems": (config.problems, MOST),
            "choices.draws": (config.choices.draws, MOST_DRAWS),
        }
    )
    if rollout.replicas > 1 and rollout.engine != "ray":
        raise UserError(
            f"rollout.replicas = {rollout.replicas}: the engine {rollout.engine} has none",
            mend="take --rollout.engine ray; of servers give several addresses after commas",
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


def check_groups_are_whole(config: RlConfig, objective: PolicyObjective) -> None:
    """Raises UserError where a loss compares the answers of a group and optimiser steps hold parts of groups."""
    if objective.uses_groups and config.rollout.minibatches > 1:
        raise UserError(
            f"choices.loss = {objective.loss} with rollout.minibatches = {config.rollout.minibatches}: it compares the "
            "answers of a group, and an optimiser step would hold parts of groups",
            mend="set rollout.minibatches to 1",
        )


def tell_what_has_no_effect(config: RlConfig, objective: PolicyObjective) -> None:
    """Tell which settings have no effect."""
    if config.trainer.eval_steps and held_out_tasks(config) is None:
        tell("trainer.eval_steps has no effect: no problems are held out (held_out.tasks)")
    if config.reference.sync_every and not objective.uses_reference:
        tell("reference.sync_every has no effect: the objective holds nothing against the reference")


def in_blocks_of(objective: PolicyObjective, decoding: Decoding, attention: Attention) -> PolicyObjective:
    """Return the objective with the blocks that answers are sampled in, where it scores blocks and names no length.
    Raises UserError where it names another length than that of a block model's own blocks.
    """
    if objective.likelihood != "block_random":
        return objective
    if isinstance(attention, BlockCausal) and objective.block_length not in (0, attention.block):
        raise UserError(
            f"choices.block_length = {objective.block_length}: the model has blocks of {attention.block} tokens",
            mend="set it to 0",
        )
    return replace(objective, block_length=objective.block_length or decoding.block_length or 0)


def tell_what_was_not_sampled(objective: PolicyObjective, decoding: Decoding) -> None:
    """Tell where answers are scored in another order than they are written in."""
    one_by_one = decoding.threshold is None and decoding.steps in (None, decoding.max_new_tokens)
    in_order = decoding.rule is None and (decoding.reveal == "left_to_right" or decoding.block_length == 1)
    if objective.likelihood == "left_to_right" and not (one_by_one and in_order):
        tell(
            "the likelihood left_to_right scores answers as if each token had been written after those left of it, and "
            "they are written otherwise: set rollout.decoding.reveal to left_to_right, and rollout.decoding.steps to "
            f"{decoding.max_new_tokens}"
        )


def tell_what_the_gradient_lacks(objective: PolicyObjective, decoding: Decoding) -> None:
    """Tell where a trajectory is scored whose order depends on the weights: docs/theory.md, 12 has what is left out."""
    if objective.likelihood != "trajectory" or not _weights_choose_places(decoding):
        return
    besides = [name for name in ("threshold", "stop_last") if decoding.says(name)]
    told = f"reveal {decoding.reveal}" + (f", threshold {decoding.threshold}" if "threshold" in besides else "")
    without = f" and no {' and no '.join(besides)}" if besides else ""
    tell(
        f"the weights choose the places that a step writes ({told}), and the likelihood trajectory leaves what this "
        f"choice adds out of the gradient: with --rollout.decoding.reveal random{without} it adds nothing "
        "(docs/theory.md, 12)"
    )


def _weights_choose_places(decoding: Decoding) -> bool:
    """Whether a named rule chooses by the model's own scores which of a block's places keep their tokens."""
    if decoding.rule is not None or decoding.reveal in ("random", "left_to_right"):
        return False
    parts = zip(decoding.blocks, decoding.steps_per_block, strict=True)
    return any(len(block) > 1 and (decoding.threshold is not None or steps > 1) for block, steps in parts)
