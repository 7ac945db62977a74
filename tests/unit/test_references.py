"""What docstrings and comments of the source name exists: sections, files, modules, functions and other names.

And public docstrings are sentences, as far as that can be checked without understanding them.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "remask"
FILES = sorted(SOURCE.rglob("*.py"))
SECTION = re.compile(r"docs/(\w+)\.md §(\d+)(?:[–-](\d+))?")
FILE = re.compile(r"(?<![\w/.{<])([\w\-]+(?:/[\w\-]+)*\.(?:md|py|yaml))(?![\w/])")
QUOTED = re.compile(r"`([A-Za-z_][\w.]*)(?:\(\))?`")
ELSEWHERE = {
    *("file.py", "path/to/file.py", "config.yaml", "setup.py", "HumanEval_0/0.py", "eval/parse_and_get_acc.py"),
    *("nolock", "local_lock", "load_state_dict", "trainer.extra", "Done"),
}
"""Files of a user's, of a run and of other programs; mount options, names of torch, and options of commands."""


FRAGMENT = ("Of", "Those", "Whether", "Which", "What", "How", "Where")
"""Words that begin the second half of a sentence whose first half is the name above it."""


def docstrings_of(tree: ast.Module) -> set[ast.Constant]:
    """Every text that stands by itself: of modules, classes and functions, and below fields and constants."""
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }


@cache
def prose(path: Path) -> tuple[tuple[int, str], ...]:
    """(line, text) of every docstring and comment."""
    text = path.read_text()
    found = [(node.lineno, str(node.value)) for node in docstrings_of(ast.parse(text))]
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    found += [(token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT]
    return tuple(sorted(found))


def names_of(path: Path) -> Iterator[str]:
    """Every name and every word of a text that a file's code works with: not those of its docstrings."""
    tree = ast.parse(path.read_text())
    said = docstrings_of(tree)
    for node in ast.walk(tree):
        if node not in said:
            for value in vars(node).values():
                yield from re.findall(r"\w+", value) if isinstance(value, str) else ()


@cache
def known_names() -> frozenset[str]:
    modules = {part for path in FILES for part in path.relative_to(SOURCE).with_suffix("").parts}
    return frozenset(modules | {name for path in FILES for name in names_of(path)} | {"remask"})


@cache
def headings(page: str) -> set[int]:
    """The numbers of a page's sections."""
    return {int(number) for number in re.findall(r"^## (\d+)\. ", (ROOT / "docs" / page).read_text(), re.MULTILINE)}


def wrong_sections(text: str) -> list[str]:
    """References to a section that no page has, or of no page."""
    wrong = [match[0] for match in SECTION.finditer(text) for n in match.groups()[1:] if n and not _there(match[1], n)]
    return wrong + re.findall(r".{0,20}§.{0,5}", SECTION.sub("", text))


def _there(page: str, number: str) -> bool:
    return (ROOT / "docs" / f"{page}.md").is_file() and int(number) in headings(f"{page}.md")


def wrong_files(text: str, here: Path) -> list[str]:
    bases = (ROOT, SOURCE, here.parent)
    named = set(FILE.findall(text)) - ELSEWHERE
    return sorted(name for name in named if not any((base / name).exists() for base in bases))


@cache
def names_in_module(stem: str) -> frozenset[str]:
    """What the modules and packages of this name hold: their modules, top names, and the fields of their classes."""
    found: set[str] = set()
    for path in FILES:
        if path.stem == stem or path.parent.name == stem:
            found.add(path.stem)
        if path.stem == stem or (path.stem == "__init__" and path.parent.name == stem):
            found |= {name for name in names_of(path) if name.isidentifier()}
    return frozenset(found)


def wrong_names(text: str) -> list[str]:
    """Names in backticks that no code has, and those said to be in a module that does not have them."""
    wrong = []
    for name in QUOTED.findall(text):
        if name in ELSEWHERE or name.rpartition(".")[2] in ("py", "json", "yaml", "md"):
            continue
        *module, last = name.rstrip(".").removeprefix("remask.").split(".")
        if not {*module, last} <= known_names() or (
            module and (there := names_in_module(module[-1])) and last not in there
        ):
            wrong.append(name)
    return wrong


def everywhere(check: object) -> list[str]:
    return [
        f"{path.relative_to(SOURCE)}:{line}: {found}"
        for path in FILES
        for line, text in prose(path)
        for found in check(path, text)  # type: ignore[operator]
    ]


def test_sections_that_are_named_exist() -> None:
    assert everywhere(lambda path, text: wrong_sections(text)) == []


def test_files_that_are_named_exist() -> None:
    assert everywhere(lambda path, text: wrong_files(text, path)) == []


def test_names_in_backticks_exist() -> None:
    assert everywhere(lambda path, text: wrong_names(text)) == []


def test_no_document_is_named_that_is_not_here() -> None:
    """Pages are named by their path: not by what somebody once called them."""
    unknown = re.compile(r"\(?\b(?:methods?|architecture|notes?|design),? (?:§|idea|section|chapter) ?\d|\(methods: ")
    assert everywhere(lambda path, text: unknown.findall(text)) == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("as in docs/theory.md §5", []),
        ("docs/theory.md §5–6.", []),
        ("docs/theory.md §99", ["docs/theory.md §99"]),
        ("docs/nothing.md §1", ["docs/nothing.md §1"]),
        ("(methods §2)", ["(methods §2)"]),
    ],
)
def test_the_check_of_sections_sees_what_is_wrong(text: str, wrong: list[str]) -> None:
    assert wrong_sections(text) == wrong


def test_the_check_of_files_sees_what_is_wrong() -> None:
    text = "docs/speed.md, `models/fused.py`, tokens.py beside it, gone.py, docs/gone.md, file.py:Class"
    assert wrong_files(text, SOURCE / "kernels" / "__init__.py") == ["docs/gone.md", "gone.py"]


def test_the_check_of_names_sees_what_is_wrong() -> None:
    text = "`corrupt`, `rl.presets`, `objective.corrupt`, `corrupted_by_nobody`, `objective.lost()`"
    assert wrong_names(text) == ["corrupted_by_nobody", "objective.lost"]


def public(node: ast.Module | ast.ClassDef, within: str = "") -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef]]:
    """Name and node of every public class, function and method."""
    for inner in node.body:
        if isinstance(inner, ast.ClassDef | ast.FunctionDef) and not inner.name.startswith("_"):
            yield within + inner.name, inner
            if isinstance(inner, ast.ClassDef):
                yield from public(inner, f"{within}{inner.name}.")


def undocumented(tree: ast.Module) -> list[str]:
    """Public classes and functions without a docstring. A method may have its base's."""
    derived = {name for name, node in public(tree) if isinstance(node, ast.ClassDef) and node.bases}
    return [
        name
        for name, node in public(tree)
        if ast.get_docstring(node) is None
        and name.rpartition(".")[0] not in derived
        and not any(ast.unparse(decorator).endswith("overload") for decorator in getattr(node, "decorator_list", ()))
    ]


def no_sentence(text: str) -> list[str]:
    """What shows that a docstring is no whole sentence."""
    first, words = text.split("\n\n")[0].rstrip(), text.split()
    faults = {
        f"begins with {words[0]}": words[0] in FRAGMENT,
        "does not begin with a capital letter": not words[0][0].isupper(),
        "its first paragraph does not end": not first.endswith((".", ":")),
        "does not end with a period": not text.rstrip().endswith("."),
        "is shorter than four words": len(words) < 4,
    }
    return [fault for fault, there in faults.items() if there]


def test_everything_public_has_a_docstring() -> None:
    found = {str(path.relative_to(SOURCE)): undocumented(ast.parse(path.read_text())) for path in FILES}
    assert {path: names for path, names in found.items() if names} == {}


def test_public_docstrings_are_sentences() -> None:
    found = [
        f"{path.relative_to(SOURCE)}: {name}: {fault}"
        for path in FILES
        for name, node in public(ast.parse(path.read_text()))
        for fault in no_sentence(ast.get_docstring(node) or "It may have its base's.")
    ]
    assert found == []


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("Return the likelihood in nats.", []),
        ("Return the sizes.\n\nrows: their number.", []),
        ("Of one GPU and its memory.", ["begins with Of"]),
        ("the tensors that are there.", ["does not begin with a capital letter"]),
        ("Return the tensors by name", ["its first paragraph does not end", "does not end with a period"]),
        ("Return the sizes\n\nrows: their number.", ["its first paragraph does not end"]),
        ("Flat, for files.", ["is shorter than four words"]),
    ],
)
def test_the_check_of_sentences_sees_what_is_wrong(text: str, faults: list[str]) -> None:
    assert no_sentence(text) == faults


def test_the_check_of_docstrings_sees_what_lacks_one() -> None:
    source = """
def plain(): ...
def _private(): ...
class Bare:
    def method(self): ...
class Derived(Bare):
    def method(self): ...
class Said:
    '''It says what it is.'''
    def method(self): ...
"""
    assert undocumented(ast.parse(source)) == ["plain", "Bare", "Bare.method", "Derived", "Said.method"]
