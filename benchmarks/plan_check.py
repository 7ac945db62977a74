"""`remask plan`'s count of a step's memory against what the step takes."""

from __future__ import annotations

from typing import Any

import torch
from measure import Figure, peak_memory
from shapes import LAPTOP, WIDE, Shape, build, fitting, memory_of

from remask.analysis.plan import Meter, need
from remask.diffusion.head import two_pass_cross_entropy

ROWS, LENGTH, SCORED = 4, 256, 400


def measure(rounds: int, shapes: tuple[Shape, ...] = (LAPTOP, WIDE), device: str = "cpu") -> list[Figure]:
    """What the step's tensors take at the highest, and resident memory on CPU (with what the allocator and the kernels
    keep for themselves), allocated memory on CUDA; above weights: forward and backward of a step, without optimiser.
    """
    figures = []
    for shape in (fitting(shape, memory_of(device)) for shape in shapes):
        for dtype in (torch.bfloat16, torch.float32):
            planned = need(
                lambda shape=shape, dtype=dtype: build(shape, dtype, "meta").requires_grad_(True),
                rows=ROWS,
                length=LENGTH,
                scored=SCORED,
            )
            counted = planned.activations + planned.gradients + planned.working
            model: Any = build(shape, dtype, device).requires_grad_(True).train()
            ids = torch.randint(shape.vocabulary - 3, (ROWS, LENGTH), device=device)

            def step(model: Any = model, ids: torch.Tensor = ids) -> None:
                hidden = model.hidden_at(torch.arange(SCORED, device=device), input_ids=ids)
                two_pass_cross_entropy(model.lm_head, hidden, ids.flatten()[:SCORED]).sum().backward()
                model.zero_grad()

            with Meter() as meter:
                step()
            taken = sorted(peak_memory(step) for _ in range(rounds))
            kind = str(dtype).removeprefix("torch.")
            part = "memory taken, of that which `remask plan` counts"
            tensors = Figure(part, f"{shape.name}, {kind}: tensors", meter.peak / counted, more_is_better=False)
            figures.append(tensors)
            figures.append(
                Figure(
                    part,
                    f"{shape.name}, {kind}: {'resident' if device == 'cpu' else 'allocated'}",
                    taken[len(taken) // 2] / counted,
                    taken[0] / counted,
                    taken[-1] / counted,
                    more_is_better=False,
                    detail=f"{counted / 2**20:,.0f} MiB counted",
                )
            )
    return figures
