"""What a batch's records share: tensors whose first axis counts rows, to be moved, repeated, padded and joined."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

R = TypeVar("R", bound="Rows")


class Rows:
    """A mixin of dataclasses of tensors [B, …], some of which may be None."""

    BLANK: ClassVar[Mapping[str, float]] = {}
    """What a field holds where there is no token; 0 where this does not say."""

    def tensors(self) -> dict[str, Tensor]:
        """Those that are there, by their names."""
        named: dict[str, Tensor | None] = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in named.items() if value is not None}

    @classmethod
    def of(cls: type[R], tensors: Mapping[str, Tensor]) -> R:
        """The record whose fields are among these tensors."""
        named = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        return cls(**{name: value for name, value in tensors.items() if name in named})

    def each(self: R, change: Callable[[Tensor], Tensor]) -> R:
        """The record with every tensor changed."""
        changed: dict[str, Any] = {name: change(value) for name, value in self.tensors().items()}
        return replace(self, **changed)  # type: ignore[type-var]

    def to(self: R, device: torch.device | str) -> R:
        """The record on that device."""
        return self.each(lambda value: value.to(device))

    def repeat(self: R, count: int) -> R:
        """All rows, then all of them again, `count` times; no copy is made for a count of 1."""
        return self if count == 1 else self.each(lambda value: value.repeat(count, *[1] * (value.dim() - 1)))

    def left_padded(self: R, width: int) -> R:
        """Fields [B, L] with blanks before them, so that they are [B, width]."""
        wide = {
            name: pad(value, (width - value.shape[1], 0), value=self.BLANK.get(name, 0))
            for name, value in self.tensors().items()
            if value.dim() == 2
        }
        return replace(self, **wide)  # type: ignore[type-var]

    @classmethod
    def cat(cls: type[R], parts: Sequence[R]) -> R:
        """The rows of all parts, one after the other."""
        named = parts[0].tensors()
        return replace(parts[0], **{name: torch.cat([getattr(part, name) for part in parts]) for name in named})  # type: ignore[type-var]
