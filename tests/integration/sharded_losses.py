"""One of two processes over gloo: losses, likelihoods and their gradients with weights sharded by torch's fully_shard
(FSDP2) are those with whole weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import remask
from remask.diffusion import head
from remask.diffusion.corruption import Canvas
from remask.diffusion.likelihood import elbo_coupled
from remask.diffusion.noise import Noise
from remask.diffusion.reader import ModelReader, token_reading


def gradients(model: Any) -> list[Tensor]:
    return [p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for p in model.parameters()]


def measured(mesh: DeviceMesh, units: str) -> dict[str, list[Tensor]]:
    """What is read of the same rows, with the units of the model sharded that `units` says."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(60, 120, (2, 24), generator=generator)
    response = torch.zeros(ids.shape, dtype=torch.bool)
    response[:, 10:] = True
    canvas = Canvas(ids, torch.ones_like(response), response, response)
    mask = (torch.rand(ids.shape, generator=generator) < 0.5) & response
    weight = torch.rand(int(mask.sum()), generator=generator)
    noise = [Noise.at(torch.rand(2, generator=generator).clamp(min=1e-3), torch.rand(ids.shape, generator=generator))]

    model, _ = remask.load("tiny")
    if units != "none":
        for unit in (*model.model.layers, *([model.get_output_embeddings()] if units == "head too" else [])):
            fully_shard(unit, mesh=mesh)
        fully_shard(model, mesh=mesh)
    model.requires_grad_(True).train()
    mask_id = model.config.mask_token_id
    found: dict[str, list[Tensor]] = {}
    reader, hidden = ModelReader(model), ids.masked_fill(mask, mask_id)

    def of_losses(weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        ce = reader.losses(hidden, canvas, mask, weights)
        return (ce * weight).sum(), ce

    ways = {
        "one pass": lambda: reader.weighted_loss(hidden, canvas, mask, weight),
        "handed on": lambda: of_losses(weight),
        "two passes": of_losses,
    }
    for name, way in ways.items():
        model.zero_grad()
        loss, ce = way()
        loss.backward()
        found[name] = [ce.detach(), *gradients(model)]
    model.zero_grad()
    value = elbo_coupled(model, canvas, noise, mask_id).sequence
    value.sum().backward()
    found["elbo"] = [value.detach(), *gradients(model)]
    found["reading"] = list(token_reading(ModelReader(model), hidden, canvas, mask))
    return found


def refuse(*_: object) -> None:
    raise AssertionError("full logits")


def main(_: Sequence[str]) -> int:
    """Compares the two, and prints what was equal."""
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    plain = measured(mesh, "none")
    head.token_cross_entropy = refuse  # type: ignore[assignment]
    for sharded in (measured(mesh, "head with the rest"), measured(mesh, "head too")):
        for name in plain:
            for one, other in zip(plain[name], sharded[name], strict=True):
                assert torch.allclose(one, other, rtol=1e-4, atol=1e-5), (name, (one - other).abs().max())
    if dist.get_rank() == 0:
        print("equal:", ", ".join(plain))
    dist.destroy_process_group()
    return 0
