"""Imports go one way: from the command line and the report down to the mathematics, never back up."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

import remask

SOURCE = Path(remask.__file__).parent
PAGE = SOURCE.parents[1] / "docs" / "architecture.md"
EVERYTHING, THE_BASE = "everything", "the base"


def base_of(page: str) -> set[str]:
    """What the page calls the base: modules that any package may import."""
    (line,) = re.findall(r'^"The base" is (.*?)\. ', page, re.MULTILINE)
    return set(re.findall(r"`(\w+)`", line))


def rows_of(page: str) -> Iterator[tuple[str, str]]:
    """(package, what the page says it may import) of every row of the table."""
    for line in page.splitlines():
        if (row := re.fullmatch(r"\| [\w ]*\| `(\w+)` \|(.*)\|", line)) is not None:
            yield row[1], row[2]


def table_of(page: str) -> dict[str, set[str]]:
    """Package → what it may import besides itself, for those that may not import everything."""
    return {
        package: set(re.findall(r"`(\w+)`", told)) | (base_of(page) if THE_BASE in told else set())
        for package, told in rows_of(page)
        if EVERYTHING not in told
    }


BASE = base_of(PAGE.read_text())
LOWER = table_of(PAGE.read_text())
TOP = {package for package, told in rows_of(PAGE.read_text()) if EVERYTHING in told}
"""What may import everything, and nothing imports."""

NEEDS = {"remask.kernels.tokens": "triton"}
"""Modules that are imported only where a library is that not everyone has."""


def top_level() -> list[str]:
    names = [path.stem for path in SOURCE.glob("*.py")] + [
        path.name for path in SOURCE.iterdir() if path.is_dir() and any(path.glob("*.py"))
    ]
    return sorted(set(names) - {"__init__", "__main__"})


def files(package: str) -> list[Path]:
    folder = SOURCE / package
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def imported_names(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import in a file, at the top or inside a function."""
    here = ["remask", *path.relative_to(SOURCE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = ".".join([*here[: len(here) - node.level + 1], *([module] if module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def own_imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, package of Remask) of every import of Remask in a file; its version is anyone's."""
    for line, name in imported_names(path):
        root, _, rest = name.partition(".")
        if root == "remask" and rest != "__version__":
            yield line, rest.partition(".")[0]


def test_the_reading_of_imports_sees_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "rows.py"
    path.write_text(
        "import torch, remask.sft.run\nfrom remask import tasks\nfrom remask.models.load import load\n"
        "from ..sampling import run\nfrom . import chat\ndef f():\n    from remask.report import html\n"
    )
    found = [package for _, package in own_imports(path)]
    assert sorted(found) == ["data", "models", "report", "sampling", "sft", "tasks"]


def test_the_table_is_read_as_it_stands() -> None:
    page = "| layer | package | may import |\n|---|---|---|\n| base | `errors` | |\n| | `sft` | the base, `data` |\n"
    page += '| top | `cli` | everything |\n\n"The base" is `errors` and `files`. No `data`.\n'
    assert table_of(page) == {"errors": set(), "sft": {"errors", "files", "data"}}
    assert sorted(TOP) == ["cli", "commands", "study"]
    assert LOWER["diffusion"] == {"choices", "errors", "kernels"}
    assert "diffusion" not in BASE


def test_every_package_has_its_place_and_every_place_its_package() -> None:
    assert set(top_level()) == set(LOWER) | TOP


def test_every_package_is_described() -> None:
    text = PAGE.read_text().partition("## The base")[2]
    folders = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert [name for name in sorted(folders) if f"**`{name}/`**" not in text] == []
    assert [name for name in sorted(BASE - folders) if f"`{name}`" not in text] == []


def test_nothing_lower_imports_what_may_import_everything() -> None:
    assert not TOP & {name for lower in LOWER.values() for name in lower}


@pytest.mark.parametrize("package", [name for name in LOWER if name in top_level()])
def test_no_arrow_runs_back_up(package: str) -> None:
    allowed = LOWER[package] | {package}
    wrong = [
        f"{path.relative_to(SOURCE)}:{line} imports remask.{imported}"
        for path in files(package)
        for line, imported in own_imports(path)
        if imported not in allowed
    ]
    assert not wrong


def test_the_order_has_no_circle() -> None:
    placed: set[str] = set()
    while len(placed) < len(LOWER):
        free = {name for name, lower in LOWER.items() if name not in placed and lower <= placed}
        assert free, f"a circle among {set(LOWER) - placed}"
        placed |= free


def test_the_mathematics_knows_torch_and_shapes_only() -> None:
    allowed = {"torch", "numpy", "jaxtyping", "remask", *sys.stdlib_module_names}
    for path in files("diffusion"):
        names = {name for _, name in imported_names(path)}
        assert {name.partition(".")[0] for name in names} <= allowed, path
        assert not [name for name in names if name.startswith("torch.distributed")], path


def in_a_clean_process(code: str) -> object:
    """What the last line printed, as JSON, in a new interpreter."""
    path = [str(SOURCE.parent), *filter(None, sys.path)]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_remask_and_its_config_loads_no_torch() -> None:
    code = (
        "import json, remask, remask.config, remask.errors, remask.progress, remask.environment\n"
        "dir(remask); remask.UserError\n"
        "remask.config.from_dict(remask.config.SftConfig, {}, where='here')\n"
        "print(json.dumps(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules))))"
    )
    assert in_a_clean_process(code) == []


ORDER = [package for package in LOWER if (SOURCE / package).is_dir()]


def bottom_up() -> str:
    """Imports each package in turn, all its modules, and prints what of Remask is loaded then."""
    modules = {
        package: [
            ".".join(["remask", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__")
            for path in files(package)
        ]
        for package in ORDER
    }
    for names in modules.values():
        names[:] = [name for name in names if name not in NEEDS or importlib.util.find_spec(NEEDS[name])]
    return (
        f"import importlib\nmodules = {modules!r}\nloaded = {{}}\n"
        "for package, names in modules.items():\n"
        "    for name in names: importlib.import_module(name)\n"
        "    loaded[package] = sorted({m.split('.')[1] for m in sys.modules if m.startswith('remask.')})\n"
        "print(json.dumps(loaded))"
    )


NAMES = "import remask; print(json.dumps([getattr(remask, name).__name__ for name in remask._PACKAGES]))"
FORKED = """
import json, os
import datasets, matplotlib.figure, peft, torch, transformers.models.llama.modeling_llama, transformers.trainer
assert not [name for name in sys.modules if name.partition(".")[0] == "remask"]
printed = []
for code in {codes!r}:
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        os.dup2(writer, 1)
        exec(code)
        sys.stdout.flush()
        os._exit(0)
    os.close(writer)
    printed.append(json.loads(open(reader).read()))
    assert not os.waitpid(pid, 0)[1]
print(json.dumps(printed))
"""


@pytest.fixture(scope="module")
def printed() -> Any:
    """What two programs print, each in a fork of an interpreter that has loaded what Remask uses and nothing of it."""
    return in_a_clean_process(FORKED.format(codes=[bottom_up(), NAMES]))


@pytest.mark.slow
def test_packages_import_from_the_bottom_up_without_what_is_above(printed: Any) -> None:
    """All modules of each in turn, in one process: nothing that comes later is loaded yet."""
    assert list(printed[0]) == ORDER
    for place, package in enumerate(ORDER):
        assert set(printed[0][package]) <= BASE | set(ORDER[: place + 1]), package


@pytest.mark.slow
def test_public_names_resolve(printed: Any) -> None:
    assert callable(remask.load)
    assert callable(remask.generate)
    assert callable(remask.sampling.denoise)
    assert remask.tasks.__name__ == "remask.tasks"
    packages = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert set(remask._PACKAGES) == packages - {"commands"}
    assert set(remask._PACKAGES) | set(remask._NAMES) | {"__version__"} == set(remask.__all__)
    assert printed[1] == [f"remask.{name}" for name in remask._PACKAGES]


def test_the_mathematics_names_every_module() -> None:
    listed = re.findall(r"^- `(\w+)`: ", remask.diffusion.__doc__ or "", re.MULTILINE)
    assert sorted(listed) == sorted(path.stem for path in files("diffusion") if path.stem != "__init__")


def test_every_package_says_what_it_is() -> None:
    packages = [path for path in SOURCE.glob("*/__init__.py") if not ast.get_docstring(ast.parse(path.read_text()))]
    assert packages == []


def test_an_unknown_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="lod"):
        _ = remask.lod


MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_IGNORES, MOST_FOREIGN_UNDERSCORES = 350, 60, 10, 13
PUBLIC_IN_SPITE_OF_THEIR_NAMES = {"os._exit"}
"""What the standard library documents."""
Parsed = dict[str, ast.Module]
Function = ast.FunctionDef | ast.AsyncFunctionDef


@pytest.fixture(scope="module")
def parsed() -> Parsed:
    """Every module's tree, by its path."""
    return {str(path.relative_to(SOURCE)): ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))}


def test_files_are_short() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in SOURCE.rglob("*.py")}
    assert {str(path): length for path, length in lengths.items() if length > MOST_LINES} == {}


def test_functions_are_short(parsed: Parsed) -> None:
    long = {
        f"{path}:{node.name}"
        for path, tree in parsed.items()
        for node in ast.walk(tree)
        if isinstance(node, Function) and (node.end_lineno or 0) - node.lineno + 1 > MOST_LINES_OF_A_FUNCTION
    }
    assert long == set()


def test_few_types_are_ignored() -> None:
    ignored = [
        f"{path.relative_to(SOURCE)}:{number}"
        for path in sorted(SOURCE.rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if "type: ignore" in line
    ]
    assert len(ignored) <= MOST_IGNORES, ignored


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def own_private_names(parsed: Parsed) -> set[str]:
    """Names with an underscore that Remask itself gives: functions, classes, module variables, attributes of self."""
    own = set()
    for tree in parsed.values():
        for node in ast.walk(tree):
            if isinstance(node, Function | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and of_itself(node):
                own.add(node.attr)
    return {name for name in own if is_private(name)}


def of_itself(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def foreign_private_names(tree: ast.Module, own: set[str]) -> Iterator[tuple[int, str]]:
    """(line, name) of each use of a name that another library keeps to itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if node.attr not in own and not of_itself(node) and ast.unparse(node) not in PUBLIC_IN_SPITE_OF_THEIR_NAMES:
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            private = any(is_private(part) for module in modules for part in module.split("."))
            if private or any(is_private(name) and name not in own for name in names):
                yield node.lineno, ast.unparse(node)


def test_private_names_of_others_are_seen() -> None:
    code = "import a._b\nfrom c import _d, _own\nx._e()\nself._f\nx._own\nx.__class__\nos._exit(0)\nfrom _g import h\n"
    assert [line for line, _ in foreign_private_names(ast.parse(code), {"_own"})] == [1, 2, 8, 3]


def test_few_names_are_used_that_other_libraries_keep_to_themselves(parsed: Parsed) -> None:
    own = own_private_names(parsed)
    found = [f"{path}:{at[0]} {at[1]}" for path, tree in parsed.items() for at in foreign_private_names(tree, own)]
    assert len(found) <= MOST_FOREIGN_UNDERSCORES, found


def patches_in(tree: ast.Module, own: Collection[str] = ()) -> Iterator[tuple[int, str]]:
    """(line, code) of what looks like a change of another library: a module's or object's class, its dictionary,
    attributes of an imported name, a function put where an attribute was that is not among its `own`.
    """
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                module = (node.module or "remask") if isinstance(node, ast.ImportFrom) else alias.name
                if module.partition(".")[0] not in {"remask", *sys.stdlib_module_names}:
                    imported.add((alias.asname or alias.name).partition(".")[0])
    functions = {node.name for node in ast.walk(tree) if isinstance(node, Function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("setattr", "delattr"):
            yield node.lineno, ast.unparse(node)
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign | ast.Delete):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign | ast.AugAssign):
            targets = [node.target]
        value = getattr(node, "value", None)
        for target in targets:
            if isinstance(target, ast.Subscript) and re.match(r"vars\(|.*\.__dict__$", ast.unparse(target.value)):
                yield node.lineno, ast.unparse(node)
            if not isinstance(target, ast.Attribute) or of_itself(target):
                continue
            root = ast.unparse(target).partition(".")[0]
            is_function = isinstance(value, ast.Lambda) or (isinstance(value, ast.Name) and value.id in functions)
            if isinstance(value, ast.Call):
                is_function = ast.unparse(value.func).rpartition(".")[2] in ("partial", "MethodType")
            if target.attr == "__class__" or root in imported or (is_function and target.attr not in own):
                yield node.lineno, ast.unparse(node)


@pytest.mark.parametrize(
    "code",
    [
        "module.__class__ = Other",
        "setattr(module, 'forward', f)",
        "vars(module)['forward'] = f",
        "del vars(module)['forward']",
        "module.__dict__['forward'] = f",
        "import torch\ntorch.nn.Linear.forward = f",
        "from transformers import integrations as i\ni.flag = None",
        "model.save = lambda: None",
        "model.save = partial(model.save, 1)",
        "def f(x): ...\nmodule.forward = f",
    ],
)
def test_patches_are_seen(code: str) -> None:
    assert list(patches_in(ast.parse(code)))


def test_other_libraries_are_changed_in_one_module_only(parsed: Parsed) -> None:
    """And in the process that grades, which runs nothing else."""
    own = {
        node.attr
        for tree in parsed.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and of_itself(node)
    }
    found = {path: found for path, tree in parsed.items() if (found := list(patches_in(tree, own)))}
    assert set(found) == {"models/patches.py", "tasks/worker_process.py"}, found
    assert all(path in PAGE.read_text() for path in found)
