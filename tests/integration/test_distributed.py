"""Two processes over gloo train as one process does on the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remask import config as configs
from remask.config import CanvasConfig, ProbeConfig, SftConfig
from remask.sft.run import run_sft
from remask.training.checkpoints import checkpoints, fault
from started import finished, ranks, told_by_accelerate

RECIPES = Path(__file__).parents[2] / "recipes" / "accelerate"
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = ["accelerate.commands.launch", "--config_file", str(RECIPES / "ddp.yaml"), "--num_processes", "2"]


@pytest.mark.parametrize(("policy", "launcher"), [("policy", TORCHRUN), ("frozen", ACCELERATE)])
def test_two_ranks_give_one_ranks_losses(
    policy: Any,
    launcher: list[str],
    make_config: Callable[..., SftConfig],
    metrics: Callable[[Path], list[dict[str, Any]]],
    data: Path,
    tmp_path: Path,
) -> None:
    """The batches are split over ranks, N is counted over them, and noise does not know of ranks.

    torchrun begins the processes; accelerate's, which test_sharded_runs.py begins too, are forks told what it would.
    26 rows do not divide by 4: the last step of an epoch has rows for one rank only. What two ranks began, one goes on
    with.
    """
    rows = data.read_text().splitlines()
    uneven = tmp_path / "uneven.jsonl"
    uneven.write_text("\n".join([*rows, *rows[:2]]))
    one = make_config(
        {"per_device_train_batch_size": 4, "eval_steps": 3, "save_steps": 4, "save_total_limit": None},
        data=str(uneven),
        objective="gift",
        probe=ProbeConfig(policy=policy),
        canvas=CanvasConfig(max_length=64, fill="multiple:16"),
        eval_data=str(data),
        output_dir=str(tmp_path / "one"),
    )
    two = replace(
        one,
        output_dir=str(tmp_path / "two"),
        trainer=replace(one.trainer, per_device_train_batch_size=2),
    )
    path = tmp_path / "two.yaml"
    path.write_text(configs.dump(two))
    command = ["sft", "--config", str(path)]
    if launcher is ACCELERATE:
        finished(ranks(*command, **told_by_accelerate([*launcher[1:], "remask", *command])))
    else:
        done = subprocess.run(
            [sys.executable, "-m", *launcher, "-m", "remask.cli", *command],
            capture_output=True,
            text=True,
            timeout=240,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
    run_sft(one, quiet=True)
    for resume in (None, str(tmp_path / "two" / "checkpoint-4")):
        if resume:
            run_sft(replace(one, output_dir=str(tmp_path / "two"), resume=resume), quiet=True)
        for key in ("loss", "grad_norm_mean", "eval_loss", "eval_nll"):
            alone, together = ([row[key] for row in metrics(tmp_path / name) if key in row] for name in ("one", "two"))
            assert len(alone) == len(together) > 0
            assert together == pytest.approx(alone, rel=1e-4)
    # The first rank alone counts right tokens.
    counts = [json.loads((tmp_path / name / "class_accuracy.json").read_text()) for name in ("one", "two")]
    assert counts[0]["before"] == counts[1]["before"]
    assert counts[1]["after"] is not None


@pytest.mark.parametrize("told", [0, 1])
def test_one_rank_is_told_to_stop_and_all_do(
    told: int, make_config: Callable[..., SftConfig], metrics: Callable[[Path], list[dict[str, Any]]], tmp_path: Path
) -> None:
    """Signals reach processes at different moments: a step that one of them would not take must not keep the others."""
    config = make_config({"per_device_train_batch_size": 2, "num_train_epochs": 500})
    folder, path = Path(config.output_dir), tmp_path / "run.yaml"
    path.write_text(configs.dump(config))
    both = ranks("sft", "--config", str(path))
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() or len(metrics(folder)) < 3:
        assert all(process.poll() is None for process in both)
        assert time.monotonic() < deadline
        time.sleep(0.05)
    both[told].terminate()
    said = "".join(process.communicate(timeout=60)[1] for process in both)
    assert "a checkpoint is saved" in said
    (newest,) = checkpoints(folder)
    assert fault(newest) is None
    assert metrics(folder)[-1]["step"] == int(newest.name.partition("-")[2]) < 1000
    assert json.loads((folder / "run.json").read_text())["status"] == "stopped"


def test_launch_recipes_are_read() -> None:
    """By accelerate's own reader, which refuses keys that it does not know; Slurm's by its shell."""
    from accelerate.commands.config.config_args import load_config_from_file

    kinds = {path.stem: load_config_from_file(str(path)).distributed_type.value for path in RECIPES.glob("*.yaml")}
    assert kinds == {
        "ddp": "MULTI_GPU",
        "ddp-2-nodes": "MULTI_GPU",
        "fsdp2": "FSDP",
        "zero2": "DEEPSPEED",
        "zero3": "DEEPSPEED",
    }
    subprocess.run(["bash", "-n", str(RECIPES / "slurm.sh")], check=True)
