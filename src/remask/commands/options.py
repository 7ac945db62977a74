"""Options from a YAML file, dotted flags and positional words. Loads no torch."""

from __future__ import annotations

import inspect
import io
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import tyro

from remask import config as configs
from remask.commands.helptext import with_help
from remask.config.expected import expected, hint_at
from remask.config.spelling import canonical, respelled_value, twice
from remask.errors import UserError
from remask.files import as_json
from remask.imports import uncollected

C = TypeVar("C")

SWITCH_VALUES: dict[str, bool | None] = {"true": True, "false": False, "yes": True, "no": False, "none": None}
"""The spellings of a switch's value, in any case."""


def parse(kind: type[C], arguments: Sequence[str], *, command: str, examples: str, words: str = "") -> C:
    """Return a config from `--config FILE` (optional) and dotted flags over it.

    `--help` prints and leaves with 0; its usage line names `words`, which the command takes without a flag.
    Raises UserError for a flag that is unknown or of the wrong type.
    """
    path, rest = _take(with_switch_values(kind, respelled_flags(kind, arguments)), "--config")
    base = configs.load(kind, path) if path is not None else kind()
    description = f"{inspect.cleandoc(kind.__doc__ or '')}\n\n{examples}"
    if issubclass(kind, configs.SftConfig | configs.RlConfig | configs.DpoConfig):
        description += "\n\n--config FILE reads a YAML file of these options; flags override it."
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            made = tyro.cli(
                kind,
                prog=f"remask {command} {words}".rstrip(),
                description=description,
                args=list(rest),
                default=base,
                config=(tyro.conf.AvoidSubcommands,),
                registry=with_help(),
            )
    except SystemExit as leave:
        if leave.code in (0, None):
            raise
        raise UserError(
            _explained(kind, said.getvalue()), mend=f"`remask {command} --help` lists the options"
        ) from None
    configs.refuse_impossible(made)
    if path is not None and getattr(made, "resume", None):
        configs.refuse_altered(Path(path), must=False)
    return made


def respelled_flags(kind: Any, arguments: Sequence[str]) -> list[str]:
    """Return the arguments (flags and their values) with British and American spellings as Remask calls them.

    Raises UserError for an option that is given in both.
    """
    done: list[str] = []
    spelled: dict[str, str] = {}
    hint: Any = None
    for token in arguments:
        if not token.startswith("--"):
            done.append(respelled_value(hint, token))
            continue
        flag, equals, value = token.partition("=")
        name, hint = _option(kind, flag)
        if spelled.setdefault(name.replace("-", "_"), flag).replace("-", "_") != flag.replace("-", "_"):
            raise UserError(twice(spelled[name.replace("-", "_")], flag))
        done.append(f"{name}{equals}{respelled_value(hint, value)}")
    return done


def with_switch_values(kind: Any, arguments: Sequence[str]) -> list[str]:
    """Return the arguments with every switch in the form tyro reads.

    A switch may stand alone (`--decoding.suppress-eos`), be negated (`--no-decoding.suppress-eos`), or have a value in
    any spelling of true and false, after a space or an equals sign.
    """
    done: list[str] = []
    rest = list(arguments)
    while rest:
        token = rest.pop(0)
        name, given, value = token.partition("=")
        asked = _type_of(kind, name) if name.startswith("--") and name not in ("--", "--help") else None
        if token == "--" or asked not in (bool, bool | None):
            done += [token, *rest] if token == "--" else [token]
            if token == "--":
                break
            continue
        if not given and rest and rest[0].lower() in SWITCH_VALUES:
            value = rest.pop(0)
        negated = name.startswith("--no-")
        if value.lower() not in {**SWITCH_VALUES, "": None} or (negated and value):
            raise UserError(f"{name} is a switch, and {value!r} is neither true nor false", mend=f"write {name} alone")
        on = SWITCH_VALUES[value.lower()] if value else not negated
        plain = name.replace("--no-", "--", 1) if negated else name
        if asked is bool:
            start, _, last = plain.removeprefix("--").rpartition(".")
            done.append(plain if on else f"--{start}{'.' if start else ''}no-{last}")
        else:
            done.append(f"{plain}={on}")
    return done


def split_words(kind: Any, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (words, flags): what stands without a flag, and the flags with their values (of whole numbers several, of
    texts all up to the next flag).
    """
    words, flags, rest = [], [], with_switch_values(kind, arguments)
    while rest:
        token = rest.pop(0)
        if token == "--":
            words += rest
            break
        if token != "-h" and not token.startswith("--"):
            words.append(token)
            continue
        flags.append(token)
        asked = _type_of(kind, token)
        if "=" not in token and rest and asked is not bool:
            flags.append(rest.pop(0))
            while asked == tuple[int, ...] and rest and rest[0].isdecimal():
                flags.append(rest.pop(0))
            while asked == tuple[str, ...] and rest and not rest[0].startswith("-"):
                flags.append(rest.pop(0))
    return words, flags


def _type_of(kind: Any, flag: str) -> Any:
    """The type of a flag's value, bool where it stands alone; None where it is not known."""
    if flag in ("--help", "-h"):
        return bool
    return _option(kind, flag)[1]


def _option(kind: Any, flag: str) -> tuple[str, Any]:
    """(flag, type of its value): the flag as Remask spells it, and None for the type where it is not known."""
    start = "--no-" if flag.startswith("--no-") else "--"
    parts = []
    for part in flag.removeprefix(start).split("."):
        known = [field.name for field in fields(kind)] if is_dataclass(kind) else []
        name = canonical(part.replace("-", "_"), known)
        if name not in known:
            return flag, None
        parts.append(part if name == part.replace("-", "_") else name)
        kind = get_type_hints(kind, include_extras=True)[name]
    return start + ".".join(parts), kind


def _take(arguments: Sequence[str], flag: str) -> tuple[str | None, list[str]]:
    """The value of a flag and the arguments without it."""
    rest, value = list(arguments), None
    for i, token in enumerate(rest):
        if token == flag:
            if i + 1 == len(rest):
                raise UserError(f"{flag} is given without a file", mend=f"write {flag} FILE")
            value = rest[i + 1]
            del rest[i : i + 2]
            break
        if token.startswith(f"{flag}="):
            value = token.partition("=")[2]
            del rest[i]
            break
    return value, rest


def _explained(kind: Any, message: str) -> str:
    """What tyro says, in this program's words where it names an option and a value that it cannot have."""
    plain = _plain(message)
    flag = re.search(r"(?:Error parsing |for argument ')(--[\w.\-]+)", plain)
    hint = _option(kind, flag[1])[1] if flag else None
    if flag is None or hint is None:
        return plain
    several = get_origin(hint) is tuple or any(get_origin(inner) is tuple for inner in get_args(hint))
    wanted = f"{expected(hint_at(hint, (0,)))} for each value" if several else expected(hint)
    if "Missing value" in plain:
        return f"{flag[1]}: expected {wanted}, got nothing"
    given = re.search(r"for arguments: \[(.*?)\]|'(.*?)'(?! lists)", plain)
    return f"{flag[1]}: expected {wanted}, got {given[1] or repr(given[2])}" if given else plain


def _plain(message: str) -> str:
    """tyro's boxed message as one line."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", message)
    lines = [re.sub(r"[╭╮╰╯│─]+|-{5,}", " ", line).strip() for line in text.splitlines()]
    kept = []
    for line in lines:
        if line.startswith(("For full helptext", "See --help")):
            break
        if line and line not in ("Parsing error", "Unrecognized options", "Invalid choice"):
            kept.append(line)
    return re.sub(r"\s+", " ", " ".join(kept)).rstrip(".") or "the options cannot be read"


def load_named(config: Any) -> tuple[Any, Any]:
    """Load the model and tokenizer that a command's options name: model, adapter, dtype, quantization, device."""
    with uncollected():
        from remask.models.load import load

    return load(
        config.model,
        dtype=config.dtype,
        device=config.device,
        adapter=config.adapter,
        quantization=config.quantization,
        attention=config.model_attention,
    )


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    print(as_json(value, indent=1))


def console() -> Any:
    """Return a console as wide as the terminal, or of 100 columns where output goes to a file."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 100)
