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
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from transformers import Trainer

from remask.errors import UserError

T = TypeVar("T")
PLAIN = "plain data parallelism or one process"


def units_of(model: torch.nn.Module) -> list[FSDPModule]:
    """The parts of an FSDP2 model that are gathered together; none where it is not sharded, or not yet."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@contextmanager
def whole(model: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Every process holds all weights on its device and may call the model as often as it likes, without gradient.

    All processes enter and leave together. It takes the memory of one model in the dtype that is computed in; weights
    that were not sharded are moved to the device, and stay there.
    """
    units = units_of(model)
    if not units:
        model.to(device)
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


def _reshards(unit: FSDPModule) -> bool:
    """Whether the unit lets go of what it gathered when its forward pass is over. PyTorch has a setter only."""
    group = unit._get_fsdp_state()._fsdp_param_group
    return group is not None and group._reshard_after_forward


def save_whole(trainer: Trainer, folder: Path) -> None:
    """The model in the hub's layout, also where checkpoints are sharded. All processes take part; the first writes."""
    if not trainer.is_fsdp_enabled:
        trainer.save_model(str(folder))
        return
    weights = trainer.accelerator.get_state_dict(trainer.model)
    if trainer.is_world_process_zero():
        model: Any = trainer.accelerator.unwrap_model(trainer.model)
        model.save_pretrained(folder, state_dict=weights)


def shares(jobs: Sequence[T], rank: int, world: int) -> list[tuple[T, bool]]:
    """This rank's jobs, as many as every other's; of the fillers, which are done for company, the flag is false."""
    padded = [(job, True) for job in jobs] + [(jobs[0], False)] * (-len(jobs) % world)
    return padded[rank::world]


def settle_fsdp(trainer: Trainer) -> None:
    """Under mixed precision, compute in it, but add gradients up in float32, and leave inputs and outputs as they are:
    losses, entropies and weights of tokens are float32. accelerate would round them all.

    Raises UserError for FSDP1, whose flattened weights no loss, probe or rollout here was written for.
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


def refuse_another_engine(trainer: Trainer, checkpoint: Path) -> None:
    """Raises UserError where a checkpoint's weights are laid out for another engine than the one that would read it."""
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
            mend="launch it as it was launched (recipes/accelerate); the number of processes may change",
        )
