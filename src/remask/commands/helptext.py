"""What `--help` says of an option, given to tyro. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import get_type_hints

from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from remask.config.explained import option_help


def with_help(*, briefly: bool = False) -> ConstructorRegistry:
    """Return tyro's rules for types, with config classes described by `option_help`: `briefly` by the first line of
    each text, without the meanings of named values.
    """
    registry = ConstructorRegistry()

    @registry.struct_rule
    def _described(info: StructTypeInfo) -> StructConstructorSpec | None:
        if not is_dataclass(info.type) or not isinstance(info.default, info.type):
            return None
        if getattr(info.type, "__parameters__", ()):  # tyro's own, around a choice of commands
            return None
        kind, default = info.type, info.default
        hints = get_type_hints(kind, include_extras=True)
        parts = [
            StructFieldSpec(
                field.name, hints[field.name], getattr(default, field.name), _text_of(kind, field.name, briefly)
            )
            for field in fields(kind)
        ]
        return StructConstructorSpec(kind, tuple(parts))

    return registry


def _text_of(kind: type, name: str, briefly: bool) -> Callable[[], str | None]:
    """The text is read when it is shown, which most calls never do. A group of options is described by its class."""
    return lambda: (option_help(kind)[name].split("\n")[0] if briefly else option_help(kind)[name]) or None
