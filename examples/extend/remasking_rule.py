"""A sampler's rule of one's own: second thoughts about what was written.

    remask eval --model tiny --tasks sudoku --n 100 --decoding.rule examples/extend/remasking_rule.py:SecondThoughts

In the first half of a block's steps one token more is written than the schedule says, and the token that the model was
least sure of when it wrote it is masked again (after ReMDM, arXiv 2503.00307). It is written anew in the light of more
of the text.
"""

from __future__ import annotations

import torch

from remask.diffusion.corruption import lowest
from remask.sampling.rules import Choice, Proposals, State
from remask.sampling.schedule import Decoding


class SecondThoughts:
    def __init__(self, decoding: Decoding) -> None:
        self.decoding = decoding

    def asked(self, state: State) -> torch.Tensor:
        """Proposals are wanted for the masked places of the block, as always."""
        return state.masked & state.window

    def choose(self, state: State, proposals: Proposals) -> Choice:
        assert state.count is not None, "a threshold says how many are written: leave it out"
        early = 2 * state.step < state.steps
        written = state.window & ~state.masked
        again = early & written.any(-1)
        write = lowest(-proposals.score, state.count + again, self.asked(state))
        least_sure = lowest(state.confidence.nan_to_num(torch.inf), again.long(), written)
        return Choice(write, least_sure)
