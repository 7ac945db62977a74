"""The pages of the Python reference: one for each public module, which mkdocstrings fills from its docstrings.

Public is what `remask.__all__` names: its packages, with all their modules, and its functions.
"""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import remask

SOURCE = Path(__file__).parents[1] / "src"
FOLDER = "reference/python"


@cache
def tree(module: str) -> ast.Module:
    """Return a module's code, parsed."""
    return ast.parse(file_of(module).read_text())


def file_of(module: str) -> Path:
    """Return the file of a module or package."""
    path = SOURCE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def home(name: str) -> str:
    """Return the full name of something in `remask.__all__`, where it is defined."""
    module, attribute = remask._NAMES[name]
    return f"{module}.{attribute}"


def packages() -> list[str]:
    """Return the public packages, in the order of their names."""
    return [f"remask.{name}" for name in remask.__all__ if (SOURCE / "remask" / name).is_dir()]


def modules_in(package: str) -> list[str]:
    """Return a package's public modules and packages, without itself."""
    folder = SOURCE.joinpath(*package.split("."))
    found = {path.relative_to(SOURCE).with_suffix("").parts for path in folder.rglob("*.py")}
    inside = {parts[:-1] if parts[-1] == "__init__" else parts for parts in found}
    public = (parts for parts in inside if not any(part.startswith("_") for part in parts))
    return sorted(".".join(parts) for parts in public if ".".join(parts) != package)


def public_modules() -> list[str]:
    """Return every module of which there is a page."""
    inside = [module for package in packages() for module in (package, *modules_in(package))]
    alone = sorted({home(name).rpartition(".")[0] for name in remask._NAMES} - set(inside))
    return inside + alone


def defined(module: str) -> list[str]:
    """Return the public names that a module defines, in its order: functions, classes and constants."""
    found: list[str] = []
    for node in tree(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append(node.name)
        elif isinstance(node, ast.Assign):
            found += [name.id for name in node.targets if isinstance(name, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.append(node.target.id)
    return [name for name in dict.fromkeys(found) if not name.startswith("_")]


def handed_on(package: str) -> dict[str, str]:
    """Return {name: full name} of what a package's `__all__` takes from its modules."""
    names: dict[str, str] = {}
    offered: set[str] = set()
    for node in tree(package).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("remask."):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            offered = set(ast.literal_eval(node.value))
    return {name: full for name, full in sorted(names.items()) if name in offered}


def said_of(module: str, name: str) -> str:
    """Return the docstring of a function, class or constant; empty where it has none."""
    body = tree(module).body
    for node, below in zip(body, [*body[1:], ast.Pass()], strict=True):
        if getattr(node, "name", "") == name:
            return ast.get_docstring(node) or ""  # type: ignore[arg-type]
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            text = getattr(getattr(below, "value", None), "value", None) if isinstance(below, ast.Expr) else None
            if isinstance(target, ast.Name) and target.id == name and isinstance(text, str):
                return text
    return ""


def first_sentence(module: str, name: str | None = None) -> str:
    """Return the first sentence of the docstring of a module, or of something in it, for a table."""
    text = ast.get_docstring(tree(module)) or "" if name is None else said_of(module, name)
    return re.split(r"(?<=\.) (?=[A-Z`])", " ".join(text.split("\n\n")[0].split()))[0].replace("|", "\\|")


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| [`{name}`][{name}] | {text} |" for name, text in rows)])


def page(module: str) -> str:
    """Return the page of a module or package."""
    handed = handed_on(module) if module in packages() else {}
    own = json.dumps(defined(module)) if handed and defined(module) else "false"
    only = f"    options:\n      members: {own}\n" if handed else ""
    parts = [f"---\ntitle: {module.removeprefix('remask.')}\n---\n\n::: {module}\n{only}"]
    if handed:
        rows = [(full, first_sentence(*full.rsplit(".", 1))) for full in handed.values()]
        parts.append(f"## Names that `{module}` hands on\n\n{_table(rows)}\n")
    if module in packages() and (inside := modules_in(module)):
        parts.append(f"## Modules\n\n{_table([(name, first_sentence(name)) for name in inside])}\n")
    return "\n".join(parts)


def contents() -> str:
    """Return the first page of the reference: what `import remask` offers."""
    names = [(home(name), first_sentence(*home(name).rsplit(".", 1))) for name in remask._NAMES]
    rows = "\n".join(f"| [`remask.{full.rpartition('.')[2]}`][{full}] | {text} |" for full, text in names)
    return (
        "# Python\n\n`import remask` loads no torch: a name is looked up when it is first used.\n\n"
        f"## Names\n\n| | |\n|---|---|\n{rows}\n| `remask.__version__` | The version, {remask.__version__} here. |\n\n"
        f"## Packages\n\n{_table([(name, first_sentence(name)) for name in packages()])}\n\n"
        "[The table of who may import whom](../../architecture.md) says how they build on each other.\n"
    )


def reference() -> dict[str, tuple[str, str]]:
    """Return {place: (file of the repository, text)} of every page."""
    root = SOURCE.parent
    found = {f"{FOLDER}/index.md": ("src/remask/__init__.py", contents())}
    for module in public_modules():
        found[f"{FOLDER}/{module}.md"] = (str(file_of(module).relative_to(root)), page(module))
    return found


def navigation() -> list[Any]:
    """Return the entries of the pages: each package with its modules below it."""
    entries: list[Any] = [f"{FOLDER}/index.md"]
    for package in packages():
        inside = [f"{FOLDER}/{module}.md" for module in (package, *modules_in(package))]
        entries.append({package.removeprefix("remask."): inside})
    listed = {page for entry in entries if isinstance(entry, dict) for pages in entry.values() for page in pages}
    entries += [
        {module.removeprefix("remask."): f"{FOLDER}/{module}.md"}
        for module in public_modules()
        if f"{FOLDER}/{module}.md" not in listed
    ]
    return entries
