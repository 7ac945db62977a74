"""Every recipe of `recipes/espo` runs on a small model, on real problems where the hub's would be loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import remask
from remask.cli import main

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "espo").glob("*.yaml"))
SMALL = ["--rollout.prompts", "1", "--rollout.completions", "2", "--held-out.n", "1"]
SMALL += ["--rollout.decoding.max-new-tokens", "64", "--rollout.decoding.steps", "8"]


@pytest.mark.shared
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_run_on_a_small_model(
    recipe: Path, shared: Path, long_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two steps with the recipe's own settings but for the model, a small rollout of short answers in few steps, and
    local problems.
    """
    assert len(RECIPES) == 10
    data, task = shared / "data", recipe.stem.rpartition("-")[2]
    if task == "mbpp" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    boxed = tmp_path / "math.jsonl"
    boxed.write_text(json.dumps({"problem": "What is 1+1?", "solution": r"It is $\boxed{2}$."}) + "\n")
    numbers = tmp_path / "countdown.jsonl"
    numbers.write_text(json.dumps({"nums": [44, 19, 35], "target": 98}) + "\n")
    local = {
        "gsm8k": f"gsm8k={data / 'gsm8k' / 'train.jsonl'}",
        "math": f"math={boxed}",
        "countdown": f"countdown={numbers}",
        "sudoku": "sudoku",
        "mbpp": f"mbpp={data / 'mbpp' / 'sanitized-mbpp.json'}",
    }
    command = ["rl", "--config", str(recipe), "--model", str(long_checkpoint), "--max-steps", "2", *SMALL]
    command += ["--tasks", local[task]]
    command += ["--problems", "20", "--output-dir", str(tmp_path / "run"), "--trainer.report-to", "none"]
    assert main([*command, "--held-out.decoding.steps", "8", "--rollout.max-prompt-tokens", "None"]) == 0
    assert "has no effect" not in capsys.readouterr().err
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["objective"]["name"] == "espo"
    groups = (tmp_path / "run" / "completions.jsonl").read_text().splitlines()
    assert len(groups) == 1
    model, _ = remask.load(tmp_path / "run")
    assert hasattr(model, "peft_config")
