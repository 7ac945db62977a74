"""Where a batch's tokens stand while it is written: prompts, the canvas after them, and its blocks.

Under full attention the canvas begins where the prompts end, and its blocks are the sampler's own. A block model has
blocks of its own, which may begin before a prompt's end: there the canvas begins at the last border that is not after
it, a row's prompt being continued in the canvas, and the last block is whole. Rows are moved so that their borders
stand in the same columns.

Shapes: B rows, P prompt length, C tokens of an answer, L columns, W of them the canvas.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from remask.diffusion.attention import Attention, BlockCausal
from remask.errors import UserError
from remask.sampling.schedule import ENTROPY_BOUND, Decoding


def fitted(decoding: Decoding, attention: Attention) -> Decoding:
    """The settings as they are for a model that attends so: a block model's blocks are the sampler's, and its cache is
    exact unless something else was asked for. Raises UserError for what it cannot do.
    """
    if said := [name for name in ENTROPY_BOUND if decoding.says(name)]:
        raise UserError(
            f"{', '.join(said)}: for models that replace tokens by others (DiffusionGemma), and this one masks them",
            mend="leave them out; threshold reveals every token that is sure enough",
        )
    if not isinstance(attention, BlockCausal):
        block = decoding.block_length
        if block is not None and block > decoding.max_new_tokens:
            raise UserError(
                f"block_length = {block} is longer than the canvas of {decoding.max_new_tokens}",
                mend="lower block_length or raise max_new_tokens",
            )
        if decoding.cache == "exact":
            raise UserError(
                "cache = exact: in a model of full attention every written token changes all keys and values",
                mend="give none, or the approximate prefix or dual",
            )
        return decoding
    return fitted_to_blocks(decoding, attention.block)


def fitted_to_blocks(decoding: Decoding, length: int) -> Decoding:
    """Return the settings as they are for a model that writes in blocks of so many tokens."""
    block = decoding.block_length
    if block not in (None, length):
        raise UserError(
            f"block_length = {block}, but this model writes in blocks of {length} tokens",
            mend=f"leave block_length out, or give {length}",
        )
    if decoding.cache in ("prefix", "dual"):
        raise UserError(
            f"cache = {decoding.cache}: this is for full attention, and this model writes in blocks",
            mend="give exact, which is as fast and changes no token, or none",
        )
    cache = decoding.cache or ("none" if decoding.guidance else "exact")
    return replace(decoding, block_length=length, cache=cache)


def canvas_after(prompt: int, new_tokens: int, attention: Attention) -> int:
    """Tokens that are written after so many of a prompt: a block model's last block is written whole."""
    if not isinstance(attention, BlockCausal):
        return new_tokens
    shared = prompt % attention.block if attention.alignment == "row" else 0
    return -(-(shared + new_tokens) // attention.block) * attention.block - shared


def longest_prompt(positions: int, new_tokens: int, attention: Attention) -> int:
    """Tokens of the longest prompt that leaves room for its canvas among so many positions; below 1 where none does."""
    if not isinstance(attention, BlockCausal):
        return positions - new_tokens
    if attention.alignment == "row":  # prompt and answer end in one of the whole blocks that there are positions for
        return positions // attention.block * attention.block - new_tokens
    return positions - canvas_after(0, new_tokens, attention)


@dataclass(frozen=True)
class Layout:
    """Rows and the places that matter in them. ids, attended [B, L]: rows with their canvas, which begins at column
    `start`. masked [B, W]: what is to be written. prompt [B, W]: what of the canvas is the prompt's. answer [B, C]: the
    places of each row's answer on the canvas. block_of [W]: the number of each place's block. steps: how many each
    block is to take. width: the tokens of a block, of which the last one may have fewer.
    """

    ids: Int[Tensor, "B L"]
    attended: Int[Tensor, "B L"]
    start: int
    masked: Bool[Tensor, "B W"]
    prompt: Bool[Tensor, "B W"]
    answer: Int[Tensor, "B C"]
    block_of: Int[Tensor, "W"]
    steps: Int[Tensor, "n"]
    width: int

    def of_answer(self, found: Tensor, rows: Int[Tensor, "b"]) -> Tensor:
        """Return [b, C]: of something [b, W] said of these rows' canvases, what is said of their answers."""
        return found.gather(1, self.answer[rows])


def laid_out(
    prompt_ids: Int[Tensor, "B P"],
    attention_mask: Int[Tensor, "B P"],
    canvas: Int[Tensor, "B C"] | None,
    decoding: Decoding,
    attention: Attention,
    mask_id: int,
) -> Layout:
    """Left-padded prompts with a canvas of masks after each, or with the one that is given."""
    B, P = prompt_ids.shape
    C, device = decoding.max_new_tokens, prompt_ids.device
    tokens = prompt_ids.new_full((B, C), mask_id) if canvas is None else canvas
    ids = torch.cat([prompt_ids, tokens], dim=1)
    attended = torch.cat([attention_mask, attention_mask.new_ones(B, C)], dim=1)
    if isinstance(attention, BlockCausal):
        return _on_the_grid(ids, attended, P, decoding, attention, mask_id, open_end=canvas is None)
    masked = tokens == mask_id
    block_of = torch.tensor([n for n, block in enumerate(decoding.blocks) for _ in block], device=device)
    return Layout(
        ids,
        attended,
        P,
        masked,
        torch.zeros_like(masked),
        torch.arange(C, device=device).expand(B, -1),
        block_of,
        torch.tensor(decoding.steps_per_block, device=device),
        decoding.block_length or C,
    )


def _on_the_grid(
    ids: Int[Tensor, "B L"],
    attended: Int[Tensor, "B L"],
    prompt_length: int,
    decoding: Decoding,
    attention: BlockCausal,
    mask_id: int,
    *,
    open_end: bool,
) -> Layout:
    """Rows moved so that each column is in the same block of all of them, with masks up to a last block's end; where
    the text is given (not `open_end`) a row ends with it. How wide the canvas is follows from the settings alone.
    """
    block, C, device = attention.block, decoding.max_new_tokens, ids.device
    lengths = attended[:, :prompt_length].sum(-1)
    shared = lengths % block if attention.alignment == "row" else torch.zeros_like(lengths)
    start = int(-(-(lengths - shared).amax() // block)) * block
    most_shared = block - 1 if attention.alignment == "row" else 0
    W = -(-(most_shared + C) // block) * block
    columns = torch.arange(start + W, device=device)
    source = columns - (start + shared - prompt_length)[:, None]
    end = ids.shape[1]
    inside = source.clamp(0, end - 1)
    moved = ids.gather(1, inside).masked_fill((source < 0) | (source >= end), mask_id)
    seen = attended.gather(1, inside).masked_fill(source < 0, 0).masked_fill(source >= end, int(open_end))
    canvas = source[:, start:]
    last = -(-(shared + C) // block) * block
    masked = (moved[:, start:] == mask_id) & (canvas >= prompt_length) & (columns[:W] < last[:, None])
    return Layout(
        moved,
        seen,
        start,
        masked if open_end else masked & (canvas < end),
        canvas < prompt_length,
        shared[:, None] + torch.arange(C, device=device),
        columns[:W] // block,
        torch.tensor(_steps_of_whole_blocks(decoding, block, W // block), device=device),
        block,
    )


def _steps_of_whole_blocks(decoding: Decoding, block: int, blocks: int) -> list[int]:
    """Steps of so many blocks where C tokens are to take `decoding.steps`: what is left over goes to the first blocks,
    and a block more than C tokens fill, which answers have whose borders lie otherwise, takes as many as the last.
    """
    steps, C = decoding.steps or decoding.max_new_tokens, decoding.max_new_tokens
    share, needed = max(1, steps * block // C), -(-C // block)
    extra = max(0, steps - share * needed)
    return [share + (number < extra) for number in range(blocks)]


FIRST, NOBODY = -1, torch.iinfo(torch.long).max
"""Turns: of a block's first place where that is written before all others, and where no place is masked."""


def turns(block_of: Int[Tensor, "W"], width: int, part: int | None, *, first_alone: bool) -> Int[Tensor, "W"]:
    """Places of a block that have the same turn may be written in any order, and those of a lower one before them: its
    parts of so many tokens.

    With `first_alone` the first place is before all others, and final: in a shifted block model the output that
    predicts it is of the block before, of which nothing that is written later says more.
    """
    places = torch.arange(len(block_of), device=block_of.device) - block_of * width
    found = places // (part or width)
    return torch.where(places == 0, FIRST, found) if first_alone else found


def at_turn(masked: Bool[Tensor, "b W"], turn_of: Int[Tensor, "W"]) -> Bool[Tensor, "b W"]:
    """Return of each row the places whose turn it is: those of the lowest that has one of these masks, or, where there
    are none, all that are not final.
    """
    turn = torch.where(masked, turn_of, NOBODY).amin(-1, keepdim=True)
    return torch.where(turn == NOBODY, turn_of != FIRST, turn_of == turn)
