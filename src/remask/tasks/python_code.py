"""What a piece of Python binds and uses, read from its syntax alone: nothing is run.

The code is a model's. Whatever it is, reading it gives an answer in time near linear in its length, or None.
"""

from __future__ import annotations

import ast
import builtins
import re
import symtable
import warnings
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Kind = Literal["written", "imported", "stub", "none"]
"""The way a program binds a name: by code that is written in it, by an import, by a body that does nothing, or not at
all."""

KINDS: tuple[Kind, ...] = ("none", "stub", "imported", "written")
"""The kinds, from the worst to the best."""

FUTURE = re.compile(r"^from __future__ import .*$", re.MULTILINE)
BLANK_LINES = re.compile(r"\A(?:[ \t]*\n)+")
LEADING = re.compile(r"^[ \t]+", re.MULTILINE)
FAILURES = (SyntaxError, ValueError, RecursionError, MemoryError)
"""The errors that Python's parser raises: for code that is none, for null characters and half characters, for deep
nesting."""

Function = (ast.FunctionDef, ast.AsyncFunctionDef)
Scope = (*Function, ast.ClassDef, ast.Lambda)
BUILTIN = frozenset(dir(builtins)) | {"__name__", "__file__", "__doc__"}
CHANGERS = {"setrecursionlimit"}
"""The calls that change how the program runs and bind nothing."""


def parse(code: str) -> ast.Module | None:
    """Return the syntax tree; None where the code is not Python."""
    return parsed(code)[0]


def parsed(code: str) -> tuple[ast.Module | None, str]:
    """Return the syntax tree, or None and what the parser says is wrong."""
    try:
        with warnings.catch_warnings(action="ignore"):  # "\d" and its like
            return ast.parse(code), ""
    except FAILURES as error:
        return None, str(error)


@dataclass(frozen=True)
class Statement:
    """A statement at the outermost level, its lines in the code (from 0, the last not included), and the names it binds
    there.

    `uses` are the global names that it needs, those inside its functions too.
    """

    node: ast.stmt
    first: int
    end: int
    binds: frozenset[str]
    uses: frozenset[str]


class Code:
    """A piece of Python that parses."""

    def __init__(self, text: str, tree: ast.Module) -> None:
        self.text, self.tree = text, tree

    @classmethod
    def read(cls, text: str) -> Code | None:
        """Read the code of a text. Where it does not parse as it stands, its indentation is corrected in the ways that
        answers lose it: all of it too deep; the first line alone too deep or too shallow; tabs among spaces. None where
        no way makes it Python.
        """
        for mended in indentations(text):
            tree = parse(mended)
            if tree is not None:
                return cls(mended, tree)
        return None

    @cached_property
    def lines(self) -> list[str]:
        """Return the lines of the text."""
        return self.text.split("\n")

    @cached_property
    def statements(self) -> list[Statement]:
        """Return the statements at the outermost level."""
        found = []
        for node in self.tree.body:
            decorators = getattr(node, "decorator_list", [])
            first = min([node.lineno, *(item.lineno for item in decorators)]) - 1
            end = node.end_lineno or node.lineno
            binds, uses = names_of("\n".join(self.lines[first:end]))
            found.append(Statement(node, first, end, binds, uses))
        return found

    @cached_property
    def is_body(self) -> bool:
        """Return whether the code returns or yields outside of any function: it is then the inside of one."""
        return any(isinstance(node, (ast.Return, ast.Yield, ast.YieldFrom)) for node in outside_scopes(self.tree))

    def kind(self, name: str) -> Kind:
        """Return how the code binds a name, in the best of its ways."""
        if self.is_body:
            return "none"
        return max((_kind(one, name) for one in self.statements), key=KINDS.index, default="none")

    def without_demonstration(self, names: Sequence[str]) -> str:
        """Return the text without the statements that are not part of the program that binds the names.

        Assertions and words that happen to be Python (`Done`, `Note: this`) are none, nor is what reads standard input
        where the program is loaded. Behind the last statement that binds one of the names only such statements stay
        that bind or change what those before need: helpers stay, examples and a main part go.
        """
        bound = [number for number, one in enumerate(self.statements) if one.binds & set(names)]
        last = bound[-1] if bound else len(self.statements)
        known = self.binds | BUILTIN
        kept = {
            number
            for number, one in enumerate(self.statements[: last + 1])
            if not (_is_idle(one, known) or _reads_input(one))
        }
        needed = set(names).union(*(self.statements[number].uses for number in kept))
        rest = [n for n in range(last + 1, len(self.statements)) if not _reads_input(self.statements[n])]
        while found := [n for n in rest if n not in kept and _makes(self.statements[n], needed, names)]:
            kept.update(found)
            needed.update(*(self.statements[number].uses for number in found))
        return self._only(kept)

    def _only(self, kept: set[int]) -> str:
        """The text with the lines of the statements that are not kept taken out; what shares a line stays."""
        gone: set[int] = set()
        stays: set[int] = set()
        for number, one in enumerate(self.statements):
            (stays if number in kept else gone).update(range(one.first, one.end))
        return "\n".join(line for number, line in enumerate(self.lines) if number not in gone - stays)

    def source_of(self, one: Statement) -> str:
        """Return the text of one statement."""
        return "\n".join(self.lines[one.first : one.end])

    @cached_property
    def binds(self) -> set[str]:
        """Return all names that the code binds at the outermost level."""
        return {name for one in self.statements for name in one.binds}

    def missing(self) -> set[str]:
        """Return the global names that the code uses and neither binds nor has from Python."""
        return {name for one in self.statements for name in one.uses} - self.binds - BUILTIN


def defines(code: str, name: str) -> bool:
    """Return whether a program binds a name; for one that is not Python, whether it seems to."""
    read = Code.read(code)
    return seems_to_bind(code, name) if read is None else read.kind(name) != "none"


def seems_to_bind(code: str, name: str) -> bool:
    """Return whether a text has a line that would bind a name."""
    pattern = rf"^[ \t]*(?:async[ \t]+)?(?:def|class)[ \t]+{re.escape(name)}\b|^{re.escape(name)}[ \t]*="
    return re.search(pattern, code, re.MULTILINE) is not None


def names_of(source: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names that a statement binds at the outermost level, and the global names that it uses."""
    try:
        with warnings.catch_warnings(action="ignore"):
            top = symtable.symtable(source, "answer", "exec")
    except FAILURES:
        return frozenset(), frozenset()
    binds = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    uses = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_referenced()}
    inner = list(top.get_children())
    while inner:
        table = inner.pop()
        uses |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
        inner += table.get_children()
    return frozenset(binds), frozenset(uses)


def outside_scopes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield every node but those inside functions, classes and lambdas: what runs when the code is loaded."""
    left: list[ast.AST] = [tree]
    while left:
        node = left.pop()
        yield node
        left += [child for child in ast.iter_child_nodes(node) if not isinstance(child, Scope)]


def joined(*parts: str) -> str:
    """Return the parts as one program: imports from the future stand first, as they must in a file."""
    future = [line for part in parts for line in FUTURE.findall(part)]
    return "\n".join([*future, *(FUTURE.sub("", part) if future else part for part in parts)])


def dedented(text: str) -> str:
    """Return the text without the indentation that all of its lines share; blank lines in it stay as they are."""
    margins = [line[: len(line) - len(line.lstrip())] for line in text.split("\n") if line.strip()]
    first, last = min(margins, default=""), max(margins, default="")
    shared = next((n for n, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    margin = first[:shared]
    return "\n".join(line.removeprefix(margin) for line in text.split("\n")) if margin else text


def indentations(text: str) -> Iterator[str]:
    """Yield the text without the indentation that its lines share, then with its indentation corrected."""
    text = BLANK_LINES.sub("", text).rstrip()
    yield dedented(text)
    first, newline, rest = text.partition("\n")
    if newline:
        yield f"{first.lstrip()}\n{rest}"
        yield f"{first.lstrip()}\n{dedented(rest)}"
    if "\t" in text:
        plain = dedented(text)
        yield LEADING.sub(_eight, plain)  # Python's own width
        yield LEADING.sub(_four, plain)  # what most editors show


def _eight(blank: re.Match[str]) -> str:
    return blank[0].expandtabs(8)


def _four(blank: re.Match[str]) -> str:
    return blank[0].expandtabs(4)


def _kind(one: Statement, name: str) -> Kind:
    if name not in one.binds:
        return "none"
    match one.node:
        case ast.Import() | ast.ImportFrom():
            return "imported"
        case ast.FunctionDef(body=body) | ast.AsyncFunctionDef(body=body):
            return "stub" if all(map(_does_nothing, body)) else "written"
        case _:
            return "written"


def _does_nothing(node: ast.stmt) -> bool:
    """`pass`, `...`, a docstring or a bare `raise NotImplementedError`."""
    match node:
        case ast.Pass() | ast.Expr(value=ast.Constant()):
            return True
        case ast.Raise(exc=ast.Name(id="NotImplementedError") | ast.Call(func=ast.Name(id="NotImplementedError"))):
            return True
    return False


def _is_idle(one: Statement, known: Container[str]) -> bool:
    """Whether the program is the same without it: an assertion, an expression that does nothing, an annotation of
    nothing, or a call of nothing that is known, such as `Solution (recursive)`."""
    match one.node:
        case ast.Assert() | ast.AnnAssign(value=None):
            return True
        case ast.Expr(value=ast.Call(func=called)):
            return (root := _root(called)) is not None and root not in known
        case ast.Expr(value=value):
            return not isinstance(value, (ast.Await, ast.Constant))
    return False


def _reads_input(one: Statement) -> bool:
    """Whether loading it reads standard input."""
    if isinstance(one.node, Scope):
        return False
    calls = [node.func for node in outside_scopes(one.node) if isinstance(node, ast.Call)]
    return any(
        (isinstance(called, ast.Name) and called.id == "input")
        or any(isinstance(part, ast.Attribute) and part.attr == "stdin" for part in ast.walk(called))
        for called in calls
    )


def _makes(one: Statement, needed: set[str], names: Sequence[str]) -> bool:
    """Whether a statement behind the program binds what it needs, or changes it."""
    if one.binds & needed:
        return True
    for node in outside_scopes(one.node):
        match node:
            case ast.Attribute(ctx=ast.Store()) | ast.Subscript(ctx=ast.Store()) if _root(node) in needed:
                return True
            case ast.Expr(value=ast.Call(func=ast.Attribute(attr=attribute) as called)):
                if attribute in CHANGERS or _root(called) in needed - set(names):
                    return True
    return False


def _root(node: ast.expr) -> str | None:
    """`a` of `a.b[0].c`."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None
