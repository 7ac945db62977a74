"""Ways in which a run could lose its work or take another's for its own."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from remask import config as configs
from remask import load
from remask.cli import main
from remask.config import LoraConfig, SftConfig
from remask.errors import UserError
from remask.evaluation.run import identity
from remask.sft.run import run_sft
from remask.sft.trainer import SftTrainer

MakeConfig = Callable[..., SftConfig]


def test_full_weights_over_a_lora_run_are_not_hidden_by_its_adapter(make_config: MakeConfig) -> None:
    run_sft(make_config(lora=LoraConfig(rank=2), max_steps=1), quiet=True)
    folder = run_sft(make_config(max_steps=1, overwrite=True), quiet=True).folder
    model, _ = load(folder)
    assert type(model).__name__ == "LLaDAModelLM"


@pytest.mark.parametrize("rank", [0, 2])
def test_a_lora_run_can_be_trained_further(rank: int, make_config: MakeConfig, data: Path, tmp_path: Path) -> None:
    """The lower adapter is merged: what was trained is what is saved and loaded."""
    first = run_sft(make_config({"learning_rate": 0.05}, lora=LoraConfig(rank=2)), quiet=True).folder
    second = make_config(
        {"learning_rate": 1e-12},
        model=str(first),
        lora=LoraConfig(rank=rank),
        output_dir=str(tmp_path / "second"),
        max_steps=1,
    )
    folder = run_sft(second, quiet=True).folder
    (a, tokenizer), (b, _) = load(first), load(folder)
    ids = torch.tensor([tokenizer.encode("say a")])
    mask = torch.ones_like(ids)
    torch.testing.assert_close(
        a(input_ids=ids, attention_mask=mask).logits, b(input_ids=ids, attention_mask=mask).logits, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("eval_steps", [12, 0])
def test_a_signal_in_the_last_evaluation_loses_nothing(
    eval_steps: int,
    make_config: MakeConfig,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    weights: Callable[[Path], dict[str, Tensor]],
) -> None:
    """Every step is done: the model is there whatever happens in the evaluation."""
    evaluate = SftTrainer.evaluate

    def signalled(self: SftTrainer, *a: Any, **k: Any) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, *a, **k)

    monkeypatch.setattr(SftTrainer, "evaluate", signalled)
    outcome = run_sft(make_config({"eval_steps": eval_steps}, eval_data=str(data)), quiet=True)
    assert outcome.finished
    assert weights(outcome.folder)
    assert json.loads((outcome.folder / "run.json").read_text())["status"] == "finished"


def test_steps_before_a_stop_are_logged(
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    metrics: Callable[[Path], list[dict[str, Any]]],
    untimed: Callable[[Path], list[dict[str, Any]]],
) -> None:
    """The window of steps that a stop cuts short is written, and the run that goes on fills it in its place."""
    config = make_config({"logging_steps": 5})
    loss, calls = SftTrainer.compute_loss, []

    def signalled(self: SftTrainer, *a: Any, **k: Any) -> Any:
        calls.append(None)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, *a, **k)

    monkeypatch.setattr(SftTrainer, "compute_loss", signalled)
    stopped = run_sft(config, quiet=True)
    assert (stopped.finished, stopped.signal) == (False, signal.SIGTERM)
    (partly,) = [row for row in metrics(stopped.folder) if "loss" in row]
    run_sft(replace(config, resume="auto"), quiet=True)
    monkeypatch.undo()
    each = metrics(run_sft(make_config(output_dir=f"{config.output_dir}-1"), quiet=True).folder)
    losses = [row["loss"] for row in each if "loss" in row]
    shown = [partly, *(row for row in metrics(stopped.folder) if "loss" in row)]
    assert [row["step"] for row in shown] == [3, 5, 10, 12]
    for row, start in zip(shown, [0, 0, 5, 10], strict=True):
        of_window = losses[start : row["step"]]
        assert row["loss"] == pytest.approx(sum(of_window) / len(of_window), rel=1e-6)
    assert each[-1]["train_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-12)
    whole = run_sft(replace(config, output_dir=f"{config.output_dir}-whole"), quiet=True)
    assert untimed(stopped.folder) == untimed(whole.folder)


def test_a_run_is_not_resumed_with_other_settings(make_config: MakeConfig) -> None:
    config = make_config({"save_steps": 3}, max_steps=3)
    run_sft(config, quiet=True)
    with pytest.raises(UserError, match="objective was 'sft', is 'gift'"):
        run_sft(replace(config, objective="gift", resume="auto"), quiet=True)
    assert run_sft(replace(config, max_steps=5, resume="auto"), quiet=True).finished


def test_the_written_config_neither_resumes_nor_overwrites(make_config: MakeConfig) -> None:
    config = make_config(max_steps=1, overwrite=True)
    path = run_sft(config, quiet=True).folder / "config.yaml"
    assert configs.load(SftConfig, path) == replace(config, overwrite=False)


def test_a_torn_line_of_metrics_does_not_stop_a_resume(
    make_config: MakeConfig, metrics: Callable[[Path], list[dict[str, Any]]]
) -> None:
    config = make_config({"save_steps": 3}, max_steps=3)
    folder = run_sft(config, quiet=True).folder
    with (folder / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 4, "lo')
    run_sft(replace(config, max_steps=5, resume="auto"), quiet=True)
    assert [row["step"] for row in metrics(folder) if "loss" in row] == [1, 2, 3, 4, 5]


def test_speed_does_not_count_evaluation(
    make_config: MakeConfig,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    metrics: Callable[[Path], list[dict[str, Any]]],
) -> None:
    import time

    evaluate = SftTrainer.evaluate

    def slow(self: SftTrainer, *a: Any, **k: Any) -> dict[str, float]:
        time.sleep(3)
        return evaluate(self, *a, **k)

    monkeypatch.setattr(SftTrainer, "evaluate", slow)
    config = make_config({"eval_steps": 1, "logging_steps": 2}, eval_data=str(data), max_steps=2)
    (row,) = [row for row in metrics(run_sft(config, quiet=True).folder) if "loss" in row]
    assert row["tokens_per_second"] > 2 * 4 * 10 / 3


def test_a_checkpoint_belongs_to_its_run(make_config: MakeConfig) -> None:
    folder = run_sft(make_config({"save_steps": 1}, max_steps=1, objective="gift", seed=3), quiet=True).folder
    assert identity(str(folder / "checkpoint-1")) == ("gift", 3)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--max-steps", "0"], "max_steps = 0"),
        (["--trainer.logging-steps", "0"], "trainer.logging_steps = 0"),
        (["--trainer.eval-draws", "0"], "trainer.eval_draws = 0"),
        (["--trainer.learning-rate", "nan"], "trainer.learning_rate = nan"),
        (["--trainer.per-device-train-batch-size", "0"], "trainer.per_device_train_batch_size = 0"),
        (["--trainer.report-to", "nobody"], "nobody is not supported"),
        (["--lora.rank", "-1"], "lora.rank = -1"),
        (["--resume", "auto", "--overwrite"], "both resume and overwrite"),
    ],
)
def test_a_number_out_of_range_is_one_line_and_leaves_no_run(
    flags: list[str], said: str, checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    arguments = ["sft", "--model", str(checkpoint), "--data", str(data), "--output-dir", str(run)]
    assert main([*arguments, *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not (run / "run.json").exists()


def test_output_paths_are_looked_at_before_the_work(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    model = ["--model", str(checkpoint)]
    assert main(["sft", *model, "--data", str(data), "--output-dir", str(tmp_path / "file")]) == 2
    assert main(["eval", *model, "--json", str(tmp_path)]) == 2
    assert main(["eval", *model, "--tasks", "sudoku,sudoku"]) == 2
    assert main(["eval", *model, "--batch-size", "0"]) == 2
    assert main(["inspect", *model, "--json", str(tmp_path / "no" / "i.json")]) == 2
    assert main(["tour", "--seeds", "0", "0", "--output-dir", str(tmp_path / "tour")]) == 2
    assert not (tmp_path / "tour").exists()
    assert len(capsys.readouterr().err.strip().splitlines()) == 6


def test_inspecting_a_method_without_importance_shows_its_own_rate(
    checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    path = tmp_path / "i.json"
    flags = ["--model", str(checkpoint), "--data", str(data), "--rows", "1", "--time", "0.3", "--json", str(path)]
    assert main(["inspect", "--objective", "sft", *flags]) == 0
    (example,) = json.loads(path.read_text())["examples"]
    assert example["beta"] is None
    assert set(example["rate"]) == {0.3}
