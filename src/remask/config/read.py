"""Configs from plain values and YAML, and back: strict, one error naming the key. Loads no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

import yaml

from remask.config.expected import as_yaml, expected, hint_at, kinds_of, unlike
from remask.config.spelling import respelled
from remask.errors import UserError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

STRICT: dict[str, Any] = {"extra": "forbid"}

C = TypeVar("C")


def from_dict(kind: type[C], values: dict[str, Any], *, where: str) -> C:
    """Build a config from plain values. Raises UserError naming every key that is unknown or of the wrong type."""
    from pydantic import ValidationError

    values, problems = respelled(kind, values) if isinstance(values, dict) else (values, [])
    misplaced = dict(_misplaced_booleans(kind, values))
    problems += [unlike(key, hint, value) for key, (hint, value) in misplaced.items()]
    try:
        made = _adapter(kind).validate_python(values)
    except ValidationError as error:
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"])
            if key in misplaced:
                continue
            if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
                problems.append(f"unknown key {key!r}{_nearest(kind, item['loc'])}")
            elif item["type"] == "missing":
                problems.append(f"{key}: expected {expected(hint_at(kind, item['loc']))}, got nothing")
            else:
                problems.append(unlike(key, hint_at(kind, item["loc"]), item["input"]))
    if problems:
        raise UserError("; ".join(problems), where=where)
    refuse_impossible(made, where=where)
    return made


_adapters: dict[type, TypeAdapter[Any]] = {}


def _adapter(kind: type[C]) -> TypeAdapter[C]:
    """What checks and writes configs of a kind: made once, which takes longer than its use."""
    from pydantic import TypeAdapter

    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def refuse_impossible(config: Any, *, where: str | None = None) -> None:
    """Raises UserError naming whole numbers that no machine counts to, and texts that are no file's name or model's:
    what works with them would fail anywhere.
    """
    values = list(_leaves(asdict(config)))
    if huge := [key for key, value in values if type(value) is int and value.bit_length() > 62]:
        raise UserError(f"{', '.join(huge)}: too large a number", where=where, mend="give less than 2^62")
    if cut := [key for key, value in values if isinstance(value, str) and "\0" in value]:
        raise UserError(f"{', '.join(cut)}: holds a NUL character", where=where, mend="leave it out")


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all that a config is made of."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner, key)
    else:
        yield key, value


def _misplaced_booleans(hint: Any, value: Any, key: str = "") -> Iterator[tuple[str, tuple[Any, bool]]]:
    """(key, what is meant there and what is given) of each true or false where another kind of value is meant: pydantic
    would read true as 1.
    """
    kinds = list(kinds_of(hint))
    if isinstance(value, bool) and bool not in kinds and Any not in kinds:
        yield key, (hint, value)
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            yield from _misplaced_booleans(hint_at(hint, (position,)), item, f"{key}.{position}")
    elif isinstance(value, dict):
        for kind in filter(is_dataclass, kinds):
            for name, inner in get_type_hints(kind, include_extras=True).items():
                if name in value:
                    yield from _misplaced_booleans(inner, value[name], f"{key}.{name}".lstrip("."))


def _nearest(kind: Any, location: tuple[int | str, ...]) -> str:
    """What the unknown key may have meant, or the keys there are."""
    import difflib

    for part in location[:-1]:
        kind = get_type_hints(kind).get(str(part), kind)
    if not is_dataclass(kind):
        return ""
    names = [f.name for f in fields(kind)]
    close = difflib.get_close_matches(str(location[-1]), names, n=1)
    return f" (did you mean {close[0]!r}?)" if close else f" (the keys are {', '.join(names)})"


class _OnceLoader(yaml.SafeLoader):
    """Refuses a key that a mapping gives twice, of which YAML's usual reader takes the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (name := (key.tag, key.value)) in lines:
                problem = f"the key {key.value!r} is given twice, first in line {lines[name]}"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            lines[name] = key.start_mark.line + 1
        return node


def _said(error: Exception) -> str:
    """What is wrong and where, in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    return str(error).splitlines()[0]


RECIPES = Path(__file__).parents[1] / "recipes"
"""The recipes that come with the package; `recipes/` in a command names them where the working folder has no
such file."""


def packaged(path: str | Path) -> Path:
    """Return the file itself where it exists, else the package's recipe of that name (`recipes/tiny/gift.yaml`)."""
    path = Path(path)
    if not path.exists() and path.parts[:1] == ("recipes",) and (RECIPES / Path(*path.parts[1:])).is_file():
        return RECIPES / Path(*path.parts[1:])
    return path


def load(kind: type[C], path: str | Path) -> C:
    """Read a config from YAML, a packaged recipe by its name too. Raises UserError naming the file and its fault."""
    path = packaged(path)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _OnceLoader)
    except FileNotFoundError:
        raise UserError("no such config file", where=str(path), mend="check its path") from None
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        raise UserError(f"not readable as YAML ({_said(error)})", where=str(path), mend="correct it there") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(
            f"expected a mapping of keys to values, got {as_yaml(values)}", where=str(path), mend="write key: value"
        )
    return from_dict(kind, values, where=str(path))


SEAL = b"# What a run was begun with; change settings by flags. blake2b "


def sealed(text: str) -> bytes:
    """Return a config's text under a first line that holds a digest of the rest: a run that goes on with settings of
    this very file would not notice that one of them has changed.
    """
    return SEAL + _digest(text.encode()) + b"\n" + text.encode()


def refuse_altered(path: Path, *, must: bool) -> None:
    """Raises UserError for a file that `sealed` made and that is no longer as it was; with `must`, for any other."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=str(path), mend="check its path") from error
    line, _, text = content.partition(b"\n")
    if not content.strip():
        raise UserError("is empty", where=str(path), mend="bring it back, or give the run's settings as flags")
    if line.startswith(SEAL) or must:
        if line == SEAL + _digest(text):
            return
        raise UserError(
            "is not what the run wrote",
            where=str(path),
            mend="bring it back, and give changes as flags; or delete it: every checkpoint holds its settings",
        )


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).hexdigest().encode()


def dump(config: Any) -> str:
    """Return the config as YAML; `load` gives it back."""
    return yaml.safe_dump(_adapter(type(config)).dump_python(config, mode="json"), sort_keys=False, allow_unicode=True)
