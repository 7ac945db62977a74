"""A sampler's rule: for which places it wants proposals, which of them it writes, and what it masks again.

`Reveal` is the rule of the named settings: it writes the best proposals, and what is written stays, unless there is an
`edit_threshold`. A rule of one's own
(`decoding.rule: file.py:Class`) may do otherwise: `Class(decoding)` with the two methods of `Rule`.

Shapes: b rows at work, C canvas length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from remask.diffusion.corruption import lowest
from remask.own_code import load_class
from remask.sampling.schedule import Decoding


@dataclass(frozen=True)
class State:
    """The state that a rule may look at before a step.

    tokens: the canvases. masked: places that hold the mask. window: places of the block at work that may be written
    (not those that were given). written_at: the step that wrote a token, −1 where none did. confidence: the probability
    of a token when it was written (NaN where none was). step: steps that the row has had in this block. steps: how many
    the block is to take. steps_unmasked: those that it has had since no place of it was masked any more. count: how
    many tokens the schedule would reveal now; None under a threshold. stops: what ends a text. uniform: makes numbers
    in [0, 1) of each row's own for this step.
    """

    tokens: Int[Tensor, "b C"]
    masked: Bool[Tensor, "b C"]
    window: Bool[Tensor, "b C"]
    written_at: Int[Tensor, "b C"]
    confidence: Float[Tensor, "b C"]
    step: Int[Tensor, "b"]
    steps: Int[Tensor, "b"]
    steps_unmasked: Int[Tensor, "b"]
    count: Int[Tensor, "b"] | None
    stops: Int[Tensor, "s"]
    uniform: Callable[[], Float[Tensor, "b C"]]


class Proposals(NamedTuple):
    """Laid on the canvas, where they were asked for: a token, the probability the model gives it, and its score."""

    token: Int[Tensor, "b C"]
    confidence: Float[Tensor, "b C"]
    score: Float[Tensor, "b C"]


class Choice(NamedTuple):
    """A rule's choice: where proposals are written, where tokens are masked again (None: nowhere), and in which rows
    the block at work is to have another step even if no place of it is masked (None: in none).
    """

    write: Bool[Tensor, "b C"]
    mask_again: Bool[Tensor, "b C"] | None = None
    goes_on: Bool[Tensor, "b"] | None = None


@runtime_checkable
class Rule(Protocol):
    """Decides a step. A block is finished when no place of it is masked after a step that does not say it goes on."""

    def asked(self, state: State) -> Bool[Tensor, "b C"]:
        """The places of the window for which a proposal is wanted: one or more in every row."""

    def choose(self, state: State, proposals: Proposals) -> Choice:
        """Return what is written of it and what is masked again. No place is in both."""


STOP_LAST = 1e6
"""Taken from the score of a token that ends a text: more than any two scores differ by."""


@dataclass(frozen=True)
class Reveal:
    """Write the best of the masked places' proposals: as many as the schedule says, or all above the threshold and
    `at_least` so many.
    """

    decoding: Decoding

    def asked(self, state: State) -> Bool[Tensor, "b C"]:
        """Return the masked places of the block at work."""
        return state.masked & state.window

    def choose(self, state: State, proposals: Proposals) -> Choice:
        """Return the best of them to write; nothing is masked again."""
        here, score = state.masked & state.window, self._scores(state, proposals)
        if state.count is None:
            above = here & (score >= (self.decoding.threshold or 0.0))
            return Choice(above | lowest(-score, here.any(-1) * self.decoding.at_least, here))
        return Choice(lowest(-score, state.count, here))

    def _scores(self, state: State, proposals: Proposals) -> Float[Tensor, "b C"]:
        score = SCORES[self.decoding.reveal](state, proposals)
        if self.decoding.stop_last:
            stops = state.window & torch.isin(proposals.token, state.stops)
            score = score - STOP_LAST * stops
        return score


@dataclass(frozen=True)
class RevealAndEdit(Reveal):
    """Besides, a token of the block that was written before is replaced where the model proposes another one whose
    probability reaches `edit_threshold` (LLaDA2.1).

    A block goes on until a step without masks replaces nothing, but has `edit_steps` such steps at most.
    """

    def asked(self, state: State) -> Bool[Tensor, "b C"]:
        return state.window

    def choose(self, state: State, proposals: Proposals) -> Choice:
        assert self.decoding.edit_threshold is not None
        masked = state.masked & state.window
        reveal = super().choose(state, proposals).write
        edit = state.window & ~masked & (proposals.token != state.tokens)
        edit = edit & (proposals.confidence >= self.decoding.edit_threshold)
        unmasked = ~masked.any(-1)
        left = self.decoding.edit_steps - state.steps_unmasked - unmasked.long()
        goes_on = torch.where(unmasked, edit.any(-1), True) & (left > 0)
        return Choice(reveal | edit, None, goes_on | (masked & ~reveal).any(-1))


def models_score(state: State, proposals: Proposals) -> Float[Tensor, "b C"]:
    """Probability, margin or negative entropy, as `selection.propose` has it."""
    return proposals.score


def random_order(state: State, proposals: Proposals) -> Float[Tensor, "b C"]:
    """Return uniform numbers: any place is as good as another."""
    return state.uniform()


def left_to_right(state: State, proposals: Proposals) -> Float[Tensor, "b C"]:
    """Return scores that fall from the left to the right."""
    places = torch.arange(state.tokens.shape[1], dtype=torch.float64, device=state.tokens.device)
    return -places.expand(state.tokens.shape)


SCORES: dict[str, Callable[[State, Proposals], Tensor]] = {
    "confidence": models_score,
    "margin": models_score,
    "entropy": models_score,
    "random": random_order,
    "left_to_right": left_to_right,
}
"""What is written first, by the name of `decoding.reveal`."""


def rule_of(decoding: Decoding) -> Rule:
    """The rule that the settings name, one of the user's own among them. Raises UserError where that cannot be had."""
    if decoding.rule is not None:
        made: Rule = load_class(decoding.rule, "a sampler's rule", ("asked", "choose"))(decoding)
        return made
    return Reveal(decoding) if decoding.edit_threshold is None else RevealAndEdit(decoding)
