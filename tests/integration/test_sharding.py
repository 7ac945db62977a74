"""Losses, likelihoods and their gradients with weights sharded over two processes by torch's fully_shard (FSDP2)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RANK = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import remask
from remask.diffusion.corruption import Canvas
from remask.diffusion.likelihood import elbo_coupled
from remask.diffusion.noise import Noise
from remask.diffusion.reader import ModelReader, token_reading

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
generator = torch.Generator().manual_seed(0)
ids = torch.randint(60, 120, (2, 24), generator=generator)
response = torch.zeros(ids.shape, dtype=torch.bool)
response[:, 10:] = True
canvas = Canvas(ids, torch.ones_like(response), response, response)
mask = (torch.rand(ids.shape, generator=generator) < 0.5) & response
weight = torch.rand(int(mask.sum()), generator=generator)
noise = [Noise.at(torch.rand(2, generator=generator).clamp(min=1e-3), torch.rand(ids.shape, generator=generator))]


def measured(sharded):
    model, tokenizer = remask.load("tiny")
    if sharded:
        for unit in (*model.model.layers, *([model.get_output_embeddings()] if sharded == "head too" else [])):
            fully_shard(unit, mesh=mesh)
        fully_shard(model, mesh=mesh)
    model.requires_grad_(True).train()
    mask_id, found = model.config.mask_token_id, {}
    reader, hidden = ModelReader(model), ids.masked_fill(mask, mask_id)

    def of_losses(weights=None):
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
        found[name] = [ce.detach()] + [
            p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for p in model.parameters()
        ]
    model.zero_grad()
    value = elbo_coupled(model, canvas, noise, mask_id).sequence
    value.sum().backward()
    found["elbo"] = [value.detach()] + [
        p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for p in model.parameters()
    ]
    found["reading"] = list(token_reading(ModelReader(model), hidden, canvas, mask))
    return found


def refuse(*_):
    raise AssertionError("full logits")


plain = measured(False)
remask.diffusion.head.token_cross_entropy = refuse
for sharded in (measured("head with the rest"), measured("head too")):
    for name in plain:
        for one, other in zip(plain[name], sharded[name], strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-5), (name, (one - other).abs().max())
if dist.get_rank() == 0:
    print("equal:", ", ".join(plain))
dist.destroy_process_group()
"""


def test_sharded_weights_give_the_same_losses_likelihoods_and_gradients(tmp_path: Path) -> None:
    """A chunk of logits at a time, also with the head in a unit of its own.

    Both ranks score the same rows, so that the mean of their gradients is each one's.
    """
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*launch, str(script)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "equal: one pass, handed on, two passes, elbo, reading" in done.stdout
