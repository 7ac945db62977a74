"""The pages of the commands: what `remask COMMAND --help` says, from what it is made of.

A command is asked for its help; the config class and the text that it gives to tyro become the page.
"""

from __future__ import annotations

import importlib
import inspect
import io
import re
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints
from unittest.mock import patch

from remask.choices import meanings
from remask.cli import COMMANDS, EXAMPLES
from remask.config.explained import option_help

FOLDER = "reference/commands"
WORDS: dict[Any, str] = {str: "text", int: "whole number", float: "number", bool: "switch", Any: "value"}


@dataclass(frozen=True)
class Help:
    """What a command says of itself: its usage, its text, and the config class of its options where it has one."""

    usage: str
    text: str
    kind: type | None
    default: Any


def asked(command: str) -> Help:
    """Return what a command gives to tyro when it is asked for help, or what it prints by itself."""
    given: list[Help] = []

    def noted(kind: type, *, prog: str, description: str, default: Any, **_: Any) -> None:
        given.append(Help(f"{prog} [OPTIONS]", description, kind, default))
        raise SystemExit(0)

    said = io.StringIO()
    with patch("tyro.cli", noted), redirect_stdout(said), suppress(SystemExit):
        importlib.import_module(COMMANDS[command][0]).run(["--help"])
    if given:
        return given[0]
    usage, _, text = said.getvalue().partition("\n")
    return Help(usage.removeprefix("usage: "), text, None, None)


def plain(text: str) -> str:
    """Return a sentence so that Markdown shows it as it stands: code stays code."""
    parts = re.split(r"(`[^`]+`)", text)
    safe = [re.sub(r"([*_\[\]<>\\~^$])", r"\\\1", part) if n % 2 == 0 else part for n, part in enumerate(parts)]
    return "".join(safe).replace("\\<", "&lt;").replace("\\>", "&gt;")


def prose(text: str) -> str:
    """Return a command's text as Markdown: examples and other indented lines as code."""
    found = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        lines = paragraph.strip("\n").split("\n")
        if lines[0] == "Examples:":
            examples = "\n".join(line.removeprefix("  ") for line in lines[1:])
            found.append(f"## Examples\n\n```bash\n{examples}\n```")
        else:
            found.append(plain(" ".join(lines)))
    return "\n\n".join(found)


def form(hint: Any) -> str:
    """Return what may be given for an option, in words; empty where its named values say it."""
    origin, inner = get_origin(hint), get_args(hint)
    if hasattr(hint, "__metadata__"):
        return form(inner[0])
    if origin is Literal:
        return "" if meanings(hint) else "one of " + ", ".join(f"`{value}`" for value in inner if value is not None)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(filter(None, (form(part) for part in inner if part is not NoneType))))
    if origin is dict:
        return f"pairs of a {form(inner[0])} and a {form(inner[1])}, with spaces between"
    if origin in (tuple, list):
        return f"{form(inner[0])}, or several with spaces between"
    return WORDS[hint]


def shown(default: Any) -> str:
    """Return a default as it is written on the command line, with the word before it; empty where there is none."""
    if default is None or default in ("", (), {}):
        return ""
    text = " ".join(map(str, default)) if isinstance(default, tuple | list) else str(default)
    return f"default `{text.lower() if isinstance(default, bool) else text}`"


def option(flag: str, hint: Any, default: Any, text: str) -> str:
    """Return one option: its flag, what may be given, its default, what it does, and its named values."""
    start, _, last = flag.rpartition(".")
    negated = f", `--{start}{'.' if start else ''}no-{last}`" if hint is bool else ""
    facts = ", ".join(filter(None, (form(hint), shown(default))))
    named = meanings(hint)
    said = text.split("\n")[0] if len(text.split("\n")) > len(named) else ""
    lines = [f"`--{flag}`{negated}" + (f" ({facts})" if facts else ""), f":   {plain(said) or 'As its name says.'}"]
    if named:
        lines += ["", *(f"    - `{name}`: {plain(meaning)}" for name, meaning in named.items())]
    return "\n".join(lines)


def options(kind: type, default: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (name, text) of each group of options: those of the class itself, then those of its fields' classes."""
    hints, texts = get_type_hints(kind, include_extras=True), option_help(kind)
    groups = [field.name for field in fields(kind) if is_dataclass(hints[field.name])]
    single = [field.name for field in fields(kind) if field.name not in groups]
    flags = {name: prefix + name.replace("_", "-") for name in (*single, *groups)}
    listed = [option(flags[name], hints[name], getattr(default, name), texts[name]) for name in single]
    said = plain(" ".join(inspect.cleandoc(kind.__doc__ or "").split())) if prefix else ""
    if listed:
        yield prefix.rstrip("."), "\n\n".join(filter(None, (said, *listed)))
    for name in groups:
        yield from options(hints[name], getattr(default, name), f"{flags[name]}.")


def page(command: str) -> str:
    """Return the page of one command."""
    help_ = asked(command)
    parts = [f"# remask {command}", f"```text\n{help_.usage}\n```", prose(help_.text)]
    if help_.kind is not None:
        for name, text in options(help_.kind, help_.default):
            parts.append(f"## {f'Options `--{name}.…`' if name else 'Options'}\n\n{text}")
    return "\n\n".join(parts) + "\n"


def contents() -> str:
    """Return the page that lists the commands."""
    rows = "\n".join(f"| [`remask {name}`]({name}.md) | {plain(said)} |" for name, (_, said) in COMMANDS.items())
    examples = "\n".join(line.strip() for line in EXAMPLES.split("\n")[1:])
    return (
        "# Commands\n\nEach page has what `remask COMMAND --help` says.\n\n"
        f"| command | what it does |\n|---|---|\n{rows}\n\n## Examples\n\n```bash\n{examples}\n```\n"
    )


def reference() -> dict[str, tuple[str, str]]:
    """Return {place: (file of the repository, text)} of every page."""
    found = {f"{FOLDER}/index.md": ("src/remask/cli.py", contents())}
    for command, (module, _) in COMMANDS.items():
        found[f"{FOLDER}/{command}.md"] = (f"src/{module.replace('.', '/')}.py", page(command))
    return found


def navigation() -> list[Any]:
    """Return the entries of the pages."""
    return [f"{FOLDER}/index.md", *({name: f"{FOLDER}/{name}.md"} for name in COMMANDS)]
