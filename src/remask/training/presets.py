"""Named methods: a preset of choices by its name, with single choices replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from remask.errors import UserError

Objective = TypeVar("Objective", bound=Any)


def choose(presets: Mapping[str, Objective], name: str, choices: Mapping[str, Any]) -> Objective:
    """The preset of that name (a frozen dataclass), with choices replaced. Raises UserError naming what is unknown."""
    if name not in presets:
        raise UserError(f"unknown objective {name!r}", mend=f"the presets are {', '.join(presets)}")
    known = [field.name for field in fields(presets[name])]
    unknown = set(choices) - set(known)
    if unknown:
        raise UserError(
            f"{', '.join(sorted(unknown))}: not a choice of the objective", mend=f"the choices are {', '.join(known)}"
        )
    return replace(presets[name], **choices)
