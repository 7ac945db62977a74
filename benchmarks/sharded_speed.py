"""The loss of chosen tokens with weights sharded over two processes by FSDP2, against the same tokens' full logits.

    torchrun --nproc_per_node 2 benchmarks/sharded_speed.py [--rounds 5]

Sharded as accelerate does it: the final norm and the head in a unit of their own, whole from the forward pass of the
norm until the backward pass.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.distributed as dist
from measure import Figure, in_turns, peak_memory, ratio, table
from shapes import LAPTOP, LLADA_8B, Shape, build
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from remask.diffusion.corruption import Canvas
from remask.diffusion.reader import LogitsReader, ModelReader, Reader

ROWS, LENGTH = 4, 512


def measure(rounds: int, shape: Shape, device: str) -> list[Figure]:
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    model: Any = build(shape, device=device).train()
    for unit in (*model.model.layers, model.model.embed_tokens):
        fully_shard(unit, mesh=mesh)
    fully_shard([model.model.norm, model.get_output_embeddings()], mesh=mesh, reshard_after_forward=False)
    fully_shard(model, mesh=mesh)
    generator = torch.Generator().manual_seed(dist.get_rank())
    ids = torch.randint(shape.vocabulary - 3, (ROWS, LENGTH), generator=generator).to(device)
    mask = torch.rand(ids.shape, generator=generator).to(device) < 0.5
    weight = torch.rand(int(mask.sum()), generator=generator).to(device)
    hidden = ids.masked_fill(mask, model.config.mask_token_id)
    losses: dict[str, torch.Tensor] = {}

    canvas = Canvas(ids, torch.ones_like(mask), mask, mask)

    def step(name: str, reader: Reader) -> None:
        loss, ce = reader.weighted_loss(hidden, canvas, mask, weight)
        loss.backward()
        model.zero_grad()
        losses[name] = ce

    def full_logits(ids: torch.Tensor, attended: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(input_ids=ids, attention_mask=attended.long(), positions=positions).logits
        return logits

    variants = {
        "ours": lambda: step("ours", ModelReader(model)),
        "plain": lambda: step("plain", LogitsReader(full_logits)),
    }
    times = in_turns(variants, rounds=rounds)
    memory = {name: peak_memory(run) for name, run in variants.items()}
    apart = ((losses["ours"] - losses["plain"]).abs() / losses["plain"]).max().item()
    part = f"SFT step under FSDP2, {dist.get_world_size()} processes: {shape.name}, {ROWS} rows of {LENGTH}"
    return [
        Figure(part, "against full logits of the masked tokens", *ratio(times["plain"], times["ours"])),
        Figure(part, "peak memory", memory["ours"] / memory["plain"]),
        Figure(part, "largest relative difference of a loss", apart, unit="%"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if on_gpu else "gloo")
    if on_gpu:
        torch.cuda.set_device(dist.get_rank())
    figures = measure(arguments.rounds, LLADA_8B if on_gpu else LAPTOP, "cuda" if on_gpu else "cpu")
    if dist.get_rank() == 0:
        print(table(figures))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
