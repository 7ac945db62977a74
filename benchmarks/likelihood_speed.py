"""The ELBO of answers, K = 2 coupled draws: Remask's scoring against ESPO's (`peers.py`), and memory by K.

Four answers of 128 tokens to one prompt, so that no row is padded.
"""

from __future__ import annotations

from typing import Any

import peers
import torch
from measure import Figure, Variant, in_turns, peak_memory, ratio
from shapes import LAPTOP, Shape, answers, build

from remask.analysis.plan import Meter
from remask.diffusion import likelihood
from remask.diffusion.corruption import Canvas, exact_count_mask
from remask.diffusion.likelihood import elbo_coupled, elbo_coupled_views
from remask.diffusion.noise import Noise
from remask.diffusion.reader import ModelReader
from remask.diffusion.times import MIN_TIME

ROWS = 4
ESPO = "ESPO's trainer (fdac97d)"


def measure(rounds: int, shape: Shape = LAPTOP, device: str = "cpu") -> list[Figure]:
    model: Any = build(shape, device=device).eval()
    canvas = canvas_of(ROWS, shape, device)
    noise = draws(2, canvas)

    def ours(noise: list[Noise] = noise) -> torch.Tensor:
        return elbo(model, canvas, noise)

    def espo() -> torch.Tensor:
        return elbo_of_espo(model, canvas, noise)

    ours()
    two, published = peak_memory(ours), peak_memory(espo)
    sixteen = draws(16, canvas)
    pairs = [counted(lambda i=i: ours(sixteen[i : i + 2])) for i in range(0, 16, 2)]
    flat = counted(lambda: ours(sixteen)) / max(pairs)
    apart = relative(ours(), espo())
    times = in_turns({"ours": ours, "espo": espo}, rounds=rounds, warm_up=0)
    part = f"ELBO, K = 2 coupled: {shape.name}, {ROWS} rows"
    return [
        Figure(part, f"against {ESPO}", *ratio(times["espo"], times["ours"]), bar=1.0),
        Figure(part, f"peak memory, against {ESPO}", two / max(1, published), bar=1.0, more_is_better=False),
        Figure(part, "largest relative difference of the value in bfloat16", apart, unit="%", more_is_better=False),
        Figure(
            part, "memory at K = 16, of the largest of its draws two at a time", flat, bar=1.1, more_is_better=False
        ),
        *(pairs_together(model.train(), canvas_of(rows, shape, device), rounds) for rows in (1, ROWS)),
        value_apart(shape if device == "cpu" else LAPTOP, device),
    ]


@torch.no_grad()
def elbo(model: Any, canvas: Canvas, noise: list[Noise]) -> torch.Tensor:
    return elbo_coupled(model, canvas, noise, model.config.mask_token_id).sequence


@torch.no_grad()
def elbo_of_espo(model: Any, canvas: Canvas, noise: list[Noise]) -> torch.Tensor:
    return peers.espo_elbo(model, canvas.ids, masks_of(noise, canvas.corruptible))


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest relative difference."""
    return ((value - reference).abs() / reference.abs()).max().item()


def value_apart(shape: Shape, device: str) -> Figure:
    """With weights in float32, on the same masks."""
    model: Any = build(shape, torch.float32, device).eval()
    canvas = canvas_of(ROWS, shape, device)
    noise = draws(2, canvas)
    apart = relative(elbo(model, canvas, noise), elbo_of_espo(model, canvas, noise))
    part, what = f"ELBO in float32: {shape.name}", f"largest relative difference of the value from {ESPO}"
    return Figure(part, what, apart, bar=1e-5, more_is_better=False, unit="relative")


def masks_of(noise: list[Noise], response: torch.Tensor) -> list[torch.Tensor]:
    """[B, C]: what each draw masks of answers that end their rows, from Remask's noise."""
    n = response.sum(-1)
    masks = [exact_count_mask(d.u, (d.row_tau * (n + 1)).long().clamp(max=n), response) for d in noise]
    return [mask[:, -int(n[0]) :] for mask in masks]


def canvas_of(rows: int, shape: Shape, device: str) -> Canvas:
    ids, response = (x.to(device) for x in answers(rows, shape))
    return Canvas(ids, torch.ones_like(response), response, response)


def draws(count: int, canvas: Canvas) -> list[Noise]:
    generator, rows = torch.Generator().manual_seed(0), len(canvas.ids)
    return [
        Noise.at(
            MIN_TIME + (1 - MIN_TIME) * torch.rand(rows, generator=generator),
            torch.rand(canvas.ids.shape, generator=generator),
        ).to(canvas.ids.device)
        for _ in range(count)
    ]


def pairs_together(model: Any, canvas: Canvas, rounds: int) -> Figure:
    """A mask and its complement read, with gradient, in one forward pass and in two."""
    (noise,) = draws(1, canvas)
    views = elbo_coupled_views(canvas, noise, model.config.mask_token_id)
    gain = torch.ones(canvas.ids.shape, device=canvas.ids.device)

    def read(at_most: int) -> None:
        likelihood.ROWS_TOGETHER = at_most
        likelihood.token_log_p(ModelReader(model), canvas, views, gain).sum().backward()
        model.zero_grad()

    before = likelihood.ROWS_TOGETHER
    try:
        times = in_turns({"two": lambda: read(0), "one": lambda: read(1 << 30)}, rounds=rounds)
    finally:
        likelihood.ROWS_TOGETHER = before
    rows = len(canvas.ids)
    return Figure(
        f"a pair of views with their gradient, {rows} row{'s' * (rows > 1)}",
        "in one forward pass, against two",
        *ratio(times["two"], times["one"]),
    )


def counted(run: Variant) -> int:
    """Bytes of tensors at the highest; what the process holds moves by more than this from run to run."""
    with Meter() as meter:
        run()
    return meter.peak
