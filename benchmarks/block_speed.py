"""What a block model costs: its sampling, its training step, and its likelihood.

Sampling: 256 tokens in blocks of 32 after one prompt, four tokens a step, greedily, with the keys and values of
finished blocks kept, against computing them at every step, and against SDAR's own loop, which keeps them too. In
float32 all three write the same tokens. Training: an optimiser step that reads noised and clean rows, against one of a
model of full attention on the same rows. Likelihood: K = 4 coupled draws, whose clean rows are read once, against as
many that read them each time. The model is of random weights, made to attend block by block.

    python benchmarks/block_speed.py [--rounds 3]
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import peers
import torch
from likelihood_speed import canvas_of, counted, draws
from measure import Figure, in_turns, ratio, release
from sft_speed import ROWS, Stepper, adamw
from shapes import Shape, build, fitting, gsm8k_like, memory_of, print_figures

from remask.diffusion.attention import BlockCausal, Full
from remask.diffusion.blocks import in_blocks
from remask.diffusion.draw_by_draw import draw_by_draw
from remask.diffusion.likelihood import elbo_coupled_views, token_log_p
from remask.diffusion.reader import ModelReader
from remask.sampling import Decoding, run

BLOCK, TOKENS, STEPS = 32, 256, 64
WAYS = ("none", "exact")
SDAR = "SDAR's generate.py (59549b1)"
DRAWS, ANSWERS = 4, 4


def measure(rounds: int, shape: Shape, device: str) -> list[Figure]:
    shape = fitting(shape, memory_of(device))
    figures = [*sampling(rounds, shape, device), training(rounds, shape, device), *likelihood(rounds, shape, device)]
    release()
    return figures


def sampling(rounds: int, shape: Shape, device: str) -> list[Figure]:
    part = f"sampling by blocks: {shape.name}, {TOKENS} tokens in {STEPS} steps, blocks of {BLOCK}, 1 row"
    (row,) = gsm8k_like(1, shape)
    prompt = torch.tensor([row.prompt], device=device)
    model = block_model(shape, torch.bfloat16, device)
    ways = {kept: partial(run, model, prompt, None, decoding(kept)) for kept in WAYS}
    times = in_turns({**ways, SDAR: partial(by_sdar, model, prompt, TOKENS)}, rounds=rounds, warm_up=0)
    return [
        Figure(part, "exact cache, against none", *ratio(times["none"], times["exact"]), bar=3.0),
        Figure(part, f"exact cache, against {SDAR}", *ratio(times[SDAR], times["exact"]), bar=1.5),
        *equal(shape, prompt, device),
    ]


def block_model(shape: Shape, dtype: torch.dtype, device: str) -> Any:
    model = build(shape, dtype, device).eval()
    model.attention = BlockCausal(BLOCK)
    return model


def decoding(kept: Any, tokens: int = TOKENS) -> Decoding:
    return Decoding(max_new_tokens=tokens, steps=STEPS * tokens // TOKENS, cache=kept, stop_early=False)


def by_sdar(model: Any, prompt: torch.Tensor, tokens: int) -> torch.Tensor:
    with of_full_attention(model):  # it is given the masks itself
        return peers.sdar_generate(model, prompt, length=tokens, steps=STEPS * tokens // TOKENS, block=BLOCK)


@contextmanager
def of_full_attention(model: Any) -> Iterator[None]:
    before, model.attention = model.attention, Full()
    try:
        yield
    finally:
        model.attention = before


def equal(shape: Shape, prompt: torch.Tensor, device: str) -> list[Figure]:
    """The share of equal tokens, of two blocks after a prompt of whole blocks."""
    prompt = prompt[:, : prompt.shape[1] // BLOCK * BLOCK]
    model = block_model(shape, torch.float32, device)
    one, other = (run(model, prompt, None, decoding(kept, 2 * BLOCK)).ids for kept in WAYS)
    published = by_sdar(model, prompt, 2 * BLOCK)
    part = f"tokens of two blocks in float32: {shape.name}"
    return [
        Figure(part, "exact cache and none", (one == other).float().mean().item(), bar=1.0, unit="%"),
        Figure(part, f"exact cache and {SDAR}", (one == published).float().mean().item(), bar=1.0, unit="%"),
    ]


def training(rounds: int, shape: Shape, device: str) -> Figure:
    """Steps of the same rows, filled to whole blocks, by the same model in both ways."""
    rows = gsm8k_like(ROWS, shape)
    model = build(shape, device=device).train()
    optimizer = adamw(model)
    with tempfile.TemporaryDirectory() as folder:
        step = Stepper(model, rows, "sft", folder, optimizer, fill=f"block:{BLOCK}")

        def by_blocks() -> None:
            model.attention = BlockCausal(BLOCK)
            step()

        def full() -> None:
            model.attention = Full()
            step()

        times = in_turns({"blocks": by_blocks, "full": full}, rounds=max(3, rounds))
    part = f"SFT step, full weights: {shape.name}, {ROWS} rows"
    return Figure(
        part, "two streams, against one", *ratio(times["blocks"], times["full"]), bar=2.1, more_is_better=False
    )


def likelihood(rounds: int, shape: Shape, device: str) -> list[Figure]:
    """Coupled draws of answers with their gradient, draw by draw."""
    model = block_model(shape, torch.bfloat16, device)
    canvas = in_blocks(canvas_of(ANSWERS, shape, device), model.attention)
    mask_id = model.config.mask_token_id
    views = [elbo_coupled_views(canvas, noise, mask_id) for noise in draws(4 * DRAWS, canvas)]

    def together(count: int = DRAWS) -> None:
        loss = draw_by_draw(
            ModelReader(model),
            canvas,
            views[:count],
            lambda found: found.sequence.sum(),
            backward=torch.Tensor.backward,
        )
        loss.backward()
        model.zero_grad()

    def apart() -> None:
        """As many views, each with the clean rows beside it: those without gradient and those with."""
        gain = torch.ones(canvas.ids.shape, device=device)
        with torch.no_grad():
            for draw in views[: DRAWS - 1]:
                for view in draw:
                    token_log_p(ModelReader(model), canvas, [view])
        for draw in views[:DRAWS]:
            for view in draw:
                token_log_p(ModelReader(model), canvas, [view], gain).sum().backward()
        model.zero_grad()

    part = f"ELBO with its gradient, K = {DRAWS} coupled: {shape.name}, {ANSWERS} rows"
    times = in_turns({"together": together, "apart": apart}, rounds=rounds)
    memory = counted(lambda: together(4 * DRAWS)) / counted(together)
    return [
        Figure(
            part,
            "clean rows once, against each time",
            *ratio(times["together"], times["apart"]),
            bar=0.7,
            more_is_better=False,
        ),
        Figure(part, f"memory at K = {4 * DRAWS}, against K = {DRAWS}", memory, bar=1.1, more_is_better=False),
    ]


if __name__ == "__main__":
    print_figures(__doc__, 3, measure)
