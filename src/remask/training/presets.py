"""Named methods: a preset of choices by its name, with single choices replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any, TypeVar

from remask.errors import UserError
from remask.own_code import is_own, load_class, stamp

Objective = TypeVar("Objective", bound=Any)


def choose(presets: Mapping[str, Objective], name: str, choices: Mapping[str, Any]) -> Objective:
    """Return the preset of that name (a frozen dataclass), or the user's (`file.py:Class`), with choices replaced.
    Raises UserError naming what is unknown.
    """
    preset = _own(name, type(next(iter(presets.values())))) if is_own(name) else presets.get(name)
    if preset is None:
        raise UserError(
            f"unknown objective {name!r}", mend=f"the presets are {', '.join(presets)}; or write file.py:Class"
        )
    known = [field.name for field in fields(preset)]
    unknown = set(choices) - set(known)
    if unknown:
        raise UserError(
            f"{', '.join(sorted(unknown))}: not a choice of the objective", mend=f"the choices are {', '.join(known)}"
        )
    return replace(preset, **choices)


def _own(name: str, base: type) -> Any:
    """The objective of `file.py:Class`, with its own values. Raises UserError where it is none of this kind."""
    found: Any = load_class(name, "an objective", ())
    if not issubclass(found, base) or "__dataclass_fields__" not in vars(found):
        raise UserError(
            f"it is no frozen dataclass that builds on {base.__name__}",
            where=name,
            mend=f"write @dataclass(frozen=True) and class {found.__name__}({base.__name__})",
        )
    try:
        return found()
    except TypeError as error:
        said = f"it cannot be made without values ({error})"
        raise UserError(said, where=name, mend="give its fields defaults") from None


def recorded(name: str, objective: Any) -> dict[str, Any]:
    """Return an objective as a run's record holds it: its name, which version of the user's file it is, and its
    choices.
    """
    version = {"version": stamp(name)} if is_own(name) else {}
    return {"name": name, **version, **asdict(objective)}
