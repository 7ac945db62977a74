"""Batches without their padding (`remask/models/packing.py`) against the same batches padded to their longest row.

    python benchmarks/packing_speed.py [--rounds 7]

GSM8K-like rows, half of the answer masked: its losses, and with their gradient.
"""

from __future__ import annotations

import argparse
from typing import Any

import textbook
import torch
from measure import Figure, in_turns, peak_memory, ratio, table
from shapes import LAPTOP, LLADA_8B, WIDE, Shape, build, gsm8k_like

from remask.diffusion.predict import Network, token_losses


def measure(rounds: int, shape: Shape, device: str = "cpu", counts: tuple[int, ...] = (2, 8, 16)) -> list[Figure]:
    model: Any = build(shape, device=device)
    pad, mask_id = model.config.pad_token_id, model.config.mask_token_id
    figures = []
    for count in counts:
        rows = [(row.prompt, row.response) for row in gsm8k_like(count, shape)]
        ids, response = (x.to(device) for x in textbook.pad_rows(rows, pad))
        attended = ids != pad
        mask = (torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)).to(device) < 0.5) & response
        losses: dict[bool, torch.Tensor] = {}

        def read(packs: bool, gradient: bool, ids: Any = ids, attended: Any = attended, mask: Any = mask) -> None:
            model.packs = packs
            hidden, even = ids.masked_fill(mask, mask_id), torch.ones(int(mask.sum()), device=device)
            with torch.set_grad_enabled(gradient):
                ce = token_losses(Network(model), hidden, attended, mask, ids, even)
            if gradient:
                ce.sum().backward()
                model.zero_grad()
            losses[packs] = ce.detach()  # noqa: B023

        padding = 1 - attended.float().mean().item()
        part = f"packed batches: {shape.name}, {count} rows, {100 * padding:.0f} % padding"
        for gradient in (False, True):
            times = in_turns(
                {"padded": lambda g=gradient: read(False, g), "packed": lambda g=gradient: read(True, g)}, rounds=rounds
            )
            what = "losses with their gradient" if gradient else "losses"
            figures.append(Figure(part, f"{what}, against padded", *ratio(times["padded"], times["packed"])))
        padded = peak_memory(lambda: read(False, True))
        figures.append(Figure(part, "peak memory", peak_memory(lambda: read(True, True)) / max(1, padded)))
        apart = (losses[True] - losses[False]).abs().max() / losses[False].mean()
        figures.append(Figure(part, "largest difference of a loss, of their mean", apart.item(), unit="relative"))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    shapes = (LLADA_8B,) if on_gpu else (LAPTOP, WIDE)
    print(table([f for s in shapes for f in measure(arguments.rounds, s, "cuda" if on_gpu else "cpu")]))


if __name__ == "__main__":
    main()
