"""The ELBO of answers, K = 2 coupled draws: Remask's scoring against the published form, and memory by K."""

from __future__ import annotations

from typing import Any

import textbook
import torch
from measure import Figure, Variant, in_turns, peak_memory, ratio
from shapes import LAPTOP, Shape, build, gsm8k_like

from remask.analysis.plan import Meter
from remask.diffusion import likelihood
from remask.diffusion.corruption import Canvas, exact_count_mask
from remask.diffusion.likelihood import elbo_coupled, elbo_coupled_views, unit_time
from remask.diffusion.noise import MIN_TIME, Noise
from remask.diffusion.predict import Network

ROWS = 4


def measure(rounds: int, shape: Shape = LAPTOP, device: str = "cpu") -> list[Figure]:
    model: Any = build(shape, device=device).eval()
    pad, mask_id = model.config.pad_token_id, model.config.mask_token_id
    canvas = canvas_of(ROWS, shape, pad, device)
    ids, response = canvas.ids, canvas.corruptible
    noise = draws(2, canvas)
    masks = masks_of(noise, response)
    kept: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def ours(noise: list[Noise] = noise) -> None:
        kept["ours"] = elbo_coupled(model, canvas, noise, mask_id).sequence

    @torch.no_grad()
    def plain() -> None:
        kept["plain"] = textbook.coupled_elbo(model, ids, response, masks, pad)

    ours()
    two, published = peak_memory(ours), peak_memory(plain)
    sixteen = draws(16, canvas)
    pairs = [counted(lambda i=i: ours(sixteen[i : i + 2])) for i in range(0, 16, 2)]
    flat = counted(lambda: ours(sixteen)) / max(pairs)
    ours()
    apart = ((kept["ours"] - kept["plain"]).abs() / kept["plain"].abs()).max().item()
    times = in_turns({"ours": ours, "plain": plain}, rounds=rounds, warm_up=0)
    part = f"ELBO, K = 2 coupled: {shape.name}, {ROWS} rows"
    return [
        Figure(part, "against the published form", *ratio(times["plain"], times["ours"]), bar=1.5),
        Figure(part, "largest relative difference of the value", apart, unit="%", more_is_better=False),
        Figure(part, "peak memory", two / max(1, published), more_is_better=False),
        Figure(
            part, "memory at K = 16, of the largest of its draws two at a time", flat, bar=1.1, more_is_better=False
        ),
        *(pairs_together(model.train(), canvas_of(rows, shape, pad, device), rounds) for rows in (1, ROWS)),
    ]


def masks_of(noise: list[Noise], response: torch.Tensor) -> list[torch.Tensor]:
    """What each draw masks, by the published rule, from Remask's noise."""
    n = response.sum(-1)
    return [exact_count_mask(d.u, (unit_time(d) * (n + 1)).long().clamp(max=n), response) for d in noise]


def canvas_of(rows: int, shape: Shape, pad: int, device: str) -> Canvas:
    ids, response = (
        x.to(device) for x in textbook.pad_rows([(row.prompt, row.response) for row in gsm8k_like(rows, shape)], pad)
    )
    return Canvas(ids, ids != pad, response, response)


def draws(count: int, canvas: Canvas) -> list[Noise]:
    generator, rows = torch.Generator().manual_seed(0), len(canvas.ids)
    return [
        Noise(
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
        likelihood.token_log_p(Network(model), canvas, views, gain).sum().backward()
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
