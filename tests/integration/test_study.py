"""A study from its file to its tables: two methods × two seeds, stopped in between, done again, and cells shared."""

from __future__ import annotations

import csv
import json
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from remask import cli
from remask import config as configs
from remask.config import StudyConfig
from remask.locks import alone_in, locked
from remask.models.load import EMBEDDED
from remask.study import schedule, work
from remask.study.grid import Job, cells
from started import Started, finished

SMALL: dict[str, Any] = {
    "question": "Does GIFT differ from SFT after three steps?",
    "base": {
        "sft": {
            "data": "generated:sudoku:8",
            "canvas": {"max_length": 160},
            "max_steps": 3,
            "trainer": {"per_device_train_batch_size": 4, "learning_rate": 1e-3, "logging_steps": 1},
        },
        "eval": {"tasks": "sudoku", "n": 6, "batch_size": 6, "decoding": {"steps": 4}},
    },
    "arms": {"sft": {}, "gift": {"sft": {"objective": "gift"}}},
    "baseline": "sft",
    "seeds": [0, 1],
}


def written(folder: Path, study: dict[str, Any], name: str = "small") -> str:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return str(path)


def study(folder: Path, path: str, *flags: str) -> int:
    return cli.main(["study", path, "--output-dir", str(folder / "studies"), "--processes", "2", *flags])


def results(folder: Path, name: str = "small") -> list[dict[str, Any]]:
    return json.loads((folder / "studies" / name / "results.json").read_text())["results"]


def without_time(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_two_methods_and_two_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, SMALL)
    assert study(tmp_path, path) == 0
    assert "gift against sft on sudoku" in capsys.readouterr().out
    rows = results(tmp_path)
    assert [row["arm"] for row in rows if row["metric"] == "accuracy"] == ["start", "sft", "gift"]
    gift = next(row for row in rows if row["arm"] == "gift" and row["metric"] == "accuracy")
    assert gift["seeds"] == 2
    assert gift["n"] == 6
    assert gift["difference_low"] <= gift["difference"] <= gift["difference_high"]
    assert gift["p_holm"] >= gift["p"]
    assert gift["grad_norm_max"] >= gift["grad_norm_mean"] > 0
    folder = tmp_path / "studies" / "small"
    assert {path.name for path in folder.iterdir()} == {
        f"results.{k}" for k in ("md", "csv", "json", "svg", "png", "html")
    }
    table = list(csv.DictReader((folder / "results.csv").open()))
    assert [row["arm"] for row in table] == [row["arm"] for row in rows]
    assert "<svg" in (folder / "results.html").read_text()

    made = tmp_path / "studies" / "cells"
    stamps = {path: path.stat().st_mtime_ns for path in made.rglob("*") if path.is_file()}
    assert study(tmp_path, path) == 0  # nothing is done again
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*") if path.is_file()} == stamps
    assert results(tmp_path) == rows

    # A cell made anew is the same, bit for bit: its answers, and so the tables.
    lost = sorted(made.glob("sft-*/run.json"))[0].parent
    weights = (lost / "model.safetensors").read_bytes()
    (lost / "run.json").unlink()
    for evaluation in made.glob("eval-*.json"):
        if not evaluation.name.endswith(".job.json"):
            evaluation.unlink()
    assert study(tmp_path, path) == 0
    assert (lost / "model.safetensors").read_bytes() == weights
    assert without_time(results(tmp_path)) == without_time(rows)

    # Another study with an arm in common runs that arm's seeds no more.
    other = {**SMALL, "arms": {"sft": {}, "dft": {"sft": {"objective": "dft"}}}}
    assert study(tmp_path, written(tmp_path, other, "other"), "--dry-run") == 0
    listed = capsys.readouterr().out.splitlines()
    assert all("to do" not in line for line in listed if line.startswith("sft"))
    assert sum("to do" in line for line in listed if line.startswith("dft")) == 2


@pytest.mark.parametrize("before", [True, False])
def test_seeds_on_the_command_line(before: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, seeds = written(tmp_path, SMALL), ["--seeds", "3", "4", "5"]
    assert cli.main(["study", *(seeds if before else []), path, *([] if before else seeds), "--dry-run"]) == 0
    listed = capsys.readouterr().out
    assert [f"sft seed {seed}:" in listed for seed in (0, 1, 3, 4, 5)] == [False, False, True, True, True]


def test_decoding_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decoding = {
        "question": "Do fewer steps cost anything?",
        "base": {"eval": {"tasks": "sudoku", "n": 6}},
        "arms": {"8 steps": {"eval": {"decoding": {"steps": 8}}}, "2 steps": {"eval": {"decoding": {"steps": 2}}}},
        "baseline": "8 steps",
        "start": False,
    }
    assert study(tmp_path, written(tmp_path, decoding)) == 0
    assert [row["arm"] for row in results(tmp_path) if row["metric"] == "accuracy"] == ["8 steps", "2 steps"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"baseline": "x"}, "the baseline 'x' is no arm"),
        ({"arms": {"sft": {"train": {}}}}, "unknown stage 'train'"),
        ({"arms": {"sft": {"sft": {"seed": 3}}}}, "sft.seed is the study's own to set"),
        ({"arms": {"sft": {"sft": {"objectiv": "gift"}}}}, "unknown key 'objectiv'"),
        ({"arms": {"sft": {"sft": {"objective": "no-such-method"}}}}, "no-such-method"),
        ({"seeds": [0, 0]}, "seeds = [0, 0]"),
        ({"base": {"sft": {}}}, "nothing is evaluated"),
        ({"arms": {"sft": {}, "start": {}}}, "an arm is called start"),
        ({"arms": {"sft": {"sft": {"model": "no-such-model"}}}}, "no-such-model: no such model folder"),
        ({"axes": {"size": {"small": {"sft": 3}}}}, "null for the stage sft, got 3"),
        ({"axes": {"size": {}}}, "the axis size has no levels"),
        ({"axes": {"n": {"few": {"eval": {"n": 4}}}}}, "an axis is called n"),
        ({"base": {**SMALL["base"], "eval": {"tasks": "sudoku,sudku"}}}, "unknown task 'sudku'"),
        ({"base": {**SMALL["base"], "eval": {"tasks": "gsm8k=no-such.jsonl"}}}, "no-such.jsonl: no such file"),
        ({"base": {**SMALL["base"], "rl": {"tasks": "countdow"}}}, "unknown task 'countdow'"),
        ({"base": {**SMALL["base"], "eval": {"n": 1}}}, "eval.n is 1"),
    ],
)
def test_what_no_run_can_be_made_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], said: str
) -> None:
    assert study(tmp_path, written(tmp_path, {**SMALL, **change})) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "studies").exists()


@pytest.mark.parametrize("taken", ["studies", "studies/cells", "studies/small"])
def test_a_file_where_a_folder_is_needed(taken: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / taken
    file.parent.mkdir(exist_ok=True)
    file.touch()
    assert study(tmp_path, written(tmp_path, SMALL)) == 2
    assert f"{file}: is a file, not a folder" in capsys.readouterr().err
    assert [path for path in (tmp_path / "studies").rglob("*") if path != file] == []


def test_a_job_that_fails_is_named_with_what_it_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = {**SMALL, "arms": {"sft": {"sft": {"data": "no-such-file.jsonl"}}}}
    assert study(tmp_path, written(tmp_path, broken)) == 2
    said = capsys.readouterr().err
    assert "no-such-file.jsonl" in said
    assert ".log" in said


RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "studies").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_say_what_can_be_run(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert study(tmp_path, str(recipe), "--dry-run") == 0
    trained = [line for line in capsys.readouterr().out.splitlines() if "seed None" not in line]
    assert {line.partition(" seed ")[2].partition(":")[0] for line in trained} in (set(), set("01234"), set("012"))


def test_another_embedded_checkpoint_is_another_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The jobs' names hold what the first model's weights are, also where its name is all that a study says."""
    model = tmp_path / "tiny"
    model.mkdir()
    whole = configs.from_dict(StudyConfig, SMALL, where="small")
    keys = []
    for content in (b"one", b"two", b"one"):
        (model / "model.safetensors").write_bytes(content)
        monkeypatch.setitem(EMBEDDED, "tiny", model)
        keys.append([cell.evaluation.key for cell in cells(whole, "small")])
    assert keys[0] == keys[2]
    assert not set(keys[0]) & set(keys[1])


def test_two_studies_at_once_do_a_shared_job_once(tmp_path: Path) -> None:
    """Each takes the jobs that the other is not at, and finds the other's done."""
    path = written(tmp_path, {**SMALL, "seeds": [0]})
    finished([Started("study", path, "--output-dir", str(tmp_path / "studies")) for _ in range(2)])
    for run in (tmp_path / "studies" / "cells").glob("sft-*/metrics.jsonl"):
        steps = [row["step"] for row in map(json.loads, run.read_text().splitlines()) if "loss" in row]
        assert steps == [1, 2, 3]


def begun_by(monkeypatch: pytest.MonkeyPatch, folder: Path, *, killed: bool) -> list[str]:
    """The jobs that a study begins while another process is at the first one, in order. That process ends with the
    job's result, or (`killed`) without it. A third one is quicker to begin the second job, and ends without a result.
    """
    jobs = [Job("eval", {}, None, key) for key in "abc"]
    at_work, begun = {"eval-a"}, []

    def begin(job: Job, *_: object) -> SimpleNamespace:
        begun.append(job.name)
        if begun == ["eval-b"]:
            return SimpleNamespace(exitcode=work.HELD)
        work.output(folder, job.name).touch()
        return SimpleNamespace(exitcode=0)

    def tick(_: float, note: str = "") -> None:
        if note == "1 job left to other processes":
            at_work.clear()
            if not killed:
                work.output(folder, "eval-a").touch()

    folder.mkdir()
    monkeypatch.setattr(schedule, "_begin", begin)
    monkeypatch.setattr(schedule, "is_under_way", lambda _, name: name in at_work)
    monkeypatch.setattr(schedule, "LOOK_SECONDS", 0.01)
    schedule._loop(jobs, [], folder, 1, tick)
    assert all(work.is_done(folder, job.name) for job in jobs)
    return begun


def test_a_job_that_another_process_is_at_is_left_to_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert begun_by(monkeypatch, tmp_path / "ends", killed=False) == ["eval-b", "eval-b", "eval-c"]
    assert begun_by(monkeypatch, tmp_path / "killed", killed=True) == ["eval-b", "eval-b", "eval-c", "eval-a"]


def test_a_jobs_process_does_not_wait_for_another_one(tmp_path: Path) -> None:
    job = Job("eval", {}, None, "a")
    with locked(work.lock_of(tmp_path, job.name), holding=work.output(tmp_path, job.name)):
        process = schedule._begin(job, tmp_path, 1, 0)
        process.join(60)
        assert process.exitcode == work.HELD
        assert work.is_under_way(tmp_path, job.name)
    assert not work.is_under_way(tmp_path, job.name)


def test_sigterm_leaves_no_job_behind(tmp_path: Path) -> None:
    long = {**SMALL, "base": {**SMALL["base"], "sft": {**SMALL["base"]["sft"], "max_steps": 10_000}}}
    path = written(tmp_path, {**long, "start": False})
    process = Started("study", path, "--output-dir", str(tmp_path / "studies"), "--processes", "2")
    cells = tmp_path / "studies" / "cells"
    deadline = time.monotonic() + 120
    while sum(path.stat().st_size > 0 for path in cells.glob("sft-*/metrics.jsonl")) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.terminate()
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    stopped = [path.parent for path in cells.glob("sft-*/checkpoint-*")]
    assert len(stopped) == 2  # they go on from here
    for run in stopped:
        with alone_in(run):  # no process holds it
            assert json.loads((run / "run.json").read_text())["status"] == "stopped"
