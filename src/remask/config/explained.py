"""What is said of an option: its docstring, and a line for each named value of a choice. Loads no torch."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import is_dataclass
from functools import cache
from typing import get_type_hints

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
