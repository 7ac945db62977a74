"""What the documentation names exists: tests, functions, files, links and their headings, presets."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from remask.preference.presets import PRESETS as PREFERENCE
from remask.rl.presets import PRESETS as POLICY
from remask.sft.presets import PRESETS as TUNING

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "remask"
EXACT = [ROOT / "docs" / "theory.md", ROOT / "docs" / "paper_index.md"]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FILES = ("md", "py", "yaml", "json", "jsonl", "html")


@cache
def names_in(path: Path) -> set[str]:
    """Functions, classes and constants at the top of a module."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


def is_code(name: str) -> bool:
    """Whether `module.name` or `package.module.name` is written somewhere under src/remask."""
    *module, last = name.split(".")
    return any(last in names_in(path) for path in SOURCE.rglob(f"{'/'.join(module)}.py"))


def named_tests(text: str) -> list[tuple[str, str]]:
    return re.findall(r"(tests/\w+/\w+\.py)::(\w+)", text)


def code_named(text: str) -> list[str]:
    """Dotted names, wherever they stand; not options (`--probe.policy`), files or parts of paths."""
    found = re.findall(r"(?<![\w/.\-])[a-z_]{2,}(?:\.[A-Za-z_]\w*)+(?![\w/])", text)
    return [name for name in found if name.rsplit(".", 1)[1] not in FILES]


def files_named(text: str) -> list[str]:
    return re.findall(rf"`((?:[\w\-]+/)+[\w\-]+\.(?:{'|'.join(FILES)}))`", text)


def anchors_of(text: str) -> set[str]:
    """What a page's headings are called in links: lower case, no punctuation, hyphens for spaces."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", EXACT, ids=lambda page: page.name)
def test_every_test_that_is_named_exists(page: Path) -> None:
    named = named_tests(page.read_text())
    assert len(named) > 20
    assert [(file, name) for file, name in named if name not in names_in(ROOT / file)] == []


@pytest.mark.parametrize("page", EXACT, ids=lambda page: page.name)
def test_every_function_that_is_named_exists(page: Path) -> None:
    named = code_named(page.read_text())
    assert len(named) > 20
    assert [name for name in named if not is_code(name)] == []


@pytest.mark.parametrize("page", EXACT, ids=lambda page: page.name)
def test_every_file_that_is_named_exists(page: Path) -> None:
    named = files_named(page.read_text())
    assert named
    assert [name for name in named if not any((base / name).exists() for base in (ROOT, SOURCE))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if not target.exists() or (anchor and anchor not in anchors_of(target.read_text())):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("presets", [TUNING, POLICY, PREFERENCE], ids=["sft", "rl", "dpo"])
def test_every_preset_has_its_paper(presets: dict[str, object]) -> None:
    text = EXACT[1].read_text()
    assert [name for name in presets if f"`{name}`" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_whole(page: Path) -> None:
    """A line of a table follows another one, or begins a table: then the line of its columns comes next."""
    lines = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL).split("\n")
    torn = [
        line
        for before, line, after in zip(["", *lines], lines, [*lines[1:], ""], strict=False)
        if line.startswith("|") and not before.startswith("|") and not re.fullmatch(r"[|:\- ]+", after)
    ]
    assert torn == []


def test_figures_that_advice_rests_on_are_those_of_the_results() -> None:
    """Each row of the tables of methods and of results links to where its figures stand, and they do stand there."""
    text = (ROOT / "docs" / "faq.md").read_text().partition("## Which method")[2].partition("\n## ")[0]
    text += (ROOT / "docs" / "results.md").read_text()
    measured = (ROOT / "docs" / "lab" / "results.md").read_text()
    rows = [row for row in text.split("\n") if "(lab/results.md#" in row]
    assert len(rows) > 25
    wrong = []
    for row in rows:
        said = re.sub(r"\]\([^)]*\)|`[^`]*`", "", row)
        figures = re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", said)
        wrong += [
            (row, figure) for figure in figures if not re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", measured)
        ]
    assert wrong == []
    assert sum(len(re.findall(r"\d+\.\d+", row)) for row in rows) > 80


def test_every_study_is_indexed() -> None:
    studies = sorted((ROOT / "recipes" / "studies").glob("*.yaml"))
    assert studies
    assert [study.name for study in studies if f"`recipes/studies/{study.name}`" not in EXACT[1].read_text()] == []


def test_what_does_not_exist_is_found() -> None:
    assert is_code("corruption.importance_rate")
    assert is_code("rl.advantage.softmax")
    assert not is_code("corruption.importance_rates")
    assert not is_code("sft.advantage.softmax")
    text = "`corruption.Canvas`, --probe.policy frozen, [x](theory.md), a/b.c"
    assert code_named(text) == ["corruption.Canvas"]
