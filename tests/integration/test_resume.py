"""Stopped runs: killed, terminated, corrupted. A resumed run ends with the weights of one that was never stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from remask import config as configs
from remask.config import CanvasConfig, LoraConfig, ProbeConfig, SftConfig
from remask.errors import UserError
from remask.sft.run import run_sft
from remask.training.begun import KEPT
from remask.training.checkpoints import MANIFEST, checkpoints, fault, seal, step_of
from started import Started

MakeConfig = Callable[..., SftConfig]
Weights = Callable[[Path], dict[str, torch.Tensor]]
Restored = Callable[[Path], AbstractContextManager[None]]
Metrics = Callable[[Path], list[dict[str, Any]]]

CASES: dict[str, dict[str, Any]] = {
    "accumulation": {"objective": "gift", "trainer": {"gradient_accumulation_steps": 2, "num_train_epochs": 5}},
    "frozen probe": {
        "objective": "gift",
        "probe": ProbeConfig(policy="frozen", every=1),
        "trainer": {"num_train_epochs": 3},
    },
    "lora": {"lora": LoraConfig(rank=4, dropout=0.2), "trainer": {"num_train_epochs": 3}},
    "blocks": {"model_attention": "block:4", "objective": "gift", "trainer": {"num_train_epochs": 3}},
}


def command(config: SftConfig, folder: Path, *flags: str) -> list[str]:
    path = folder / "config.yaml"
    path.write_text(configs.dump(config))
    return ["sft", "--config", str(path), *flags]


def wait_for_step(process: Started, folder: Path, step: int) -> None:
    """Until the run has logged that step and sealed a checkpoint."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        log = folder / "metrics.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        if len(lines) >= step and any((path / MANIFEST).exists() for path in checkpoints(folder)):
            return
        assert process.poll() is None, f"the run ended by itself: {process.stderr.read()}"
        time.sleep(0.005)
    raise AssertionError("the run did not get there in time")


@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed_equals_never_stopped(
    case: str, make_config: MakeConfig, tmp_path: Path, weights: Weights, metrics: Metrics
) -> None:
    settings = dict(CASES[case])
    engine = {"save_steps": 2, "save_total_limit": None, "learning_rate": 3e-3, **settings.pop("trainer")}
    config = make_config(engine, output_dir=str(tmp_path / "killed"), **settings)
    process = Started(*command(config, tmp_path))
    wait_for_step(process, tmp_path / "killed", 7)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model.safetensors").exists()

    resumed = run_sft(replace(config, resume="auto"), quiet=True)
    whole = run_sft(replace(config, output_dir=str(tmp_path / "whole")), quiet=True)
    a, b = weights(resumed.folder), weights(whole.folder)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    losses = [[(row["step"], row["loss"]) for row in metrics(run.folder) if "loss" in row] for run in (resumed, whole)]
    assert losses[0] == losses[1]


def test_sigterm_saves_a_checkpoint_and_leaves(make_config: MakeConfig, tmp_path: Path, weights: Weights) -> None:
    config = make_config({"num_train_epochs": 20, "save_steps": 10}, output_dir=str(tmp_path / "run"))
    process = Started(*command(config, tmp_path))
    wait_for_step(process, tmp_path / "run", 3)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "--resume auto" in said
    assert "Traceback" not in said
    newest = checkpoints(tmp_path / "run")[-1]
    assert fault(newest) is None
    resumed = run_sft(replace(config, resume="auto"), quiet=True)
    whole = run_sft(replace(config, output_dir=str(tmp_path / "whole")), quiet=True)
    a, b = weights(resumed.folder), weights(whole.folder)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def begun(make_config_in: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> SftConfig:
    config = make_config_in(tmp_path_factory.mktemp("begun"), {"save_steps": 3, "save_total_limit": None})
    folder = run_sft(config, quiet=True).folder
    (folder / "run.json").unlink()
    return config


@pytest.fixture
def stopped(begun: SftConfig, restored: Restored) -> Iterator[SftConfig]:
    """A run of which only checkpoints are left."""
    with restored(Path(begun.output_dir)):
        yield begun


@pytest.mark.parametrize("harm", ["truncated", "altered", "missing"])
def test_a_corrupted_checkpoint_is_refused_and_the_one_before_offered(harm: str, stopped: SftConfig) -> None:
    newest, before = checkpoints(Path(stopped.output_dir))[-1], checkpoints(Path(stopped.output_dir))[-2]
    victim = newest / "optimizer.pt"
    content = victim.read_bytes()
    if harm == "missing":
        victim.unlink()
    else:
        victim.write_bytes(content[:-10] if harm == "truncated" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=rf"cannot resume: optimizer\.pt .*the newest good one is .*{before.name}"):
        run_sft(replace(stopped, resume="auto"), quiet=True)
    assert run_sft(replace(stopped, resume=str(before)), quiet=True).finished


def test_a_checkpoint_that_was_never_finished_is_passed_over(
    stopped: SftConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = checkpoints(Path(stopped.output_dir))[-1]
    (newest / MANIFEST).unlink()
    os.truncate(newest / "optimizer.pt", 10)
    outcome = run_sft(replace(stopped, resume="auto"), quiet=True)
    assert outcome.finished
    assert "was never finished" in capsys.readouterr().err
    assert step_of(newest) == 12


@pytest.mark.parametrize(("fill", "why"), [("none", False), ("batch", True)])
def test_a_step_may_be_split_otherwise_where_rows_do_not_depend_on_their_batch(
    fill: str, why: bool, make_config: MakeConfig
) -> None:
    config = make_config({"save_steps": 3, "save_total_limit": None}, canvas=CanvasConfig(max_length=64, fill=fill))
    folder = run_sft(config, quiet=True).folder
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "status": "stopped"}))
    trainer = replace(config.trainer, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    other = replace(config, trainer=trainer, resume=str(folder / "checkpoint-3"))
    if why:
        with pytest.raises(UserError, match=r"batch_size was 4, is 2.*rows' fill or rates depend on the other rows"):
            run_sft(other, quiet=True)
    else:
        assert run_sft(other, quiet=True).finished


# ---- where a run stands ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(make_config_in: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> SftConfig:
    engine = {"save_steps": 5, "save_total_limit": None, "lr_scheduler_type": "constant", "learning_rate": 3e-3}
    config = make_config_in(tmp_path_factory.mktemp("finished"), engine, max_steps=5)
    run_sft(config, quiet=True)
    return config


@pytest.fixture
def done(finished: SftConfig, restored: Restored) -> Iterator[SftConfig]:
    """A run of 5 steps (of which 3 make an epoch) with a checkpoint at its end."""
    with restored(Path(finished.output_dir)):
        yield finished


def test_a_finished_run_that_is_resumed_is_left_as_it_is(done: SftConfig, weights: Weights) -> None:
    folder = Path(done.output_dir)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert run_sft(replace(done, resume="auto"), quiet=True).finished
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_killed_after_its_last_checkpoint_it_takes_no_further_step(
    done: SftConfig, weights: Weights, metrics: Metrics
) -> None:
    """The model was not written yet, and the record says "running"."""
    folder = Path(done.output_dir)
    expected = weights(folder)
    (folder / "model.safetensors").unlink()
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "status": "running"}))
    run_sft(replace(done, resume="auto"), quiet=True)
    assert [step_of(path) for path in checkpoints(folder)] == [5]
    assert all(torch.equal(value, expected[name]) for name, value in weights(folder).items())
    assert max(row["step"] for row in metrics(folder) if "loss" in row) == 5


@pytest.mark.parametrize(
    ("steps", "where", "message"),
    [
        (4, "none kept", "max_steps = 4: the run finished with 5"),
        (4, None, "the checkpoint is past max_steps = 4"),
        (4, "checkpoint-5", "the checkpoint is past max_steps = 4"),
        (8, "none kept", "kept no checkpoint to go on from"),
    ],
)
def test_a_run_that_cannot_be_so_long_is_refused(
    steps: int, where: str | None, message: str, done: SftConfig, tmp_path: Path
) -> None:
    folder = Path(done.output_dir)
    if where == "none kept":
        shutil.rmtree(folder / "checkpoint-5")
    resume = str(folder / "checkpoint-5") if where == "checkpoint-5" else "auto"
    with pytest.raises(UserError, match=message):
        run_sft(replace(done, resume=resume, max_steps=steps), quiet=True)


def test_a_finished_run_can_be_made_longer(done: SftConfig) -> None:
    run_sft(replace(done, resume="auto", max_steps=7), quiet=True)
    assert [step_of(path) for path in checkpoints(Path(done.output_dir))] == [5, 7]


def test_a_checkpoint_goes_on_elsewhere_with_the_settings_of_its_own_run_only(done: SftConfig, tmp_path: Path) -> None:
    checkpoint = Path(done.output_dir) / "checkpoint-5"
    elsewhere = replace(done, output_dir=str(tmp_path / "elsewhere"), resume=str(checkpoint), max_steps=6)
    for other in (replace(elsewhere, objective="gift"), replace(elsewhere, lora=LoraConfig(rank=2))):
        with pytest.raises(UserError, match="cannot resume with other settings"):
            run_sft(other, quiet=True)
    assert not (tmp_path / "elsewhere").exists()
    run_sft(elsewhere, quiet=True)
    shutil.copytree(checkpoint, tmp_path / "alone" / "checkpoint-5")
    alone = replace(elsewhere, resume=str(tmp_path / "alone" / "checkpoint-5"), output_dir=str(tmp_path / "new"))
    assert run_sft(alone, quiet=True).finished  # it says itself how it was trained
    (tmp_path / "alone" / "checkpoint-5" / KEPT).unlink()
    seal(tmp_path / "alone" / "checkpoint-5")
    with pytest.raises(UserError, match=r"no remask_run\.json says how it was trained"):
        run_sft(replace(alone, output_dir=str(tmp_path / "newer")), quiet=True)


@pytest.mark.parametrize("change", ["a word", "fewer rows"])
def test_rows_that_have_changed_are_refused(change: str, done: SftConfig, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"say {n}", "completion": "yes"}) + "\n" for n in range(8)))
    config = replace(done, data=str(source), output_dir=str(tmp_path / "run"))
    run_sft(config, quiet=True)
    lines = source.read_text().splitlines(keepends=True)
    source.write_text("".join(lines[:-1] if change == "fewer rows" else [lines[0].replace("yes", "no"), *lines[1:]]))
    with pytest.raises(UserError, match="its rows have changed"):
        run_sft(replace(config, resume="auto", max_steps=6), quiet=True)


def test_a_run_begins_in_no_folder_with_a_model(done: SftConfig, tmp_path: Path) -> None:
    folder = Path(done.output_dir)
    (folder / "run.json").unlink()
    shutil.rmtree(folder / "checkpoint-5")
    with pytest.raises(UserError, match="holds a model"):
        run_sft(done, quiet=True)
    for overwrite in (True, False):
        with pytest.raises(UserError, match="is the model to train from"):
            run_sft(replace(done, model=str(folder), overwrite=overwrite), quiet=True)
    with pytest.raises(UserError, match="output_dir is empty"):
        run_sft(replace(done, output_dir=" "), quiet=True)


def test_weights_can_be_read_by_whom_the_rest_can(done: SftConfig) -> None:
    folder = Path(done.output_dir)
    other = (folder / "run.json").stat().st_mode
    assert all(path.stat().st_mode == other for path in folder.rglob("*.safetensors"))


def test_overwriting_takes_tensorboards_curves_and_no_other_runs(done: SftConfig, tmp_path: Path) -> None:
    folder = Path(done.output_dir)
    for name in ("runs/Nov27_host/events.out.tfevents.1", "runs/mine/model.safetensors"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("x")
    run_sft(replace(done, overwrite=True, max_steps=1), quiet=True)
    assert not (folder / "runs" / "Nov27_host").exists()
    assert (folder / "runs" / "mine" / "model.safetensors").exists()


def test_resuming_replaces_no_model_and_no_other_run(done: SftConfig, tmp_path: Path) -> None:
    """Where there is nothing to go on with, a resumed run is one that begins."""
    other, checkpoint = tmp_path / "other", Path(done.output_dir) / "checkpoint-5"
    run_sft(replace(done, output_dir=str(other), max_steps=1), quiet=True)
    elsewhere = replace(done, output_dir=str(other), max_steps=6)
    with pytest.raises(UserError, match="holds a run already"):
        run_sft(replace(elsewhere, resume=str(checkpoint)), quiet=True)
    (other / "run.json").unlink()
    shutil.rmtree(other / "checkpoint-1", ignore_errors=True)
    with pytest.raises(UserError, match="holds a model"):
        run_sft(replace(elsewhere, resume="auto"), quiet=True)
    with pytest.raises(UserError, match="is the model to train from"):
        run_sft(replace(elsewhere, model=str(other), resume="auto"), quiet=True)


def test_a_finished_run_is_that_of_its_settings(done: SftConfig) -> None:
    shutil.rmtree(Path(done.output_dir) / "checkpoint-5")
    with pytest.raises(UserError, match="cannot resume with other settings: objective was 'sft', is 'gift'"):
        run_sft(replace(done, objective="gift", resume="auto"), quiet=True)


def test_a_run_that_begins_leaves_the_process_group_to_its_arguments(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which know its timeout and backend."""

    class BegunError(Exception):
        pass

    def arguments(*_: Any, **__: Any) -> None:
        raise BegunError

    monkeypatch.setattr("remask.sft.run.training_arguments", arguments)
    monkeypatch.setattr("remask.training.folder.PartialState", lambda **_: pytest.fail("too early"))
    with pytest.raises(BegunError):
        run_sft(make_config(), quiet=True)
