"""The loop that writes: a canvas of masks, unmasked in any order, block after block (docs/theory.md §7).

Shapes: B prompts, P prompt length, C canvas length.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from remask.models.facts import corruption_of, mask_token
from remask.models.unchanged import weights_unchanged
from remask.sampling import entropy_bound
from remask.sampling.record import Denoised, Step
from remask.sampling.schedule import Decoding
from remask.sampling.writing import Writing


@torch.no_grad()
def run(
    model: nn.Module,
    prompt_ids: Int[Tensor, "B P"],
    attention_mask: Int[Tensor, "B P"] | None,
    decoding: Decoding,
    *,
    canvas: Int[Tensor, "B C"] | None = None,
    row_seeds: Sequence[int] | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Denoised:
    """Write one canvas per prompt (left-padded, `attention_mask` 0 on the padding) and tell how it went.

    A `canvas` that is given is written where it holds masks, each row at one place or more; its other tokens stay, and
    no token that ends a text is written. The model is called in evaluation mode and left as it was found. `row_seeds`
    ties a row's random numbers to the problem instead of its place in the batch. A model whose noise replaces tokens by
    others has a loop of its own (`entropy_bound.run`), and no canvas may be given to it.
    """
    if corruption_of(model.config) == "uniform":
        if canvas is not None:
            mask_token(model.config)  # refuses
        return entropy_bound.run(model, prompt_ids, attention_mask, decoding, row_seeds=row_seeds, on_step=on_step)
    started = time.perf_counter()
    writing = Writing(model, prompt_ids, attention_mask, decoding, row_seeds, canvas)
    was_training = model.training
    model.eval()
    try:
        with weights_unchanged(model):
            while len(writing.active):
                step = writing.step()
                if on_step is not None:
                    on_step(step)
                writing.retire()
    finally:
        model.train(was_training)
    return writing.result(time.perf_counter() - started)


def denoise(
    model: nn.Module,
    prompt_ids: Int[Tensor, "B P"],
    attention_mask: Int[Tensor, "B P"] | None = None,
    *,
    row_seeds: Sequence[int] | None = None,
    **decoding: Any,
) -> Int[Tensor, "B C"]:
    """Tensors in, tensors out: the canvas written after each prompt. Keyword arguments are `Decoding`'s."""
    return run(model, prompt_ids, attention_mask, Decoding(**decoding), row_seeds=row_seeds).ids
