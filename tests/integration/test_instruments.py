"""`remask estimators` on the tiny model: every part, as tables and as a record; and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import remask
from remask import cli
from remask.commands import policy_estimators
from remask.commands.estimators import _require_gradients
from remask.errors import UserError

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
    sft, gift, *cut = record["gradients"]
    assert [(m["name"], m["clip"]) for m in cut] == [("sft", 1.0), ("gift", 1.0)]
    assert (sft["forwards"], gift["forwards"], sft["cosine"]) == (3, 4, 1.0)
    assert sft["variance"] > 0
    coupled = [e for e in record["elbo"]["estimators"] if e["name"] == "coupled"]
    assert [e["forwards"] for e in coupled] == [2, 4]
    said = capsys.readouterr().out
    for part in (
        "ELBO estimators: 2 answers",
        "first tokens",
        "Which of a prompt's answers",
        "SFT gradients",
        "by layer",
    ):
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
        (["--tasks", "sudku", "--parts", "elbo", "reward"], "unknown task 'sudku'"),
        (["--seed", "-1"], "seed = -1"),
        (["--clip", "0"], "clip = 0"),
        (["--parts"], "parts: none named"),
        (["--objectives"], "objectives: none named"),
        (["--json", "nowhere/x.json"], "folder does not exist"),
        (["--policy", "espo,epso"], "unknown objective 'epso'"),
        (["--policy", "--temperature", "0.5"], "temperature = 0.5: objectives score answers at temperature 1"),
        (["--policy", "--rollouts", "3"], "rollouts = 3"),
        (["--policy", "--moved", "-1"], "moved = -1"),
        (["--policy", "--moved", "1", "--step", "1"], "both moved and step are given"),
        (["--policy", "--tasks", "gsm8k"], "gsm8k makes no problems"),
        (["--policy", "--prompts", "1"], "prompts = 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    small = [*SMALL, *flags]
    assert cli.main(["estimators", *small]) == 2
    assert said in capsys.readouterr().err


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two rollouts of two answers to each of two problems: fewer than intervals can be made of."""
    monkeypatch.setattr(policy_estimators, "LEAST_ROLLOUTS", 2)
    return ["--model", "tiny-direct", "--rollouts", "2", "--prompts", "2", "--completions", "2"]


def test_a_policy_objective_is_held_against_the_sampler(
    policy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "policy.json"
    assert cli.main(["estimators", *policy, "--policy", "espo", "--step", "0.1", "--json", str(path)]) == 0
    record = json.loads(path.read_text())
    own, espo = record["policy"]["objectives"]
    assert [own["name"], espo["name"]] == ["sampler's own", "espo"]
    assert (record["settings"]["tasks"], record["settings"]["prompts"]) == ("sudoku", 2)
    assert record["policy"]["decoding"]["reveal"] == "random"
    assert record["policy"]["answers"] == 4
    # Two draws of two views, each read once to know its value and once with the gradient, which counts as three.
    assert espo["forwards"] == 16 < own["forwards"]
    assert 15 < record["policy"]["sampling_forwards"] <= 20
    assert [gain["name"] for gain in record["policy"]["gains"]] == ["sampler's own", "espo"]
    said = capsys.readouterr().out
    assert "2 rollouts of 4 answers, reveal random" in said
    assert "Reward gained by a step of length 0.1" in said


def test_a_policy_that_has_moved(policy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, moved = tmp_path / "policy.json", ["--moved", "0.2", "--reveal", "confidence"]
    assert cli.main(["estimators", *policy, *moved, "--policy", "espo", "--json", str(path)]) == 0
    _, espo = json.loads(path.read_text())["policy"]["objectives"]
    assert espo["forwards"] == 18  # the last draw's old likelihood is read besides
    said = capsys.readouterr()
    assert "the sampler's own lacks the part through" in said.out
    assert "the weights choose the places that a step writes" in said.err


def test_nothing_is_written_where_a_later_part_cannot_be_measured(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    assert cli.main(["estimators", *SMALL, "--parts", "elbo", "reward", "--tasks", "sudku", "--json", str(path)]) == 2
    assert not path.exists()


def test_of_adapters_only_they_have_a_gradient(tmp_path: Path) -> None:
    """Also where the run's folder is all that is named: what is measured is what was trained."""
    run, path = str(tmp_path / "run"), tmp_path / "x.json"
    small = ["--data", "direct:sudoku:4", "--max-steps", "1", "--trainer.per-device-train-batch-size", "2"]
    assert cli.main(["sft", "--model", "tiny-direct", *small, "--lora.rank", "2", "--output-dir", run]) == 0
    few = ["--parts", "gradients", "--data", "direct:sudoku:2", "--objectives", "sft", "--gradients", "4"]
    assert cli.main(["estimators", "--model", run, *few, "--json", str(path)]) == 0
    record = json.loads(path.read_text())
    assert record["settings"]["rows"] == 2  # all there are: none were asked for
    assert {name.partition(".")[0] for name in record["gradients"][0]["layers"]} == {"layers"}
    model, _ = remask.load(run)
    _require_gradients(model, quantised=False)
    assert {name.rsplit("lora_", 1)[-1][0] for name, p in model.named_parameters() if p.requires_grad} == {"A", "B"}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(UserError, match="quantised weights have no gradient"):
        _require_gradients(remask.load("tiny-direct")[0], quantised=True)


def test_fewer_rows_than_asked_for_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "--classes", "--rows", "5", "--data", "direct:sudoku:3"]) == 2
    assert "3 rows where 5 were asked for" in capsys.readouterr().err
    assert cli.main(["inspect", "--classes", "--data", "direct:sudoku:1"]) == 2
    assert "1 row: intervals come from how rows differ" in capsys.readouterr().err
