"""Weights that are sharded over the processes (FSDP2, DeepSpeed's ZeRO-3): made whole for a while, and saved whole.

A forward pass on sharded weights is a joint act: every process must make as many as the others, or all wait for ever.
Training does. What does not (rollouts, whose rows end at different steps) is done inside `whole`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers import Trainer
from transformers.integrations import deepspeed as integration

from remask.errors import UserError
from remask.files import let_others_read
from remask.training.shards import units_of, zero3

T = TypeVar("T")
PLAIN = "plain data parallelism or one process"


@contextmanager
def loaded_whole() -> Iterator[None]:
    """Load a model whole although ZeRO-3 will shard it: transformers would shard it at once, before it can be hashed,
    probed or copied (the patch `zero3-loading`).
    """
    noted = integration._hf_deepspeed_config_weak_ref  # there is a setter, and nothing that tells what is set
    config = None if noted is None else noted()
    integration.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            integration.set_hf_deepspeed_config(config)


@contextmanager
def whole(trainer: Trainer) -> Iterator[None]:
    """Let every process hold all weights on its device and call the model as often as it likes, without gradient.

    All processes enter and leave together. It takes the memory of one model in the dtype that is computed in; weights
    that were not sharded are moved to the device, and stay there.
    """
    model: Any = trainer.model
    units, engine = units_of(model), zero3(trainer)
    if engine is not None:
        with _gathered(engine):
            yield
        return
    if not units:
        model.to(trainer.args.device)
        yield
        return
    reshards = [_reshards(unit) for unit in units]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit, before in zip(units, reshards, strict=True):
            unit.reshard()
            unit.set_reshard_after_forward(before, recurse=False)
            _forget(unit)


@contextmanager
def _gathered(engine: Any) -> Iterator[None]:
    """ZeRO-3's weights whole, without the hooks that gather them layer by layer (the patch `zero3-hooks`)."""
    import deepspeed

    engine.optimizer.empty_partition_cache()
    hooks = engine.optimizer.parameter_offload
    hooks.destroy()
    hooks.forward_hooks.clear()
    hooks.backward_hooks.clear()
    try:
        with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
            yield
    finally:
        hooks.setup_zero_stage3_hooks()


def _group(unit: FSDPModule) -> Any:
    """What PyTorch keeps of a unit's sharded parameters; None where it has none."""
    state: Any = fully_shard
    return state.state(unit)._fsdp_param_group


def _reshards(unit: FSDPModule) -> bool:
    """Whether the unit lets go of what it gathered when its forward pass is over. PyTorch has a setter only."""
    group = _group(unit)
    return group is not None and group._reshard_after_forward


def _forget(unit: FSDPModule) -> None:
    """Of the passes since the last backward one, in whose order the next would gather weights ahead: no backward pass
    follows these, and not every process made as many, or any (the patch `fsdp-order`).
    """
    group = _group(unit)
    places = [] if group is None else group._post_forward_indices
    if places:
        places.clear()
        group.comm_ctx.post_forward_order.clear()


def save_whole(trainer: Trainer, folder: Path) -> None:
    """Save the model in the hub's layout, also where checkpoints are sharded. All processes take part; the first
    writes.
    """
    if not trainer.is_fsdp_enabled:
        trainer.save_model(str(folder))
    else:
        weights = trainer.accelerator.get_state_dict(trainer.model)
        if trainer.is_world_process_zero():
            model: Any = trainer.accelerator.unwrap_model(trainer.model)
            model.save_pretrained(folder, state_dict=weights)
    if trainer.is_world_process_zero():
        let_others_read(folder)


def shares(jobs: Sequence[T], rank: int, world: int) -> list[tuple[T, bool]]:
    """Return this rank's jobs, as many as every other's. The flag is false for the fillers, which are done only to keep
    the ranks together.
    """
    padded = [(job, True) for job in jobs] + [(job, False) for job in jobs[:1]] * (-len(jobs) % world)
    return padded[rank::world]


def refuse_to_lose_the_model(trainer: Trainer) -> None:
    """Raises UserError where ZeRO-3 would leave the weights in pieces when training ends, without a message."""
    if not trainer.is_deepspeed_enabled:
        return
    plugin: Any = trainer.accelerator.state.deepspeed_plugin
    settings = plugin.deepspeed_config.get("zero_optimization", {})
    if settings.get("stage") == 3 and not settings.get("stage3_gather_16bit_weights_on_model_save"):
        raise UserError(
            "ZeRO-3 would not write the model whole",
            mend="set zero3_save_16bit_model: true, as recipes/accelerate/zero3.yaml does",
        )


def settle_fsdp(trainer: Trainer) -> None:
    """Make FSDP compute in mixed precision, but add gradients up in float32, and leave inputs and outputs as they are:
    losses, entropies and weights of tokens are float32. accelerate would round them all.

    Raises UserError for FSDP1: no loss, probe or rollout of Remask works on its flattened weights.
    """
    state = trainer.accelerator.state
    plugin = getattr(state, "fsdp_plugin", None)
    if plugin is None:
        return
    if plugin.fsdp_version != 2:
        raise UserError("weights sharded by FSDP1", mend="set fsdp_version: 2, as recipes/accelerate/fsdp2.yaml does")
    if state.mixed_precision != "no":
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=plugin.mixed_precision_policy.param_dtype,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )


def settle_ddp(trainer: Trainer) -> None:
    """Keep gradients in the buffers that DDP sends, instead of taking their memory a second time."""
    if trainer.accelerator.ddp_handler is not None:
        trainer.accelerator.ddp_handler.gradient_as_bucket_view = True


def refuse_another_engine(trainer: Trainer, checkpoint: Path) -> None:
    """Raises UserError where a checkpoint's weights are stored for another engine than the one that would read it."""
    kinds = {"FSDP": trainer.is_fsdp_enabled, "DeepSpeed": trainer.is_deepspeed_enabled}
    now = next((name for name, used in kinds.items() if used), PLAIN)
    if any(checkpoint.glob("pytorch_model_fsdp*")):
        before = "FSDP"
    else:
        before = "DeepSpeed" if (checkpoint / "latest").exists() else PLAIN
    if before != now:
        raise UserError(
            f"a checkpoint of a run under {before} cannot be resumed under {now}",
            where=str(checkpoint),
            mend="launch it as it was launched (recipes/accelerate)",
        )
    parts = {path.name for path in checkpoint.glob("global_step*/*zero_pp_rank_*_optim_states.pt")}
    if parts and len(parts) != trainer.args.world_size:
        raise UserError(
            f"a checkpoint of {len(parts)} processes under DeepSpeed cannot be resumed with {trainer.args.world_size}",
            where=str(checkpoint),
            mend=f"use {len(parts)} processes; FSDP2's and plain checkpoints go on under any number",
        )
