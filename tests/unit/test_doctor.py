"""`remask doctor` finds what is missing, and `remask completion` knows every command and option."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from importlib import import_module, metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

from remask.cli import COMMANDS, main
from remask.commands import checks
from remask.commands.completion import OPTIONS, LmEvalConfig


@pytest.fixture(scope="module")
def works() -> dict[str, checks.Finding]:
    """What is found on this machine as it is."""
    return {finding.part: finding for finding in checks.everything(".")}


def test_on_a_machine_where_tests_run_all_that_is_required_works(works: dict[str, checks.Finding]) -> None:
    assert [finding for finding in works.values() if finding.state == "broken"] == []
    assert {
        "python",
        "libraries",
        "extra serve",
        "hub cache",
        "sandbox",
        "processor",
        "kernels",
        "self-test cpu",
    } <= set(works)
    assert works["self-test cpu"].found.startswith("a Sudoku solved as expected, log p -2.227")
    assert [one for one in works.values() if one.state != "ok" and not one.mend and one.part != "kernels"] == []


def test_the_exit_code_and_the_last_line_say_whether_something_required_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [checks.Finding("a", "ok", "b"), checks.Finding("[c]", "absent", "[d]", "do e")]
    monkeypatch.setattr(checks, "everything", lambda folder: iter(found))
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "✓ a " in said
    assert "– [c] " in said
    assert "[d]\n" in said
    assert "→ do e\n" in said
    assert said.endswith("all that is required works\n")
    found.append(checks.Finding("f", "broken", "g", "do h"))
    assert main(["doctor", "--json"]) == 1
    record = json.loads(capsys.readouterr().out)
    assert record["works"] is False
    assert record["findings"][2] == {"part": "f", "state": "broken", "found": "g", "mend": "do h"}
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.endswith("required and broken: 1\n")


def test_what_is_not_installed_or_too_old_is_named_with_the_line_that_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    true = metadata.version

    def version(name: str) -> str:
        if name in ("rich", "uvicorn"):
            raise metadata.PackageNotFoundError(name)
        return {"transformers": "4.1"}.get(name) or true(name)

    monkeypatch.setattr(metadata, "version", version)
    found = {finding.found: finding for finding in checks.libraries()}
    assert found["rich is not installed"].state == "broken"
    assert found["rich is not installed"].mend == "pip install 'rich>=14.0'"
    assert found["transformers is 4.1, but <6,>=5.23 is required"].state == "broken"
    extra = next(finding for finding in found.values() if finding.part == "extra serve")
    assert (extra.state, extra.mend) == ("absent", "pip install 'remask[serve]'")
    assert extra.found.startswith("uvicorn is not installed")


def test_a_disk_without_room_is_broken_for_runs_and_short_for_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    runs, hub = checks.disk("there/is/none/yet")
    assert (runs.state, hub.state) == ("broken", "absent")
    assert "too little" in runs.found
    assert "16 GiB are needed" in hub.found


@pytest.mark.parametrize(
    ("answered", "said"), [(("12", -2.22691), "'12' instead of"), ((checks.ANSWER, -2.24), "-2.2400")]
)
def test_a_model_that_answers_otherwise_is_broken(
    monkeypatch: pytest.MonkeyPatch, answered: tuple[str, float], said: str
) -> None:
    monkeypatch.setattr(checks, "_answered", lambda device: answered)
    found = checks.self_test("cpu")
    assert found.state == "broken"
    assert said in found.found


def test_a_device_that_fails_is_broken_and_ends_nothing() -> None:
    found = checks.self_test("cuda:77")
    assert found.state == "broken"
    assert found.mend


@pytest.mark.parametrize("command", COMMANDS)
def test_completion_has_the_options_that_a_command_reads(command: str) -> None:
    given: list[type] = []

    def noted(kind: type, **_: Any) -> None:
        given.append(kind)
        raise SystemExit(0)

    with patch("tyro.cli", noted), contextlib.suppress(SystemExit):
        import_module(COMMANDS[command][0]).run(["--help"])
    assert [OPTIONS[command]] == (given or [LmEvalConfig])


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_and_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    asked = [["remask", "se"], ["remask", "sft", "--trainer.le"], ["remask", "generate", "--inf"]]
    lines = [
        f'COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}; COMPREPLY=(); $F; echo "${{COMPREPLY[*]}}"'
        for words in asked
    ]
    find = "F=$(complete -p remask); F=${F#*-F }; F=${F%% *}"
    (tmp_path / "asked.sh").write_text("\n".join([script, find, *lines]))
    done = subprocess.run(["bash", str(tmp_path / "asked.sh")], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:3] == ["serve", "--trainer.learning-rate", "--infill"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "--trainer.learning-rate" in script
    assert "lm-eval" in script


@pytest.mark.parametrize("words", [[], ["csh"], ["bash", "zsh"]])
def test_completion_asks_for_one_shell(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", *words]) == 2
    assert "write remask completion bash" in capsys.readouterr().err
