"""What MBPP's tests ask of a program, read from the reference solution.

Tests and program run in two boxes, and only plain data goes between them. Where a test makes an object of the program's
own class (`Pair(5, 24)`), or its setup does, the call that takes it is made beside the program: the program's box gets
`def _asked_0(): return max_chain_length([Pair(5, 24)], 4)`, the tests compare what comes back. What is expected stays
with the tests.
"""

from __future__ import annotations

import ast
from typing import Any

from remask.tasks.python_code import Code, parsed

ASKED = "_asked_"


def asked_of(reference: str, tests: str, setup: str = "") -> dict[str, Any]:
    """Return the fields of a problem that say how it is tested.

    `names` are the reference's functions and classes that the tests use, functions first; the first is the `name` asked
    for. `test` are the tests, after `setup` where it needs nothing of the program. `beside` is run after the program,
    in its box: the setup, as MBPP has it, and the functions `asked`. The field `setup` holds the modules that the tests
    count on the program to have imported. Raises ValueError where the reference or the tests are not Python, or the
    tests use nothing of it.
    """
    program, asserts, prepared = _code(reference, "code"), _code(tests, "tests"), _code(setup, "setup")
    used = {name for one in (*asserts.statements, *prepared.statements) for name in one.uses}
    functions, classes = _bound(program, used)
    names = functions + classes
    if not names:
        raise ValueError("the tests use no function of the reference solution")
    needs_program = any(one.uses & {*functions, *classes} for one in prepared.statements)
    move = Move({*functions}, {*classes, *(prepared.binds if needs_program else ())})
    moved = ast.unparse(move.visit(asserts.tree))
    test = moved if move.calls else tests
    return {
        "name": names[0],
        "names": names,
        "setup": "\n".join(_imports(program, used)),
        "test": test if needs_program or not setup.strip() else f"{setup}\n{test}",
        "beside": "\n".join(part for part in (setup, *move.functions()) if part.strip()),
        "asked": list(move.calls),
    }


class Move(ast.NodeTransformer):
    """A transformer of syntax trees that puts a call without arguments in the place of each call that needs what is
    only beside the program.
    """

    def __init__(self, functions: set[str], there: set[str]) -> None:
        self.functions_asked, self.there = functions | there, there
        self.calls: dict[str, str] = {}

    def visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, (ast.Call, ast.Attribute, ast.Subscript)) and _first(node) in self.functions_asked:
            names = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
            if names & self.there:
                name = f"{ASKED}{len(self.calls)}"
                self.calls[name] = ast.unparse(node)
                return ast.copy_location(ast.Call(ast.Name(name, ast.Load()), [], []), node)
        return self.generic_visit(node)

    def functions(self) -> list[str]:
        return [f"def {name}():\n    return {call}" for name, call in self.calls.items()]


def _code(text: str, what: str) -> Code:
    tree, wrong = parsed(text)
    if tree is None:
        raise ValueError(f"its {what} is not Python: {wrong}")
    return Code(text.replace("\r\n", "\n"), tree)


def _bound(program: Code, used: set[str]) -> tuple[list[str], list[str]]:
    """The functions (or what is assigned) and the classes that a program binds and tests use, in its order."""
    functions: dict[str, None] = {}
    classes: dict[str, None] = {}
    for one in program.statements:
        if isinstance(one.node, ast.ClassDef):
            classes.update(dict.fromkeys(one.binds & used))
        elif not isinstance(one.node, (ast.Import, ast.ImportFrom)):
            functions.update(dict.fromkeys(sorted(one.binds & used)))
    return list(functions), list(classes)


def _imports(program: Code, used: set[str]) -> list[str]:
    return [
        ast.unparse(one.node)
        for one in program.statements
        if isinstance(one.node, (ast.Import, ast.ImportFrom)) and one.binds & used
    ]


def _first(node: ast.expr) -> str | None:
    """`f` of `f(1).a[0]`."""
    while not isinstance(node, ast.Name):
        match node:
            case ast.Call(func=inner) | ast.Attribute(value=inner) | ast.Subscript(value=inner):
                node = inner
            case _:
                return None
    return node.id
