"""What a batch's records share: tensors whose first axis counts rows, to be moved, repeated, padded and joined."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

R = TypeVar("R", bound="Rows")


def names_of(kind: Any) -> list[str]:
    """Return the names of a dataclass's fields."""
    return [field.name for field in fields(kind)]


class Rows:
    """A mixin for dataclasses of tensors [B, …], some of which may be None."""

    BLANK: ClassVar[Mapping[str, float]] = {}
    """The value that a field holds where there is no token; 0 for a field that is not named in it."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that are not None, by their fields' names."""
        named: dict[str, Tensor | None] = {name: getattr(self, name) for name in names_of(self)}
        return {name: value for name, value in named.items() if value is not None}

    @classmethod
    def of(cls: type[R], tensors: Mapping[str, Tensor]) -> R:
        """Return the record whose fields are among these tensors."""
        named = names_of(cls)
        return cls(**{name: value for name, value in tensors.items() if name in named})

    def each(self: R, change: Callable[[Tensor], Tensor]) -> R:
        """Return the record with every tensor changed."""
        return self.with_tensors({name: change(value) for name, value in self.tensors().items()})

    def with_tensors(self: R, changed: Mapping[str, Tensor]) -> R:
        """Return the record with these tensors in place of those it has."""
        record: Any = self  # a dataclass, which a mixin cannot say
        found: R = replace(record, **changed)
        return found

    def to(self: R, device: torch.device | str) -> R:
        """Return the record on that device."""
        return self.each(lambda value: value.to(device))

    def repeat(self: R, count: int) -> R:
        """Return all rows, then all of them again, `count` times; no copy is made for a count of 1."""
        return self if count == 1 else self.each(lambda value: value.repeat(count, *[1] * (value.dim() - 1)))

    def left_padded(self: R, width: int) -> R:
        """Return the record with blanks before the fields [B, L], so that they are [B, width]."""
        wide = {
            name: pad(value, (width - value.shape[1], 0), value=self.BLANK.get(name, 0))
            for name, value in self.tensors().items()
            if value.dim() == 2
        }
        return self.with_tensors(wide)

    @classmethod
    def cat(cls: type[R], parts: Sequence[R]) -> R:
        """Return the rows of all parts, one after the other."""
        named = parts[0].tensors()
        return parts[0].with_tensors({name: torch.cat([getattr(part, name) for part in parts]) for name in named})
