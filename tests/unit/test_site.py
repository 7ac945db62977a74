"""The site of the documentation, without building it: pages, navigation, links, and the two references.

`make docs` builds it, and looks at what was built (`scripts/check_site.py`).
"""

from __future__ import annotations

import ast
import contextlib
import os
import re
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from test_docs import anchors_of

import remask
from remask.cli import COMMANDS, main

pytestmark = pytest.mark.slow  # the pages are put together for it
ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
MODULES = (
    "check_site",
    "house_picture",
    "make_site",
    "site_commands",
    "site_names",
    "site_pages",
    "site_python",
    "site_search",
)


@pytest.fixture(scope="module")
def scripts() -> Any:
    """The scripts that make the site, which import each other by their plain names."""
    sys.path.insert(0, str(SCRIPTS))
    import check_site
    import make_site

    yield {"make": make_site, "check": check_site}
    sys.path.remove(str(SCRIPTS))
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def make(scripts: dict[str, ModuleType]) -> Any:
    return scripts["make"]


@pytest.fixture(scope="module")
def nav(make: Any) -> Any:
    return make.settings()["nav"]


@pytest.fixture(scope="module")
def texts(make: Any, nav: Any) -> dict[str, str]:
    """{place: text} of every page of the site."""
    return {place: text for place, (_, text) in make.all_pages(nav).items()}


def test_every_page_is_in_the_navigation_and_exists(make: Any, nav: Any) -> None:
    named = [page for page in make.site_pages.pages(nav) if not page.endswith("/*")]
    written = [str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").rglob("*.md"))]
    assert [page for page in written if page not in named] == []
    assert [page for page in named if not (ROOT / page).is_file()] == []
    assert sorted(set(named)) == sorted(named)


def test_every_generated_page_is_in_the_navigation(make: Any, nav: Any, texts: dict[str, str]) -> None:
    entries = {name: part.navigation() for name, part in make.GENERATED.items()}
    listed = set(make.site_pages.pages(make.site_pages.placed(nav, entries)))
    assert listed <= set(texts)
    assert sorted(place for place in set(texts) - listed if not place.startswith("files/")) == []


def test_every_link_and_anchor_of_the_site_leads_somewhere(make: Any, nav: Any, texts: dict[str, str]) -> None:
    pictures = {make.site_pages.place(file) for file in make.site_pages.pictures(nav)}
    wrong = []
    for place, text in texts.items():
        for part in make.site_pages.CODE.split(text)[::2]:
            for match in make.site_pages.LINK.finditer(part):
                target = os.path.normpath(os.path.join(os.path.dirname(place), match[2]))
                anchor = match[3].strip("#)")
                if target not in texts and target not in pictures:
                    wrong.append((place, match[2]))
                elif anchor and anchor not in anchors_of(texts[target]):
                    wrong.append((place, match[2] + "#" + anchor))
    assert wrong == []


def test_links_to_files_that_are_no_pages_lead_to_pages_with_their_text(make: Any, texts: dict[str, str]) -> None:
    assert "](files/examples/sft_loop.py.md)" in texts["index.md"]
    assert f"```python\n{(ROOT / 'examples' / 'sft_loop.py').read_text()}```" in texts["files/examples/sft_loop.py.md"]
    led = make.site_pages.led("[a](../src/b.py#x) `[c](d.md)` ![e](figures/f.svg)\n\n    [g](h.md)\n", "docs/i.md")
    assert led == "[a](files/src/b.py.md#x) `[c](d.md)` ![e](figures/f.svg)\n\n    [g](h.md)\n"


def test_names_in_the_text_lead_to_the_reference(make: Any, texts: dict[str, str]) -> None:
    names = make.site_names
    assert names.meant("corruption.uniform_rate") == "remask.diffusion.corruption.uniform_rate"
    assert names.meant("rl/advantage.py") == "remask.rl.advantage"
    assert names.meant("data.collate.Collator.__call__") == "remask.data.collate.Collator"
    assert names.meant("config.yaml") is None
    assert names.meant("presets.resolve") is None  # there are several
    text = "# `corruption.uniform_rate`\n\n`corruption.uniform_rate`, [`corruption.uniform_rate`](a.md), `uniform_rate`"
    link = "[`corruption.uniform_rate`][remask.diffusion.corruption.uniform_rate]"
    assert names.linked(text) == text.replace("\n`corruption.uniform_rate`", f"\n{link}")
    assert link in texts["theory.md"]
    assert names.linked("see theory §1") == "see [theory §1](theory.md#1-the-chain-that-masks)"
    assert "[theory §6](theory.md#6-the-canvas)" in texts["paper_index.md"]


def test_the_picture_of_the_house_is_of_the_table_of_layers(scripts: dict[str, Any]) -> None:
    import house_picture

    assert house_picture.picture() == house_picture.TARGET.read_text(), "python scripts/house_picture.py"
    layers = house_picture.layers()
    assert layers["measuring"] == ["evaluation", "analysis"]
    assert next(iter(layers)) == "base"


def test_every_public_name_is_on_a_page(make: Any, texts: dict[str, str]) -> None:
    python = make.site_python
    described = {name for text in texts.values() for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)}
    modules = {name for name in described if python.file_of(name).is_file()}
    packages = {name for name in remask.__all__ if (ROOT / "src" / "remask" / name).is_dir()}
    assert {f"remask.{name}" for name in packages} <= modules
    for name in set(remask.__all__) - packages:
        assert f"`remask.{name}`" in texts["reference/python/index.md"], name
    for package in packages:
        files = (ROOT / "src" / "remask" / package).rglob("*.py")
        inside = {".".join(path.relative_to(ROOT / "src").with_suffix("").parts) for path in files}
        assert {name.removesuffix(".__init__") for name in inside} <= modules


def test_every_name_that_documentation_and_examples_import_is_on_a_page(texts: dict[str, str]) -> None:
    described = {name for text in texts.values() for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)}
    code = [path.read_text() for path in sorted((ROOT / "examples").rglob("*.py"))]
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        code += re.findall(r"^```python[^\n]*\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
    imported = set()
    for text in code:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("remask."):
                imported.add(node.module)
    assert len(imported) > 10
    assert sorted(imported - described) == []


def test_every_command_has_a_page_with_its_examples_and_options(
    texts: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for command in COMMANDS:
        page = texts[f"reference/commands/{command}.md"]
        with contextlib.suppress(SystemExit):
            main([command, "--help"])
        help_ = re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out)
        flags = set(re.findall(r"^ *(--[a-z][\w.\-]*)", help_, re.MULTILINE)) - {"--help"}
        assert sorted(flag for flag in flags if f"`{flag}`" not in page and f" {flag} " not in page) == [], command
        assert "## Examples\n\n```bash\nremask " in page, command


def test_commands_that_pages_show_have_the_options_that_they_are_given(make: Any, texts: dict[str, str]) -> None:
    """A page's commands stand with a reader's own files, so that they are not run: their options are looked up."""
    wrong, seen = [], 0
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        shown = re.sub(r"\\\n", " ", path.read_text())
        for command, rest in re.findall(r"(?:^|`)(?: {4})?remask ([a-z][a-z-]*)( [^`\n]*)?", shown, re.MULTILINE):
            if command not in COMMANDS:
                wrong.append((path.name, command))
                continue
            page = texts[f"reference/commands/{command}.md"]
            for flag in re.findall(r"(?<= )--[a-zA-Z][\w.\-]*", rest.partition(" #")[0]):
                seen += 1
                if flag != "--help" and f"`{flag.replace('_', '-')}`" not in page and f" {flag} " not in page:
                    wrong.append((path.name, f"{command} {flag}"))
    assert not wrong, f"no such command or option: {wrong}"
    assert seen > 200


def test_a_named_value_stands_with_its_meaning(texts: dict[str, str]) -> None:
    page = texts["reference/commands/sft.md"]
    assert "`--objective` (text, default `sft`)\n:   The method of fine-tuning.\n\n    - `sft`: every" in page
    assert "`--overwrite`, `--no-overwrite` (switch, default `false`)" in page


def test_text_of_a_command_is_shown_as_it_stands(make: Any) -> None:
    assert make.site_commands.plain("name=<file>, a_b, [x] and `c<d>`") == r"name=&lt;file&gt;, a\_b, \[x\] and `c<d>`"


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("https://forge.example/someone/remask.git", "https://forge.example/someone/remask"),
        ("git@forge.example:someone/remask.git", "https://forge.example/someone/remask"),
        ("ssh://git@forge.example/a/group/remask.git", "https://forge.example/a/group/remask"),
        ("https://john.doe:secret@forge.example/someone/remask.git", "https://forge.example/someone/remask"),
        ("https://forge.example:8443/someone/remask", None),
        ("/srv/remask", None),
        ("", None),
    ],
)
def test_the_address_of_the_repository_is_read_from_its_remote(make: Any, remote: str, address: str | None) -> None:
    assert make.web_address(remote) == address


def test_a_page_knows_where_it_is_edited(make: Any) -> None:
    assert make.with_edit("# A\n", "docs/a.md", None) == "# A\n"
    edited = "---\nedit: https://f.example/r/edit/main/docs/a.md\n---\n\n# A\n"
    assert make.with_edit("# A\n", "docs/a.md", "https://f.example/r") == edited
    assert make.with_edit("---\ntitle: a\n---\n", "b.py", "https://f.example/r").count("---") == 2


def test_search_leaves_out_what_only_repeats_a_name(scripts: dict[str, Any]) -> None:
    import site_search

    place = "reference/python/a.html#a.b"
    field = {"location": place, "title": "b", "text": "<pre><code>b: float\n</code></pre>"}
    said = {"location": place, "title": "b", "text": "<pre><code>b: float</code></pre> <p>The width.</p>"}
    page = {"location": "rl.html#b", "title": "b", "text": "<pre><code>b</code></pre>"}
    assert site_search.thinned({"config": 1, "items": [field, said, page]}) == {"config": 1, "items": [page, said]}


def test_the_check_of_the_built_site_sees_what_is_wrong(scripts: dict[str, Any], tmp_path: Path) -> None:
    check = scripts["check"]
    (tmp_path / "b.html").write_text('<h1 id="there">B</h1>')
    (tmp_path / "a.html").write_text(
        '<a href="b.html#there">1</a> <a href="b.html#gone">2</a> <a href="c.html">3</a> <a href="#no">4</a>'
        '<script src="https://elsewhere.example/x.js"></script><img src="gone.png"><a href="https://far.example">5</a>'
    )
    assert check.wrong_links(tmp_path, tmp_path / "a.html") == ["b.html#gone", "c.html", "#no"]
    assert check.wrong_fetches(tmp_path / "a.html") == ["https://elsewhere.example/x.js", "gone.png"]
    names = zlib.compress(b"remask.load py:module 1 x -\n")
    (tmp_path / "objects.inv").write_bytes(b"# 1\n# 2\n# 3\n# 4\n" + names)
    assert check.described(tmp_path) == {"remask.load"}
    assert "remask.models.load.load" in check.missing_names(tmp_path)
