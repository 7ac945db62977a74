"""reasoning-gym's tasks in short runs: fine-tuning, evaluation and reinforcement learning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from remask import cli

pytest.importorskip("reasoning_gym", reason="needs reasoning-gym: pip install 'remask[gym]'")

COUNTDOWN = "gym:countdown{max_numbers:3;min_numbers:3}"


def version_in(run: Path) -> str | None:
    found: Any = json.loads((run / "run.json").read_text())
    return found["versions"].get("reasoning-gym")


def test_fine_tuning_and_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, record = tmp_path / "run", tmp_path / "eval.json"
    data = ("--data", "gym:lcm+gcd:8", "--eval-data", "gym:lcm:4", "--canvas.max-length", "160")
    flags = ("--max-steps", "1", "--trainer.report-to", "none", "--output-dir", str(run))
    assert cli.main(["sft", "--model", "tiny-direct", *data, *flags]) == 0
    assert version_in(run)
    tasks = ("--tasks", f"gym:lcm,{COUNTDOWN}", "--n", "3", "--decoding.max-new-tokens", "8")
    assert cli.main(["eval", "--model", str(run), *tasks, "--json", str(record)]) == 0
    said = json.loads(record.read_text())
    assert said["versions"]["reasoning-gym"] == version_in(run)
    for name in ("gym:lcm", COUNTDOWN):
        block = said["tasks"][name]
        assert block["n"] == 3
        assert set(block["metrics"]) == {"accuracy", "score"}
        assert f"(reasoning-gym {version_in(run)})" in block["source"]
        assert all(problem["id"].startswith(name.partition("{")[0]) for problem in block["problems"])
    assert said["tasks"][COUNTDOWN]["metrics"]["score"]["mean"] >= 0.01
    capsys.readouterr()
    assert cli.main(["grade", COUNTDOWN, str(record)]) == 0
    assert "score" in capsys.readouterr().out


def test_reinforcement_learning(tmp_path: Path) -> None:
    run = tmp_path / "run"
    tasks = ("--tasks", f"gym:lcm,{COUNTDOWN}", "--problems", "4", "--held-out.n", "2", "--max-steps", "1")
    rollout = ("--rollout.prompts", "4", "--rollout.completions", "2", "--rollout.decoding.max-new-tokens", "8")
    held_out = ("--held-out.decoding.max-new-tokens", "8", "--trainer.report-to", "none", "--output-dir", str(run))
    assert cli.main(["rl", "--model", "tiny-direct", *tasks, *rollout, *held_out]) == 0
    assert version_in(run)
    lines = [json.loads(line) for line in (run / "completions.jsonl").read_text().splitlines()]
    assert {line["task"] for line in lines} <= {"gym:lcm", COUNTDOWN}
    assert any(f"eval_{COUNTDOWN}_accuracy" in line for line in (run / "metrics.jsonl").read_text().splitlines())


def test_a_task_that_does_not_exist_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["eval", "--tasks", "gym:gsm"], ["sft", "--data", "gym:gsm:4"], ["rl", "--tasks", "gym:gsm"]):
        assert cli.main([*arguments, "--model", "tiny-direct"]) == 2
        assert "did you mean gsm_symbolic" in capsys.readouterr().err
