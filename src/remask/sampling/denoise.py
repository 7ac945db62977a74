"""The loop that writes: a canvas of masks, unmasked in any order, block after block (methods §6).

Shapes: B prompts, P prompt length, C canvas length, N masked positions of the current blocks, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from remask.diffusion.corruption import lowest
from remask.errors import UserError
from remask.models.facts import first_eos, stop_token_ids
from remask.sampling.selection import RevealRule, propose


@dataclass(frozen=True)
class Decoding:
    """How an answer is written. Every score is reported with these beside it.

    max_new_tokens: canvas length C. steps: forwards for the whole canvas (default C, one token a step), shared out over
    blocks. block_length: blocks are finished left to right (default C: fully any-order). reveal: which proposals are
    kept first. threshold: reveal every proposal whose score reaches it (at least one) instead of a fixed number.
    temperature 0 takes the likeliest token; top_k and top_p restrict sampling. stop_early: a row whose text can no
    longer change stops (the rest is EOS).
    """

    max_new_tokens: int = 128
    steps: int | None = None
    block_length: int | None = None
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    reveal: RevealRule = "confidence"
    threshold: float | None = None
    stop_early: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "steps", "block_length", "top_k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} = {value}", mend="it is 1 or more")
        if self.seed < 0:
            raise UserError(f"seed = {self.seed}", mend="it is 0 or more")
        if self.reveal not in get_args(RevealRule):
            raise UserError(f"unknown reveal {self.reveal!r}", mend=f"the rules are {', '.join(get_args(RevealRule))}")
        if not np.isfinite(self.temperature) or self.temperature < 0:
            raise UserError(f"temperature = {self.temperature}", mend="it is 0 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p = {self.top_p}", mend="it lies in (0, 1]")
        if self.block_length is not None and self.block_length > self.max_new_tokens:
            raise UserError(
                f"block_length = {self.block_length} is longer than the canvas of {self.max_new_tokens}",
                mend="lower block_length or raise max_new_tokens",
            )
        if self.threshold is None and self.steps is not None and self.steps < len(self.blocks):
            raise UserError(
                f"{self.steps} steps cannot finish {len(self.blocks)} blocks", mend="raise steps or block_length"
            )
        if self.threshold is not None and self.reveal in ("random", "left_to_right"):
            raise UserError(f"a threshold has no meaning for reveal = {self.reveal!r}", mend="use a model's score")

    @property
    def blocks(self) -> list[range]:
        """The canvas places of each block; the last one may be shorter."""
        length = self.block_length or self.max_new_tokens
        return [range(s, min(s + length, self.max_new_tokens)) for s in range(0, self.max_new_tokens, length)]

    @property
    def steps_per_block(self) -> list[int]:
        """Steps shared out by the blocks' lengths, what is left over going to the first blocks."""
        steps = self.steps or self.max_new_tokens
        shares = [max(1, steps * len(block) // self.max_new_tokens) for block in self.blocks]
        extra = steps - sum(shares)
        return [share + (i < extra) for i, share in enumerate(shares)]

    def described(self) -> dict[str, Any]:
        """Every setting with its defaults filled in, as reported beside a score."""
        steps = None if self.threshold is not None else self.steps or self.max_new_tokens
        return asdict(replace(self, block_length=self.block_length or self.max_new_tokens)) | {"steps": steps}


@dataclass(frozen=True)
class Step:
    """What one step revealed, for whoever watches: canvases of the rows still written, and where tokens are new."""

    number: int
    rows: Int[Tensor, "b"]
    canvas: Int[Tensor, "b C"]
    revealed: Bool[Tensor, "b C"]


@dataclass(frozen=True)
class Denoised:
    """ids [B, C]; revealed_at [B, C], the step that wrote each token (−1: filled after the row stopped); confidence
    [B, C], p(x̂) when revealed (NaN where filled); forwards and row_forwards, model calls and rows in them; seconds.
    """

    ids: Int[Tensor, "B C"]
    revealed_at: Int[Tensor, "B C"]
    confidence: Float[Tensor, "B C"]
    forwards: int
    row_forwards: int
    seconds: float


class RowNoise:
    """Random numbers for a row from its own generator: the same alone and in any batch."""

    def __init__(self, seed: int, row_seeds: Sequence[int], device: torch.device) -> None:
        self.device = device
        self.generators = []
        for row_seed in row_seeds:
            state = int(np.random.SeedSequence([seed, row_seed]).generate_state(1, np.uint64)[0] >> 1)
            self.generators.append(torch.Generator(device).manual_seed(state))

    def gumbel(self, rows: Sequence[int], vocabulary: int) -> Float[Tensor, "n V"]:
        """One row of Gumbel noise per position; `rows` names the row each position belongs to, in order."""
        parts, start = [], 0
        while start < len(rows):
            stop = start
            while stop < len(rows) and rows[stop] == rows[start]:
                stop += 1
            shape = (stop - start, vocabulary)
            parts.append(torch.empty(shape, device=self.device).exponential_(generator=self.generators[rows[start]]))
            start = stop
        return -torch.cat(parts).clamp(min=1e-30).log()

    def uniform(self, rows: Sequence[int], length: int) -> Float[Tensor, "b C"]:
        return torch.stack([torch.rand(length, device=self.device, generator=self.generators[row]) for row in rows])


@torch.no_grad()
def run(
    model: nn.Module,
    prompt_ids: Int[Tensor, "B P"],
    attention_mask: Int[Tensor, "B P"] | None,
    decoding: Decoding,
    *,
    row_seeds: Sequence[int] | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Denoised:
    """Write one canvas per prompt (left-padded, `attention_mask` 0 on the padding) and tell how it went.

    The model is called in evaluation mode and left as it was found. `row_seeds` ties a row's random numbers to the
    problem instead of its place in the batch.
    """
    was_training = model.training
    model.eval()
    try:
        return _run(
            model,
            prompt_ids,
            attention_mask,
            decoding,
            range(len(prompt_ids)) if row_seeds is None else row_seeds,
            on_step,
        )
    finally:
        model.train(was_training)


def _run(
    model: nn.Module,
    prompt_ids: Tensor,
    attention_mask: Tensor | None,
    decoding: Decoding,
    row_seeds: Sequence[int],
    on_step: Callable[[Step], None] | None,
) -> Denoised:
    started = time.perf_counter()
    config: Any = model.config
    device = prompt_ids.device
    batch, prompt_length = prompt_ids.shape
    canvas_length = decoding.max_new_tokens
    blocks, quotas = decoding.blocks, decoding.steps_per_block
    stop_ids = torch.tensor(stop_token_ids(config), device=device)
    fill_id = first_eos(config)
    noise = RowNoise(decoding.seed, row_seeds, device)

    prompt_mask = torch.ones_like(prompt_ids) if attention_mask is None else attention_mask
    attended = torch.cat([prompt_mask, prompt_mask.new_ones(batch, canvas_length)], dim=1)
    ids = torch.cat([prompt_ids, prompt_ids.new_full((batch, canvas_length), config.mask_token_id)], dim=1)
    masked = torch.ones(batch, canvas_length, dtype=torch.bool, device=device)
    revealed_at = torch.full((batch, canvas_length), -1, device=device)
    confidence = torch.full((batch, canvas_length), torch.nan, dtype=torch.float64, device=device)
    block_of = torch.zeros(canvas_length, dtype=torch.long, device=device)
    for number, block in enumerate(blocks):
        block_of[block.start : block.stop] = number
    quota = torch.tensor(quotas, device=device)
    steps_in_block = torch.zeros(batch, dtype=torch.long, device=device)
    current = torch.zeros(batch, dtype=torch.long, device=device)
    active = torch.arange(batch, device=device)
    forwards = row_forwards = 0

    while len(active):
        here = masked[active] & (block_of == current[active, None])
        positions = torch.cat([here.new_zeros(len(active), prompt_length), here], dim=1)
        logits = model(input_ids=ids[active], attention_mask=attended[active], positions=positions).logits
        logits[:, config.mask_token_id] = -torch.inf  # a mask is never an answer
        forwards, row_forwards = forwards + 1, row_forwards + len(active)

        owners = active[here.nonzero()[:, 0]].tolist()
        proposal = propose(
            logits,
            decoding.reveal,
            temperature=decoding.temperature,
            top_k=decoding.top_k,
            top_p=decoding.top_p,
            counts=here.sum(-1).tolist(),
            gumbel=lambda start, stop, owners=owners, size=logits.shape[-1]: noise.gumbel(owners[start:stop], size),  # type: ignore[misc]
        )
        if proposal.confidence.isnan().any():
            raise UserError("the model's predictions are not finite", mend="use a checkpoint whose weights are whole")
        score = torch.full(here.shape, -torch.inf, dtype=torch.float64, device=device)
        score[here] = proposal.score
        if decoding.reveal == "random":
            score = noise.uniform(active.tolist(), canvas_length).double()
        elif decoding.reveal == "left_to_right":
            score = -torch.arange(canvas_length, dtype=torch.float64, device=device).expand(here.shape)

        if decoding.threshold is not None:
            chosen = (here & (score >= decoding.threshold)) | lowest(-score, here.any(-1).long(), here)
        else:
            left = (quota[current[active]] - steps_in_block[active]).clamp(min=1)
            chosen = lowest(-score, -(-here.sum(-1) // left), here)

        token = torch.zeros(here.shape, dtype=ids.dtype, device=device)
        token[here] = proposal.token
        sure = torch.zeros(here.shape, dtype=torch.float64, device=device)
        sure[here] = proposal.confidence
        canvas = ids[active, prompt_length:]
        ids[active, prompt_length:] = torch.where(chosen, token, canvas)
        masked[active] &= ~chosen
        revealed_at[active] = torch.where(chosen, forwards - 1, revealed_at[active])
        confidence[active] = torch.where(chosen, sure, confidence[active])
        if on_step is not None:
            on_step(Step(forwards - 1, active, ids[active, prompt_length:], chosen))

        steps_in_block[active] += 1
        block_done = ~(masked[active] & (block_of == current[active, None])).any(-1)
        steps_in_block[active] = torch.where(block_done, 0, steps_in_block[active])
        current[active] += block_done.long()
        finished = current[active] >= len(blocks)
        if decoding.stop_early:
            finished = finished | text_is_final(ids[active, prompt_length:], masked[active], stop_ids)
        active = active[~finished]

    canvas = torch.where(masked, fill_id, ids[:, prompt_length:])
    return Denoised(canvas, revealed_at, confidence.float(), forwards, row_forwards, time.perf_counter() - started)


def text_is_final(
    canvas: Int[Tensor, "b C"], masked: Bool[Tensor, "b C"], stop_ids: Int[Tensor, "s"]
) -> Bool[Tensor, "b"]:
    """Rows with a stop token before which everything is revealed: nothing written later can change their text."""
    stops = torch.isin(canvas, stop_ids) & ~masked
    revealed_before = masked.cumsum(-1) == 0
    return (stops & revealed_before).any(-1)


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
