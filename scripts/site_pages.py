"""Where every file of the documentation stands in the site, and its text with the links led there.

`docs/x.md` is the page `x.md`, README.md the first page. A file that is no page but is linked to, such as an example,
has a page with its text below `files/`. So no link leaves the site for the repository.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).parents[1]
FIRST = {"README.md": "index.md", "CHANGELOG.md": "changes.md", "CONTRIBUTING.md": "contributing.md"}
"""The pages that stand at the top of the repository."""
PICTURES = (".svg", ".png")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".cff": "yaml", ".toml": "toml"}
LINK = re.compile(r"(\]\()((?!https?:|mailto:)[^)#\s]+)((?:#[^)\s]*)?\))")
CODE = re.compile(r"(^```(?s:.*?)^```$|^ {4}.*$|`[^`\n]+`)", re.MULTILINE)


def place(path: str) -> str:
    """Return where a file of the repository stands in the site."""
    if path in FIRST:
        return FIRST[path]
    inside = PurePosixPath(path)
    if inside.parts[0] == "docs":
        return str(PurePosixPath(*inside.parts[1:]))
    return f"files/{path}" if inside.suffix in PICTURES else f"files/{path}.md"


def target(link: str, source: str) -> str:
    """Return the file of the repository that a link in the file `source` leads to."""
    return os.path.normpath(os.path.join(os.path.dirname(source), link))


def linked_files(text: str, source: str) -> set[str]:
    """Return the files of the repository that a page links to or shows."""
    return {target(match[2], source) for part in CODE.split(text)[::2] for match in LINK.finditer(part)}


def led(text: str, source: str) -> str:
    """Return a page's text with its links to files of the repository leading to their places in the site."""
    here = os.path.dirname(place(source))

    def lead(match: re.Match[str]) -> str:
        return f"{match[1]}{os.path.relpath(place(target(match[2], source)), here or '.')}{match[3]}"

    parts = CODE.split(text)
    return "".join(LINK.sub(lead, part) if n % 2 == 0 else part for n, part in enumerate(parts))


def shown(path: str) -> str:
    """Return the page that shows a file's text."""
    text = (ROOT / path).read_text()
    fence = "`" * max(3, *(1 + len(run) for run in re.findall("`+", text)), 0)
    return f"# {path}\n\n{fence}{LANGUAGES.get(PurePosixPath(path).suffix, 'text')}\n{text.rstrip()}\n{fence}\n"


def pages(nav: Any) -> list[str]:
    """Return every path that the navigation names, in its order."""
    if isinstance(nav, str):
        return [nav]
    return [page for entry in (nav.values() if isinstance(nav, dict) else nav) for page in pages(entry)]


def placed(nav: Any, generated: dict[str, list[Any]]) -> Any:
    """Return the navigation with the places of its pages, and with generated pages where it names their folder."""
    if isinstance(nav, str):
        return generated[nav] if nav in generated else place(nav)
    if isinstance(nav, dict):
        return {title: placed(entry, generated) for title, entry in nav.items()}
    return [placed(entry, generated) for entry in nav]


def texts(nav: Any) -> dict[str, tuple[str, str]]:
    """Return {place: (file of the repository, text)} of the pages that are written by hand and of what they link to."""
    found: dict[str, tuple[str, str]] = {}
    left = [page for page in pages(nav) if not page.endswith("/*")]
    while left:
        path = left.pop()
        if place(path) in found or path.endswith(PICTURES):
            continue
        if not path.endswith(".md"):
            found[place(path)] = (path, shown(path))
            continue
        text = (ROOT / path).read_text()
        found[place(path)] = (path, led(text, path))
        left += sorted(linked_files(text, path))
    return found


def pictures(nav: Any) -> set[str]:
    """Return the pictures that pages show."""
    written = [page for page in pages(nav) if page.endswith(".md")]
    linked = {file for page in written for file in linked_files((ROOT / page).read_text(), page)}
    return {file for file in linked if file.endswith(PICTURES)}
