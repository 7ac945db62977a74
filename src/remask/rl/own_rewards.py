"""A user's own reward functions: finding `module:function` or `file.py:function`, and what each wants to be given."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from remask.errors import UserError
from remask.own_code import from_file, not_imported, put_on_path

Kind = inspect.Parameter
BY_NAME = (Kind.POSITIONAL_OR_KEYWORD, Kind.KEYWORD_ONLY)


@dataclass(frozen=True)
class OwnFunction:
    """A user's function and the columns it names: `wanted` (None: every column, as it takes **columns), and in
    `required` those of them without a default.
    """

    name: str
    function: Callable[..., Any]
    wanted: frozenset[str] | None
    required: tuple[str, ...] = ()

    def __call__(self, columns: Mapping[str, Any]) -> Any:
        """What the function returns. Raises UserError for a column it needs and nobody has, and what it raises."""
        self.refuse_missing(columns)
        wanted = columns if self.wanted is None else self.wanted
        return self.function(**{name: values for name, values in columns.items() if name in wanted})

    def refuse_missing(self, columns: Iterable[str], *, row: str = "row") -> None:
        """Raises UserError for a column that the function needs and that is not among these."""
        columns = list(columns)
        missing = [name for name in self.required if name not in columns]
        if missing:
            raise UserError(
                f"the reward function takes {', '.join(missing)}, which no {row} has",
                where=self.name,
                mend=f"the columns are {', '.join(columns)}; a column that may be missing needs a default",
            )


def load(name: str, hint: str = "") -> OwnFunction:
    """Load the function of `module:function` or `path/to/file.py:function`. The current folder and the file's are put
    on the path. Raises UserError saying why it cannot be loaded; `hint` is added where there is no such module.
    """
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise UserError("not a reward function", where=name, mend="write module:function or file.py:function")
    module = from_file(name, place) if place.endswith(".py") else _imported(name, place, hint)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UserError(f"there is no {attribute} in {place}", where=name, mend=_functions_of(module, attribute))
        found = getattr(found, part)
    return _checked(name, found)


def _checked(name: str, found: Any) -> OwnFunction:
    if not callable(found) or inspect.isclass(found):
        what = "a class" if inspect.isclass(found) else f"a {type(found).__name__}"
        raise UserError(f"it is {what}, not a function", where=name, mend="name a function of prompts and completions")
    if inspect.iscoroutinefunction(found):
        raise UserError("an async function is not awaited", where=name, mend="wrap it in one with asyncio.run")
    try:
        parameters = list(inspect.signature(found).parameters.values())
    except (TypeError, ValueError):  # some compiled functions do not tell
        return OwnFunction(name, found, None)
    nameless = [one.name for one in parameters if one.kind is Kind.POSITIONAL_ONLY and one.default is Kind.empty]
    if nameless:
        raise UserError(
            f"its parameters {', '.join(nameless)} cannot be given by name",
            where=name,
            mend="define it as reward(prompts, completions, **columns)",
        )
    named = [one for one in parameters if one.kind in BY_NAME]
    takes_all = any(one.kind is Kind.VAR_KEYWORD for one in parameters)
    required = tuple(one.name for one in named if one.default is Kind.empty)
    return OwnFunction(name, found, None if takes_all else frozenset(one.name for one in named), required)


def _imported(name: str, place: str, hint: str) -> ModuleType:
    if not all(part.isidentifier() for part in place.split(".")):
        raise UserError(f"{place!r} is no module", where=name, mend="write module:function or file.py:function")
    put_on_path(Path.cwd())
    importlib.invalidate_caches()
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise not_imported(name, place, error) from error  # another that it imports
        mend = f"{hint}run where it is, install it, or write file.py:function"
        raise UserError(f"there is no module {error.name}", where=name, mend=mend) from None
    except (Exception, SystemExit) as error:
        raise not_imported(name, place, error) from error


def _functions_of(module: ModuleType, attribute: str) -> str:
    names = [name for name, value in vars(module).items() if inspect.isfunction(value) and not name.startswith("_")]
    close = difflib.get_close_matches(attribute, names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"its functions are {', '.join(names)}" if names else "it defines no function"
