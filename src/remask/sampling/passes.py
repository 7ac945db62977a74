"""The forwards of sampling, each by itself or those of several batches as one.

A forward reads what it is given of its rows, and its `look` turns the logits at chosen places into proposals. Forwards
of different batches may be made together although their rows have different lengths, steps and settings: rows are
padded on the left, where no position is counted, and each batch's own `look` is shown its own logits. Forwards with
kept keys and values go together where they compute as many tokens of each row.

Shapes: b rows of a forward, L columns, q tokens that are computed, H heads, d their width, N places asked for, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import pad

from remask.diffusion.head import Look
from remask.sampling.guidance import guided
from remask.sampling.selection import Proposal

Kept = Any
"""What stands where transformers' attention expects its cache: an `update` that gives whole rows' keys and values."""


@dataclass(frozen=True)
class Pass:
    """A forward that is to be made for a step. inputs: the model's. look: what is wanted of the logits at the places
    asked for. among: which of the batch's active rows it reads. unprompted: the prompt's tokens, which guidance masks
    in a second reading of the rows (None: without guidance).
    """

    inputs: dict[str, Any]
    look: Look
    among: Bool[Tensor, "b"]
    guidance: float = 0.0
    unprompted: Bool[Tensor, "b L"] | None = None

    def made_by(self, model: nn.Module, mask_id: int) -> Proposal:
        """Return the model's proposals, in row-major order of the places asked for."""
        if self.unprompted is None:
            return Proposal(*model(**self.inputs, look=self.look).seen)
        prompt, guidance = self.unprompted, self.guidance
        return Proposal(*guided(model, self.inputs, self.look, prompt=prompt, mask_id=mask_id, guidance=guidance))

    @property
    def kind(self) -> Hashable:
        """Return what passes have in common that can be made together; None where this one is to be made alone."""
        if self.unprompted is not None:
            return None
        if "past_key_values" not in self.inputs:
            return "whole rows"
        computed = self.inputs["at"] if "at" in self.inputs else self.inputs["input_ids"]
        return "at" in self.inputs, computed.shape[1]


@torch.no_grad()
def made_together(model: nn.Module, passes: Sequence[Pass], mask_id: int) -> list[Proposal]:
    """Return the proposals of each pass, made in as few forwards as their kinds allow.

    A pass's proposals are those that it would have alone, to the rounding of matrix products of another size.
    """
    found: list[Proposal | None] = [None] * len(passes)
    by_kind: dict[Hashable, list[int]] = {}
    for number, planned in enumerate(passes):
        by_kind.setdefault(number if planned.kind is None else planned.kind, []).append(number)
    for members in by_kind.values():
        together = [passes[number] for number in members]
        made = [together[0].made_by(model, mask_id)] if len(together) == 1 else _as_one(model, together)
        for number, proposal in zip(members, made, strict=True):
            found[number] = proposal
    return [proposal for proposal in found if proposal is not None]


def _as_one(model: nn.Module, passes: Sequence[Pass]) -> list[Proposal]:
    """One forward of passes of the same kind."""
    asked = [int(planned.inputs["positions"].sum()) for planned in passes]
    seen = Proposal(*model(**_joined(passes), look=_each_its_own(passes, asked)).seen)
    parts = zip(*(found.split(asked) for found in seen), strict=True)
    return [Proposal(*part) for part in parts]


def _each_its_own(passes: Sequence[Pass], asked: Sequence[int]) -> Look:
    """A look that shows each pass's own look its part of the logits."""
    ends = torch.tensor(asked).cumsum(0).tolist()

    def look(logits: Float[Tensor, "n V"], part: slice) -> tuple[Tensor, ...]:
        found = []
        for planned, count, end in zip(passes, asked, ends, strict=True):
            first, last = max(part.start, end - count), min(part.stop, end)
            if first < last:
                own = slice(first - (end - count), last - (end - count))
                found.append(planned.look(logits[first - part.start : last - part.start], own))
        return tuple(torch.cat(said) for said in zip(*found, strict=True))

    return look


def _joined(passes: Sequence[Pass]) -> dict[str, Any]:
    """The inputs of all rows, padded on the left to one length. With kept keys and values the masks and the places are
    of whole rows, and those are padded.
    """
    first = passes[0].inputs
    if "past_key_values" not in first:
        return {name: _padded([planned.inputs[name] for planned in passes]) for name in first}
    in_blocks = "at" in first
    columns = [planned.inputs["input_ids" if in_blocks else "attention_mask"].shape[-1] for planned in passes]
    widest = max(columns)
    joined: dict[str, Any] = {}
    for name in first:
        if name == "past_key_values":
            continue
        given = [planned.inputs[name] for planned in passes]
        if name == "at":
            given = [places + widest - width for places, width in zip(given, columns, strict=True)]
        joined[name] = _padded(given)
    joined["past_key_values"] = _AllKept([planned.inputs["past_key_values"] for planned in passes], passes, columns)
    return joined


def _padded(rows: Sequence[Tensor]) -> Tensor:
    """Tensors [b, …, L] of several batches as one, with zeros on the left of the shorter ones."""
    widest = max(part.shape[-1] for part in rows)
    return torch.cat([pad(part, (widest - part.shape[-1], 0)) for part in rows])


class _AllKept:
    """What several batches keep, each given its own rows' part of what is new."""

    def __init__(self, kept: Sequence[Kept], passes: Sequence[Pass], columns: Sequence[int]) -> None:
        self.kept, self.widest = kept, max(columns)
        self.rows = [len(planned.inputs["input_ids"]) for planned in passes]

    def update(
        self, key: Float[Tensor, "b H q d"], value: Float[Tensor, "b H q d"], layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Float[Tensor, "b H L d"], Float[Tensor, "b H L d"]]:
        """Return the keys and values of whole rows, those of shorter ones padded on the left."""
        parts = zip(self.kept, key.split(self.rows), value.split(self.rows), strict=True)
        found = [kept.update(new_key, new_value, layer_idx) for kept, new_key, new_value in parts]
        keys, values = (
            torch.cat([pad(x, (0, 0, self.widest - x.shape[2], 0)) for x in said]) for said in zip(*found, strict=True)
        )
        return keys, values
