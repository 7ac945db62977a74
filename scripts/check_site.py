"""Check the built site: its links and anchors, that nothing is fetched from elsewhere, that the reference is whole.

python scripts/check_site.py [build/docs/site]      the exit code is 1 where something is wrong
"""

from __future__ import annotations

import sys
import zlib
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import site_python

FETCHED = {("link", "href"), ("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("use", "href")}


class Page(HTMLParser):
    """The anchors of a page, where its links lead, and what a browser fetches to show it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value or "")
            elif tag == "a" and name == "href":
                self.links.append(value or "")
            elif (tag, name) in FETCHED and ("rel", "canonical") not in attrs:
                self.fetched.append(value or "")


@cache
def read(path: Path) -> Page:
    """Return what a page holds."""
    return Page(path)


def wrong_links(site: Path, page: Path) -> list[str]:
    """Return the links of a page to other pages, files and anchors of the site that are not there."""
    wrong = []
    for link in read(page).links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        start = site if parts.path.startswith("/") else page.parent
        target = (start / unquote(parts.path).lstrip("/")).resolve() if parts.path else page
        target = target / "index.html" if target.is_dir() else target
        anchor = unquote(parts.fragment)
        if not target.is_file() or (anchor and target.suffix == ".html" and anchor not in read(target).anchors):
            wrong.append(link)
    return wrong


def wrong_fetches(page: Path) -> list[str]:
    """Return what a browser would fetch from elsewhere, or not find, to show a page."""
    found = [link for link in read(page).fetched if not link.startswith(("data:", "#"))]
    return [link for link in found if urlsplit(link).netloc or not (page.parent / urlsplit(link).path).exists()]


def described(site: Path) -> set[str]:
    """Return the full names that the site's inventory has."""
    packed = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    return {line.split()[0] for line in zlib.decompress(packed).decode().splitlines()}


def missing_names(site: Path) -> list[str]:
    """Return the public names that no page describes."""
    modules = site_python.public_modules()
    wanted = [*modules, *(f"{module}.{name}" for module in modules for name in site_python.defined(module))]
    there = described(site)
    return [name for name in wanted if name not in there]


def faults(site: Path) -> list[str]:
    """Return a line for everything that is wrong."""
    found = [f"{name}: no page describes it" for name in missing_names(site)]
    for page in sorted(site.rglob("*.html")):
        if page.name != "404.html":  # whose links begin with the server's root
            here = page.relative_to(site)
            found += [f"{here}: the link {link} leads nowhere" for link in dict.fromkeys(wrong_links(site, page))]
            found += [f"{here}: {link} is not in the site" for link in dict.fromkeys(wrong_fetches(page))]
    return found


def main() -> int:
    site = Path(sys.argv[1] if len(sys.argv) > 1 else "build/docs/site").resolve()
    found = faults(site)
    number = len(list(site.rglob("*.html")))
    print("\n".join(found) or f"{site}: {number} pages; every link leads somewhere, every public name is described")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
