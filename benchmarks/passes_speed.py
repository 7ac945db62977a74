"""What a forward pass leaves out: padding (`remask/models/packing.py`), and the last layer's feed-forward part where
nothing is asked for (`remask/models/last_layer.py`). Each against the same pass with it.

    python benchmarks/passes_speed.py [--rounds 7]

GSM8K-like rows, half of the answer masked: its losses, and with their gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from measure import Figure, in_turns, peak_memory, ratio
from shapes import Shape, build, gsm8k_like, print_figures

from remask.data.collate import lay_out
from remask.diffusion.corruption import Canvas
from remask.diffusion.reader import ModelReader


@dataclass(frozen=True)
class Pass:
    """The losses of a batch's masked tokens, computed with what `model.packs` and `model.narrows` leave out."""

    model: Any
    ids: torch.Tensor
    attended: torch.Tensor
    mask: torch.Tensor

    def read(self, gradient: bool) -> torch.Tensor:
        hidden = self.ids.masked_fill(self.mask, self.model.config.mask_token_id)
        even = torch.ones(int(self.mask.sum()), device=self.ids.device)
        with torch.set_grad_enabled(gradient):
            canvas = Canvas(self.ids, self.attended, self.mask, self.mask)
            ce = ModelReader(self.model).losses(hidden, canvas, self.mask, even)
        if gradient:
            ce.sum().backward()
            self.model.zero_grad()
        return ce.detach()

    def compare(self, part: str, attribute: str, rounds: int) -> list[Figure]:
        """With the attribute true against false."""
        before = getattr(self.model, attribute)

        def run(on: bool, gradient: bool) -> torch.Tensor:
            setattr(self.model, attribute, on)
            return self.read(gradient)

        figures = []
        for gradient, what in ((False, "losses"), (True, "losses with their gradient")):
            times = in_turns({str(on): lambda on=on, g=gradient: run(on, g) for on in (False, True)}, rounds=rounds)
            figures.append(Figure(part, what, *ratio(times["False"], times["True"])))
        memory = {on: peak_memory(lambda on=on: run(on, True)) for on in (False, True)}
        figures.append(Figure(part, "peak memory", memory[True] / max(1, memory[False])))
        with_it, without = run(False, False), run(True, False)
        apart = ((with_it - without).abs().max() / with_it.mean()).item()
        figures.append(Figure(part, "largest difference of a loss, of their mean", apart, unit="relative"))
        setattr(self.model, attribute, before)
        return figures


def measure(rounds: int, shape: Shape, device: str = "cpu", counts: tuple[int, ...] = (2, 8, 16)) -> list[Figure]:
    model: Any = build(shape, device=device)
    figures = []
    for count in counts:
        rows, pad = gsm8k_like(count, shape), model.config.pad_token_id
        ids, attended, response = (x.to(device) for x in lay_out(rows, [len(row.response) for row in rows], pad))
        mask = (torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)).to(device) < 0.5) & response
        batch, padding = Pass(model, ids, attended, mask), 1 - attended.float().mean().item()
        said = f"{shape.name}, {count} rows"
        figures += batch.compare(f"without padding: {said}, {100 * padding:.0f} % padding", "packs", rounds)
        asked = mask.sum().item() / attended.sum().item()
        figures += batch.compare(
            f"last layer where asked for: {said}, {100 * asked:.0f} % of tokens", "narrows", rounds
        )
    return figures


if __name__ == "__main__":
    print_figures(__doc__, 7, measure)
