"""Every error of a user's says what to do about it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import remask

SOURCE = Path(remask.__file__).parent
ALL_IN_ONE = {"commands/options.py", "config/read.py", "study/grid.py"}
"""Where several mistakes are told in one error, each with what to do about it."""


def errors_in(path: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "UserError":
            yield node


def test_every_error_says_what_to_do() -> None:
    silent = [
        f"{path.relative_to(SOURCE)}:{call.lineno}"
        for path in sorted(SOURCE.rglob("*.py"))
        for call in errors_in(path)
        if not any(keyword.arg == "mend" for keyword in call.keywords)
    ]
    assert [place for place in silent if place.partition(":")[0] not in ALL_IN_ONE] == []
    assert len(silent) <= len(ALL_IN_ONE)


def test_no_error_is_in_words_of_its_own() -> None:
    """Expectations are told as what to give: not as what a thing "is", beside a value that shows it is not."""
    said = [ast.unparse(call) for path in sorted(SOURCE.rglob("*.py")) for call in errors_in(path)]
    assert len(said) > 300
    assert [one for one in said if "truth value" in one or "mend='it is " in one or "mend='see --help'" in one] == []
