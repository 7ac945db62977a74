"""Every recipe of `recipes/block` runs on the embedded block model, on local problems in place of the hub's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import remask
from remask.cli import main
from remask.diffusion.attention import BlockCausal

RECIPES = Path(__file__).parents[2] / "recipes"
TUNING = sorted(path for path in (RECIPES / "block").glob("*.yaml") if "tracerl" not in path.stem)


@pytest.mark.shared
@pytest.mark.parametrize("recipe", TUNING, ids=lambda path: path.stem)
def test_fine_tuning(recipe: Path, shared: Path, tmp_path: Path) -> None:
    assert len(TUNING) == 5
    data = f"gsm8k={shared / 'data' / 'gsm8k' / 'train.jsonl'}:8"
    command = ["sft", "--config", str(recipe), "--model", "tiny-block", "--data", data, "--max-steps", "2"]
    command += ["--output-dir", str(tmp_path), "--trainer.report-to", "none", "--report.diagnostics", "off"]
    assert main([*command, "--trainer.gradient-accumulation-steps", "1", "--canvas.max-length", "2048"]) == 0
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["status"] == "finished"
    model, _ = remask.load(tmp_path)
    assert model.attention == BlockCausal(4, "answer")


@pytest.mark.shared
def test_reinforcement_learning(tmp_path: Path) -> None:
    boxed = tmp_path / "math.jsonl"
    boxed.write_text(json.dumps({"problem": "What is 1+1?", "solution": r"It is $\boxed{2}$."}) + "\n")
    recipe = RECIPES / "block" / "sdar-8b-math-tracerl.yaml"
    command = ["rl", "--config", str(recipe), "--model", "tiny-block", "--tasks", f"math={boxed}", "--max-steps", "2"]
    command += ["--rollout.prompts", "1", "--rollout.completions", "2", "--rollout.decoding.max-new-tokens", "8"]
    command += ["--problems", "1", "--rollout.decoding.steps", "8"]
    command += ["--output-dir", str(tmp_path / "run"), "--trainer.report-to", "none"]
    assert main([*command, "--held-out.n", "1", "--rollout.max-prompt-tokens", "None"]) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["objective"]["name"]) == ("finished", "tracerl-blocks")


def test_the_embedded_block_model_learns(tmp_path: Path) -> None:
    recipe = RECIPES / "tiny" / "block.yaml"
    command = ["sft", "--config", str(recipe), "--data", "direct:sudoku:64", "--max-steps", "12"]
    command += ["--eval-data", "direct:sudoku:8", "--report.diagnostics", "off", "--trainer.eval-steps", "12"]
    assert main([*command, "--output-dir", str(tmp_path), "--trainer.logging-steps", "1"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 12
    assert sum(losses[-3:]) < sum(losses[:3])


def test_an_evaluation_says_what_a_forward_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """16 digits and the end take 5 blocks of 4, one token a forward: 17 tokens in 20 forwards, of each answer."""
    record = tmp_path / "record.json"
    assert main(["eval", "--model", "tiny-block", "--tasks", "sudoku", "--n", "2", "--json", str(record)]) == 0
    generation = json.loads(record.read_text())["tasks"]["sudoku"]["generation"]
    assert (generation["tokens"], generation["row_forwards"]) == (34, 40)
    assert "0.85 tokens for each forward" in " ".join(capsys.readouterr().out.split())
