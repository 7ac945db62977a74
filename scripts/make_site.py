"""Put the documentation's pages together for Zensical, in build/docs: those of docs/ and those that are generated.

python scripts/make_site.py        `make docs` does it, then builds build/docs/site from them
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import site_commands
import site_names
import site_pages
import site_python

import remask

ROOT = Path(__file__).parents[1]
SETTINGS = ROOT / "docs" / "site.toml"
PARTS = ROOT / "docs" / "site"
BUILD = ROOT / "build" / "docs"
GENERATED = {"reference/commands/*": site_commands, "reference/python/*": site_python}


def settings() -> dict[str, Any]:
    """Return what docs/site.toml says."""
    return tomllib.loads(SETTINGS.read_text())


def all_pages(nav: Any) -> dict[str, tuple[str, str]]:
    """Return {place in the site: (file of the repository that it is made from, text)} of every page."""
    found = {place: (file, site_names.linked(text)) for place, (file, text) in site_pages.texts(nav).items()}
    for part in GENERATED.values():
        found |= part.reference()
    return found


def repository() -> str | None:
    """Return the address of the repository on the web: REMASK_REPOSITORY, or what the remote `origin` leads to."""
    given = os.environ.get("REMASK_REPOSITORY")
    if not given:
        asked = ["git", "-C", str(ROOT), "remote", "get-url", "origin"]
        given = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return web_address(given)


def web_address(remote: str) -> str | None:
    """Return the https address of a repository that is named as git names it; none for a folder."""
    host = r"([\w\-]+(?:\.[\w\-]+)*\.[a-z]+)"
    path = r"([\w.\-][\w.\-/]*?)(?:\.git)?/?"  # no user, password or port stands in it
    match = re.fullmatch(rf"https://(?:[^@/]+@)?{host}(?::443)?/{path}", remote)
    match = match or re.fullmatch(rf"(?:ssh://git@{host}/|git@{host}:){path}", remote)
    if match is None:
        return None
    *hosts, place = match.groups()
    return f"https://{next(one for one in hosts if one)}/{place}"


def with_edit(text: str, file: str, address: str | None) -> str:
    """Return a page that knows where the file that it is made from is edited."""
    if address is None:
        return text
    line = f"edit: {address}/edit/main/{file}\n"
    return text.replace("---\n", f"---\n{line}", 1) if text.startswith("---\n") else f"---\n{line}---\n\n{text}"


def zensical(asked: dict[str, Any]) -> dict[str, Any]:
    """Return Zensical's settings: those of docs/site.toml, the places of the pages, the version and the folders."""
    entries = {name: part.navigation() for name, part in GENERATED.items()}
    made = {
        **asked,
        "site_name": f"{asked['site_name']} {remask.__version__}",
        "docs_dir": "pages",
        "site_dir": "site",
        "nav": site_pages.placed(asked["nav"], entries),
        "theme": {**asked["theme"], "custom_dir": "theme"},
    }
    python = made["plugins"]["mkdocstrings"]["handlers"]["python"]
    python["paths"] = [str(ROOT / "src")]
    python["options"]["docstring_style"] = None  # docstrings are Markdown, without sections
    return made  # without repo_url: beside its link the theme shows stars, which it asks of the forge


def main() -> None:
    asked, address = settings(), repository()
    shutil.rmtree(BUILD, ignore_errors=True)
    for place, (file, text) in all_pages(asked["nav"]).items():
        path = BUILD / "pages" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(with_edit(text, file, address))
    for file in site_pages.pictures(asked["nav"]):
        path = BUILD / "pages" / site_pages.place(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, path)
    shutil.copy(PARTS / "site.css", BUILD / "pages" / "site.css")
    shutil.copytree(PARTS / "theme", BUILD / "theme", dirs_exist_ok=True)
    # JSON is YAML as well.
    (BUILD / "mkdocs.yml").write_text(json.dumps(zensical(asked), indent=1, ensure_ascii=False))
    print(BUILD / "mkdocs.yml")


if __name__ == "__main__":
    main()
