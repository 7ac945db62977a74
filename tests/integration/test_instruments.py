"""`remask estimators` on the tiny model: every part, as tables and as a record; and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from remask import cli

SMALL = [
    *("--data", "generated:sudoku+countdown:2", "--rows", "2", "--draws", "1", "2", "--replicates", "4"),
    *("--reference", "8", "--exact-tokens", "3", "--orders", "1", "2", "--tasks", "sudoku", "--prompts", "2"),
    *("--completions", "2", "--objectives", "sft", "gift", "--gradients", "4"),
]


def test_every_part_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "estimators.json"
    assert cli.main(["estimators", *SMALL, "--json", str(path)]) == 0
    record = json.loads(path.read_text())
    assert [len(record["elbo"]["per_token"]), len(record["tightness"]), len(record["reward"])] == [2, 2, 2]
    for row in record["tightness"]:
        assert row["elbo"] <= row["log_likelihood"] <= 0
        assert row["tokens"] == 3
    sft, gift = record["gradients"]
    assert (sft["forwards"], gift["forwards"], sft["cosine"]) == (3, 4, 1.0)
    assert sft["variance"] > 0
    coupled = [e for e in record["elbo"]["estimators"] if e["name"] == "coupled"]
    assert [e["forwards"] for e in coupled] == [2, 4]
    said = capsys.readouterr().out
    for part in ("ELBO estimators: 2 answers", "first tokens", "Which of a prompt's answers", "SFT gradients"):
        assert part in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rows", "0"], "rows = 0"),
        (["--rows", "5", "--data", "generated:sudoku:3", "--parts", "elbo"], "3 rows where 5"),
        (["--draws", "0"], "draws = [0]"),
        (["--orders", "2", "3"], "each divides the largest"),
        (["--temperature", "0"], "temperature = 0"),
        (["--objectives", "sft", "gifted"], "gifted"),
        (["--objectives", "sft", "rho1", "--parts", "gradients"], "rho1 compares with a reference model"),
        (["--parts", "reward", "--tasks", "gsm8k"], "gsm8k makes no problems"),
        (["--json", "nowhere/x.json"], "folder does not exist"),
    ],
)
def test_what_cannot_be_measured_is_refused(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    small = [*SMALL, *flags]
    assert cli.main(["estimators", *small]) == 2
    assert said in capsys.readouterr().err
