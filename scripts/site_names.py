"""Links from names in the text of a page to where the Python reference describes them.

`corruption.uniform_rate` and `diffusion/corruption.py` in backticks become links, where exactly one thing is meant.
So do sections that are named, such as theory §3.
"""

from __future__ import annotations

import ast
import re
from functools import cache

import site_pages
import site_python


@cache
def described() -> frozenset[str]:
    """Return the full names of all that the reference describes: modules, what they define, and members of classes."""
    found: set[str] = set()
    for module in site_python.public_modules():
        found |= {module, *(f"{module}.{name}" for name in site_python.defined(module))}
        for node in site_python.tree(module).body:
            if isinstance(node, ast.ClassDef):
                members = [inner.name for inner in node.body if isinstance(inner, ast.FunctionDef)]
                found |= {f"{module}.{node.name}.{name}" for name in members if not name.startswith("_")}
    return frozenset(found)


@cache
def ends() -> dict[str, list[str]]:
    """Return {end of a full name: the full names that end so}."""
    found: dict[str, list[str]] = {}
    for full in described():
        parts = full.removeprefix("remask.").split(".")
        for start in range(len(parts)):
            found.setdefault(".".join(parts[start:]), []).append(full)
    return found


@cache
def meant(name: str) -> str | None:
    """Return the full name of what is meant by a name of two parts or more, or by a file; none where several fit."""
    if re.fullmatch(r"[\w/]+\.py", name):
        name = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    elif "." not in name:
        return None
    head, _, last = name.removeprefix("remask.").rpartition(".")
    name = head if last.startswith("_") else f"{head}.{last}".lstrip(".")
    fitting = ends().get(name, [])
    if f"remask.{name}" in fitting:
        return f"remask.{name}"
    return fitting[0] if len(fitting) == 1 else None


@cache
def sections() -> dict[str, str]:
    """Return {number: anchor} of the sections of docs/theory.md."""
    titles = re.findall(r"^## (.+)$", (site_pages.ROOT / "docs" / "theory.md").read_text(), re.MULTILINE)
    anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
    return {anchor.partition("-")[0]: anchor for anchor in anchors}


def with_sections(text: str) -> str:
    """Return a text with the sections of the theory that it names as links."""
    return re.sub(r"(?<!\[)\btheory §(\d+)", lambda match: f"[{match[0]}](theory.md#{sections()[match[1]]})", text)


def linked(text: str) -> str:
    """Return a page's text with the names in it, but for those in headings and in links, leading to the reference."""
    parts = site_pages.CODE.split(text)
    parts[::2] = [with_sections(part) for part in parts[::2]]
    for n in range(1, len(parts), 2):
        name = parts[n].strip("`")
        line = parts[n - 1].rpartition("\n")[2]
        alone = not parts[n - 1].endswith("[") and not parts[n + 1].startswith("]") and not line.startswith("#")
        if parts[n] == f"`{name}`" and alone and (full := meant(name)):
            parts[n] = f"[`{name}`][{full}]"
    return "".join(parts)
