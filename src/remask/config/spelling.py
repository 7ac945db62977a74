"""British and American spellings of options and their named values: both are read, one is written. Loads no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from remask.choices import values

TO_BRITISH = tuple(
    (re.compile(american), british)
    for american, british in (
        (r"([a-z]{3})iz(?=e|ing|ation)", r"\1is"),  # normalizer, quantization
        (r"lyz(?=e|ing)", "lys"),
        (r"(behavi|neighb|flav|fav|col|hon|lab)or", r"\1our"),
        (r"(cent|fib|lit)er(?![a-z])", r"\1re"),
        (r"(model|label|level|cancel|channel|signal|travel)(?=ed|ing|er)", r"\1l"),
        (r"(anal|catal|dial)og(?![a-z])", r"\1ogue"),
        (r"(def|lic|off)ense", r"\1ence"),
        (r"gray", "grey"),
    )
)
"""Patterns of American spellings, and what stands in their place in British ones."""


def british(word: str) -> str:
    """Return a name as it is spelled in British English, which need not be the name that Remask uses."""
    for american, spelling in TO_BRITISH:
        word = american.sub(spelling, word)
    return word


def canonical(name: str, known: Iterable[str]) -> str:
    """Return the one of the `known` names that `name` is, or is another spelling of; `name` itself where
    there is none.
    """
    known = list(known)
    return name if name in known else next((one for one in known if british(one) == british(name)), name)


def respelled(kind: Any, given: dict[str, Any], group: str = "") -> tuple[dict[str, Any], list[str]]:
    """Return what is given for a config class, with every key and named value in Remask's spelling; and what is wrong
    with it: a key that is given in both spellings.
    """
    hints = get_type_hints(kind, include_extras=True)
    known = [field.name for field in fields(kind)]
    done: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    problems = []
    for key, value in given.items():
        name = canonical(key, known) if isinstance(key, str) else key
        if name in done:
            problems.append(twice(f"{group}{spelled[name]}", f"{group}{key}"))
            continue
        hint, spelled[name] = hints.get(name), key
        if is_dataclass(hint) and isinstance(value, dict):
            value, wrong = respelled(hint, value, f"{group}{name}.")
            problems += wrong
        done[name] = respelled_value(hint, value)
    return done, problems


def respelled_value(hint: Any, value: Any) -> Any:
    """Return a named value of a choice (or a list of them) in Remask's spelling; any other value as it is."""
    if not (known := values(hint)):
        return value
    if isinstance(value, list | tuple):
        return [respelled_value(hint, one) for one in value]
    return canonical(value, known) if isinstance(value, str) else value


def twice(first: str, second: str) -> str:
    """Return the error of an option that is given in two spellings."""
    return f"{first} and {second} are two spellings of one option: give one of them"
