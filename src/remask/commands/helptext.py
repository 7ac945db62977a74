"""What `--help` says of an option: its docstring, and a line for each named value of a choice. Loads no torch."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache
from typing import get_type_hints

from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from remask.choices import meanings


@cache
def option_help(kind: type) -> dict[str, str]:
    """Return the help text of each field of a config class, those that it inherits included."""
    texts = {name: text for base in reversed(kind.__mro__) for name, text in _docstrings(base).items()}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        lines = [texts.get(name, ""), *(f"{value}: {meaning}" for value, meaning in meanings(hint).items())]
        texts[name] = "\n".join(filter(None, lines))
    return texts


def _docstrings(kind: type) -> dict[str, str]:
    """The texts that stand below the fields of this one class, each as a single line."""
    if not is_dataclass(kind):
        return {}
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            found[field.target.id] = " ".join(ast.literal_eval(below.value).split())
    return found


def with_help() -> ConstructorRegistry:
    """Return tyro's rules for types, with config classes described by `option_help`."""
    registry = ConstructorRegistry()

    @registry.struct_rule
    def _described(info: StructTypeInfo) -> StructConstructorSpec | None:
        if not is_dataclass(info.type) or not isinstance(info.default, info.type):
            return None
        kind, default = info.type, info.default
        hints = get_type_hints(kind, include_extras=True)
        parts = [
            StructFieldSpec(field.name, hints[field.name], getattr(default, field.name), _text_of(kind, field.name))
            for field in fields(kind)
        ]
        return StructConstructorSpec(kind, tuple(parts))

    return registry


def _text_of(kind: type, name: str) -> Callable[[], str | None]:
    """The text is read when it is shown, which most calls never do. A group of options is described by its class."""
    return lambda: option_help(kind)[name] or None
