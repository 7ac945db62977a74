"""HumanEval's continuations: the inside of a function, put behind its prompt with its indentation mended."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator

from remask.tasks.python_code import Code, defines, indentations, joined, outside_scopes, parse

INDENT = "    "
TRIED = 16
"""The number of lines that are tried as the first of a function's inside."""
RETURNS = re.compile(r"\b(?:return|yield)\b")


def returning(text: str) -> str:
    """Return the text from the first line on from which it is the inside of a function; all of it, where it is none.

    Such a line is the first, follows a blank one, or is indented behind one that is not.
    """
    lines = text.strip("\n").split("\n") if RETURNS.search(text) else []
    starts = [
        number
        for number, line in enumerate(lines)
        if not number or not lines[number - 1].strip() or (line[:1].isspace() and not lines[number - 1][:1].isspace())
    ]
    for number in starts[:TRIED]:
        rest = "\n".join(lines[number:])
        if is_inside(rest) or is_inside(to_margin(rest)):
            return rest
    return text


def is_inside(code: str) -> bool:
    """Return whether a text is the inside of a function."""
    read = Code.read(code)
    return read is not None and read.is_body


def to_margin(code: str) -> str:
    """Return code up to the first line behind its first that is not indented, as HumanEval's stop words have it."""
    lines = code.strip("\n").split("\n")
    end = next((n for n, line in enumerate(lines) if n and line.strip() and not line[0].isspace()), len(lines))
    return "\n".join(lines[:end])


def after_prompt(prompt: str, code: str, name: str) -> str:
    """Return HumanEval's program: the prompt, then the function anew or a continuation of the prompt's function.

    A continuation ends at the first line that is not indented, as HumanEval's stop words have it, unless none of it is.
    Its indentation is corrected where the prompt's function would not be Python otherwise.
    """
    if defines(code, name):
        return joined(prompt, code)
    programs = [f"{prompt.rstrip(chr(10))}\n{inside}\n" for inside in _indented(code)]
    return next((program for program in programs if parse(program) is not None), programs[0])


def _indented(code: str) -> Iterator[str]:
    """A continuation as the inside of a function that is indented by four: in the ways its indentation may be lost."""
    code = code.strip("\n")
    first, newline, rest = code.partition("\n")
    whole = parse(code)
    length = to_margin(code).count("\n") + 1
    if whole is not None and any(_returns(node) and (node.end_lineno or 0) > length for node in whole.body):
        yield textwrap.indent(code, INDENT)  # all of its lines have lost theirs
    if first[:1].isspace():
        yield to_margin(code)
    yield to_margin(INDENT + first.lstrip() + newline + rest)
    for mended in indentations(to_margin(code)):
        yield textwrap.indent(mended, INDENT)


def _returns(node: ast.stmt) -> bool:
    return any(isinstance(inner, (ast.Return, ast.Yield, ast.YieldFrom)) for inner in outside_scopes(node))
