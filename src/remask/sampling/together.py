"""A step of several batches at once (`writing.Writing`), in as few forwards as what they read allows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from remask.errors import UserError
from remask.sampling.passes import Pass, made_together
from remask.sampling.record import Step
from remask.sampling.writing import Writing


@torch.no_grad()
def step_together(model: nn.Module, writings: Sequence[Writing]) -> list[Step | UserError]:
    """Take one step of each batch and return what it did, in their order: a `Step`, or the error that it ended with.

    A batch gets the tokens that it would get alone. What one of them raises (predictions that are not finite) is its
    own; what the model's forward raises is raised.
    """
    if not writings:
        return []
    asked = [writing.ask() for writing in writings]
    proposals = [writing.no_proposals(of_it) for writing, of_it in zip(writings, asked, strict=True)]
    planned = [writing.passes(of_it) for writing, of_it in zip(writings, asked, strict=True)]
    while some := [(number, one) for number, several in enumerate(planned) if (one := next(several, None))]:
        passes: list[Pass] = [one for _, one in some]
        for (number, one), found in zip(some, made_together(model, passes, writings[0].mask_id), strict=True):
            writings[number].put(proposals[number], asked[number], one, found)
    steps: list[Step | UserError] = []
    for writing, of_it, proposal in zip(writings, asked, proposals, strict=True):
        try:
            steps.append(writing.take(of_it, proposal))
        except UserError as error:
            steps.append(error)
    return steps
