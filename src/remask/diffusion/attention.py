"""Which token may look at which: what a forward pass reads, and one rule for training and for sampling.

A model of full attention reads a row as it stands, every token looking at every other. A block model (arXiv 2503.09573)
writes a row block after block: a token looks at all of its own block and at the finished, clean blocks before it. In
training all blocks are at work at once: the noised row and the clean row are laid side by side as two streams, and the
noised tokens of a block look at the clean tokens of the blocks before it. In sampling one block is at work: what is
finished is the clean stream, the block at work the noised one. Both are told apart by `may_look` alone.

Clean tokens look at all of their own block (SDAR, LLaDA2, Fast-dLLM v2), or, as in a causal model, at no later token
(I-DLM, Nemotron; here `block:4:causal`). Then what a converted causal model says of finished text stays as it was, and
with a shift a block's first token is predicted by it: in blocks of one token the model is the causal one.

Shapes: B rows, L length of a row, S tokens that a pass reads of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from remask.errors import UserError

PADDING, CLEAN, NOISED = -1, 0, 1
"""The stream of each kind of token. A pass may have several noised streams, numbered from 1: none of them attends to
another."""
Alignment = Literal["row", "answer"]
"""The choice of where a row's first block begins: at the row's first token (`row`), or, in whole blocks counted from
there, at its answer's (`answer`)."""


FORMS: tuple[list[str], ...] = ([], ["answer"], ["causal"], ["answer", "causal"])
"""What may follow the tokens of a block where a config names the attention."""


@dataclass(frozen=True)
class Reading:
    """A reading holds what a forward pass reads, and where each token stands.

    ids: the tokens. places: each token's number in its row, from 0, by which its position is encoded. block: the number
    of its block; where clean tokens look at no later one, a clean token's own place, and of a noised one the place at
    which its block begins. stream: `PADDING`, `CLEAN`, or the number of a noised stream. before: the number, among the
    S tokens, of the one whose output predicts it in a shifted model (None: the token before it, of a row's first one
    itself).
    """

    ids: Int[Tensor, "B S"]
    places: Int[Tensor, "B S"]
    block: Int[Tensor, "B S"]
    stream: Int[Tensor, "B S"]
    before: Int[Tensor, "B S"] | None = None


def may_look(reading: Reading, at: Int[Tensor, "B q"] | None = None) -> Bool[Tensor, "B _ S"]:
    """Return, for each pair of tokens, whether the one on the second axis may attend to the one on the third. The
    second axis has the tokens whose numbers in the reading `at` gives, or all of them.

    A clean token attends to the clean tokens of the same block and of earlier ones. A noised token attends to the
    tokens of the same block in the same stream, and to the clean tokens of earlier blocks. No token attends to padding;
    padding attends to itself alone, as an attention over nothing is no number.
    """
    number = torch.arange(reading.ids.shape[1], device=reading.ids.device).expand_as(reading.ids)
    to, to_block, to_number = (of_all[:, None, :] for of_all in (reading.stream, reading.block, number))
    of, of_block, of_number = (
        (of_all if at is None else of_all.gather(1, at))[:, :, None]
        for of_all in (reading.stream, reading.block, number)
    )
    to_clean = torch.where(of == CLEAN, to_block <= of_block, to_block < of_block)
    within = (of == to) & (to_block == of_block)
    allowed = ((to == CLEAN) & to_clean) | within
    allowed &= (of != PADDING) & (to != PADDING)
    return allowed | ((to_number == of_number) & (of == PADDING))


@runtime_checkable
class Attention(Protocol):
    """An attention is a fact of a checkpoint: it says which tokens attend to which."""

    def training(
        self,
        noised: Int[Tensor, "B L"],
        clean: Int[Tensor, "B L"],
        attended: Bool[Tensor, "B L"],
        answer: Bool[Tensor, "B L"],
    ) -> Reading:
        """Return the reading of noised rows beside the clean rows. The first L of its tokens are the noised rows."""

    def inference(
        self,
        ids: Int[Tensor, "B L"],
        attended: Bool[Tensor, "B L"],
        answer: Bool[Tensor, "B L"],
        asked: Bool[Tensor, "B L"] | None,
    ) -> Reading:
        """Return the reading of rows of which each is finished before the block of its first place in `asked` (None,
        or of rows without such a place: all of it is).
        """


@dataclass(frozen=True)
class Full:
    """Every token attends to every other (LLaDA, Dream): there is one block and one stream, and the clean row is not
    read.
    """

    def training(self, noised: Tensor, clean: Tensor, attended: Tensor, answer: Tensor) -> Reading:
        """Return the noised rows alone, as one block."""
        return self.inference(noised, attended, answer, None)

    def inference(self, ids: Tensor, attended: Tensor, answer: Tensor, asked: Tensor | None) -> Reading:
        """Return the rows as one block, wherever the work is."""
        places = counted(attended)
        return Reading(ids, places, torch.zeros_like(places), attended.long() + PADDING)


@dataclass(frozen=True)
class BlockCausal:
    """Tokens attend to their block and to those before it (SDAR, LLaDA2, Fast-dLLM v2, BD3-LM).

    block: tokens of a block; 1 makes a model that writes from left to right. alignment: `row` counts blocks from the
    row's first token, so that a prompt's last tokens may share the answer's first block; `answer` lets a block begin
    with the answer. causal: whether a clean token attends to no later one, not even of its own block.
    """

    block: int
    alignment: Alignment = "row"
    causal: bool = False

    def __post_init__(self) -> None:
        if self.block < 1:
            raise UserError(f"attention: blocks of {self.block} tokens", mend="give 1 token or more")

    def blocks(self, attended: Bool[Tensor, "B L"], answer: Bool[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """Return the number of each token's block. It may be negative in a prompt before an answer that
        begins a block.
        """
        return (counted(attended) - self._start(attended, answer)).div(self.block, rounding_mode="floor").long()

    def numbers(
        self, attended: Bool[Tensor, "B L"], answer: Bool[Tensor, "B L"]
    ) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]:
        """Return by what number `may_look` knows each token's block, where the token is clean and where it is
        noised (`Reading.block`).
        """
        block = self.blocks(attended, answer)
        if not self.causal:
            return block, block
        return counted(attended), block * self.block + self._start(attended, answer)

    def _start(self, attended: Tensor, answer: Tensor) -> Tensor:
        """The place at which block 0 begins, [B, 1]."""
        if self.alignment == "row":
            return attended.new_zeros(len(attended), 1, dtype=torch.long)
        first = counted(attended).gather(1, answer.long().argmax(-1, keepdim=True))
        return torch.where(answer.any(-1, keepdim=True), first, attended.sum(-1, keepdim=True))

    def training(self, noised: Tensor, clean: Tensor, attended: Tensor, answer: Tensor) -> Reading:
        """Return two streams: the noised rows, and the clean ones behind them."""
        places, (of_clean, of_noised) = counted(attended), self.numbers(attended, answer)
        streams = [torch.where(attended, stream, PADDING) for stream in (NOISED, CLEAN)]
        pairs = ((noised, clean), (places, places), (of_noised, of_clean), streams)
        ids, places_of_both, number, stream = (torch.cat(list(pair), dim=1) for pair in pairs)
        before = self._before(attended, of_noised == places) if self.causal else None
        return Reading(ids, places_of_both, number, stream, before)

    @staticmethod
    def _before(attended: Tensor, begins: Tensor) -> Tensor:
        """The token that predicts each one of two streams: of one that begins a noised block the clean one before it,
        which has not read that block's noise.
        """
        length = attended.shape[1]
        number = torch.arange(length, device=attended.device).expand_as(attended)
        follows = attended.clone()
        follows[:, 0] = False
        follows[:, 1:] &= attended[:, :-1]
        clean = number + length - follows.long()
        return torch.cat([torch.where(follows & begins, clean, number - follows.long()), clean], dim=1)

    def inference(self, ids: Tensor, attended: Tensor, answer: Tensor, asked: Tensor | None) -> Reading:
        """Return one stream: finished blocks are clean, and tokens of the block at work and behind it noised."""
        of_clean, of_noised = self.numbers(attended, answer)
        stream, number = torch.full_like(ids, CLEAN), of_clean
        if self.causal and asked is not None:
            last = torch.iinfo(of_noised.dtype).max
            finished = of_noised < torch.where(asked, of_noised, last).amin(-1, keepdim=True)
            stream = torch.where(finished, CLEAN, NOISED)
            number = torch.where(finished, of_clean, of_noised)
        return Reading(ids, counted(attended), number, torch.where(attended, stream, PADDING))


def counted(attended: Bool[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """Return each token's number among its row's attended ones, from 0."""
    return (attended.long().cumsum(-1) - 1).clamp(min=0)


def named(text: str) -> Attention:
    """Return the attention that a config names: `full`, `block:32`, `block:32:answer`, and either of the latter with
    `:causal`. Raises UserError for any other text.
    """
    kind, *rest = text.split(":")
    if kind == "full" and not rest:
        return Full()
    if kind == "block" and rest and rest[0].isdecimal() and rest[1:] in FORMS:
        return BlockCausal(int(rest[0]), "answer" if "answer" in rest else "row", "causal" in rest)
    raise UserError(
        f"unknown attention {text!r}",
        mend="give full, block:<tokens of a block> or block:<tokens>:answer; the last two may end with :causal",
    )
