"""The tutorials print what their pages show. `make tutorials` runs all of them, this file the two cheapest."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "learn").glob("*.md"))


@pytest.fixture(scope="module")
def tutorials() -> Any:
    sys.path.insert(0, str(ROOT / "scripts"))
    import run_tutorials

    yield run_tutorials
    sys.path.remove(str(ROOT / "scripts"))
    sys.modules.pop("run_tutorials", None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["02-your-own-data.md", "10-coming-from.md"])
def test_a_page_shows_what_its_commands_print(tutorials: Any, tmp_path: Path, name: str) -> None:
    page = next(page for page in PAGES if page.name == name)
    assert tutorials.differences(page.read_text(), tmp_path, here=True) == []


def test_every_block_is_run_or_says_why_not(tutorials: Any) -> None:
    assert len(PAGES) == 11
    for page in PAGES:
        found = tutorials.blocks(page.read_text())
        assert page.read_text().count("\n```") == 2 * len(found), page.name
        code = [block for block in found if block.kind in ("bash", "python") and block.title is None]
        kinds = {block.note.split()[0].rstrip(":") for block in found if block.note}
        assert kinds <= {"background", "exit", "varies"}, page.name
        assert [block for block in code if not block.runs and len(block.why.split()) < 2] == [], page.name
        shown = tutorials.outputs(found)
        assert [block.body for block in shown.values() if not block.body.strip()] == [], page.name
        assert sum(block.kind == "text" for block in found) == len(shown), page.name
        if page.name != "index.md":
            assert shown, page.name


GUIDES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent.name != "learn")]
COMMAND = re.compile(r"^(?: {4})?(?:remask|make|python|pip|curl|torchrun|accelerate) ", re.MULTILINE)


def test_guides_say_why_their_commands_are_not_run() -> None:
    with_commands = [page for page in GUIDES if COMMAND.search(page.read_text())]
    assert len(with_commands) > 10
    assert [page.name for page in with_commands if "\n*Not run here: " not in page.read_text()] == []


@pytest.mark.slow
def test_python_of_readme_and_guides_runs(
    tutorials: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it prints with three decimals stands on its page."""
    monkeypatch.chdir(tmp_path)
    ran, figures = [], 0
    for page in GUIDES:
        for block in tutorials.blocks(page.read_text()):
            if block.kind == "python" and block.runs:
                exec(compile(block.body, page.name, "exec"), {"__name__": "__main__"})
                ran.append(page.name)
                stated = [float(number) for number in re.findall(r"\d\.\d{3}\b", page.read_text())]
                for number in re.findall(r"\b\d\.\d{3}\b", capsys.readouterr().out):
                    assert pytest.approx(float(number), abs=0.003) in stated, (page.name, number)
                    figures += 1
    assert {"README.md", "faq.md", "serving.md"} <= set(ran)
    assert figures == 5


def test_outputs_are_alike_but_for_what_a_processor_changes(tutorials: Any) -> None:
    alike, shown = tutorials.alike, tutorials.shown
    assert shown("finished in 12 s  loss 0.1 \n 1,177 tokens a second; 1:02 min\n\n") == (
        "finished in … s  loss 0.1\n … tokens a second; … min\n"
    )
    assert alike("solved 77 of 100", "solved  75 of 100")
    assert not alike("solved 77 of 100", "solved 34 of 100")
    assert not alike("gift is better than sft by 10.0 points", "no difference found by 10.0 points")
    assert alike("loss 0.012", "loss 0.015")
    assert not alike("loss 0.012", "loss 0.016")
    assert not alike("1 2", "1")


def test_blocks_of_a_page_become_files_processes_and_outputs(tutorials: Any, tmp_path: Path) -> None:
    page = (
        '```python title="a.py"\nprint(6 * 7)\n```\n\n```bash\npython a.py\n```\n\n```text\n7\n```\n'
        "*Not run here: needs a checkpoint.*\n\n```bash\nexit 3\n```\n"
        "<!-- exit code 2 -->\n```bash\necho wrong >&2; exit 2\n```\n\n```text\nwrong\n```\n"
        "```bash\necho chance\n```\n\n<!-- varies -->\n```text\nx\n```\n"
    )
    (wrong,) = tutorials.differences(page, tmp_path)
    assert wrong.split("\n")[-3:-1] == ["-7", "+42"]
    mended = tutorials.written(page, tmp_path)
    assert "```text\n42\n```" in mended
    assert "```text\nchance\n```" in mended
    assert tutorials.differences(mended, tmp_path) == []
    with pytest.raises(RuntimeError, match="exit code 3 instead of 0"):
        tutorials.differences("```bash\nexit 3\n```\n", tmp_path)
