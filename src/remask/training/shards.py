"""A process's part of a parameter that FSDP2 or ZeRO-3 shards, and the whole of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import Trainer


def units_of(model: torch.nn.Module) -> list[FSDPModule]:
    """Return the parts of an FSDP2 model that are gathered together; none where it is not sharded, or not yet."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def zero3(trainer: Trainer) -> Any:
    """Return DeepSpeed's engine, where it is at work and shards weights, else None."""
    wrapped = getattr(trainer.accelerator, "deepspeed_engine_wrapped", None)
    return wrapped.engine if wrapped is not None and wrapped.engine.zero_optimization_partition_weights() else None


def free_gathered(trainer: Trainer) -> bool:
    """Free all that a process gathered of others' parts. Return whether weights are sharded."""
    model: Any = trainer.model
    engine, units = zero3(trainer), units_of(model)
    if engine is not None:
        engine.optimizer.empty_partition_cache()  # the engine's own also collects garbage, at each call
    for unit in units:
        unit.reshard()
    return engine is not None or bool(units)


def part(value: Tensor) -> Tensor:
    """Return this process's part of a parameter, in the engine's memory; all of it where it is not sharded."""
    held: Tensor = value.to_local() if isinstance(value, DTensor) else getattr(value, "ds_tensor", value)
    return held.detach()


def cut(value: Tensor, like: Tensor) -> Tensor:
    """Return this process's part of a whole value, sharded like that parameter."""
    if isinstance(like, DTensor):
        value = value.to(like.device, like.dtype)
        return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None).to_local()
    parameter: Any = like
    kept: Any = getattr(like, "ds_tensor", None)
    if kept is None:
        return value
    size, rank = kept.ds_numel, dist.get_rank(parameter.ds_process_group)
    own = value.flatten()[rank * size : (rank + 1) * size].to(kept)
    return torch.nn.functional.pad(own, (0, size - len(own)))


def joined(own: Tensor, like: Any) -> Tensor:
    """Return the whole of which each process has its part, sharded like that parameter. All processes take part."""
    if isinstance(like, DTensor):
        sharded = DTensor.from_local(
            own, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
        return sharded.full_tensor()
    if not hasattr(like, "ds_tensor"):
        return own
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size(like.ds_process_group))]
    dist.all_gather(parts, own, group=like.ds_process_group)
    return torch.cat(parts)[: like.ds_numel].view(like.ds_shape)


def full(value: Tensor) -> Tensor:
    """Return a parameter, without its gradient, whole. All processes take part."""
    return joined(part(value), value)
