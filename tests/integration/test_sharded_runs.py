"""`sft`, `rl` and `dpo` under FSDP2 and DeepSpeed, launched with the recipes for GPUs on CPU processes over gloo: the
numbers are one process's, the model is written whole, and FSDP2's checkpoints go on under another number of processes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cpu_ranks
import pytest
import torch

from remask import config as configs
from remask import load
from remask.config import (
    CanvasConfig,
    DecodingConfig,
    DpoConfig,
    HeldOutConfig,
    LoraConfig,
    PolicyEngineConfig,
    PreferenceChoicesConfig,
    PreferenceEngineConfig,
    ProbeConfig,
    ReferenceConfig,
    RewardsConfig,
    RlConfig,
    RolloutConfig,
    SftConfig,
    TrainerConfig,
)
from remask.errors import UserError
from remask.preference.run import run_dpo
from remask.rl.run import run_rl
from remask.sft.run import run_sft
from started import finished, ranks, told_by_accelerate

RECIPES = Path(__file__).parents[2] / "recipes" / "accelerate"
RANKS = Path(cpu_ranks.__file__)
Metrics = Callable[[Path], list[dict[str, Any]]]
Weights = Callable[[Path], dict[str, torch.Tensor]]
RUN: dict[str, Callable[..., Any]] = {"sft": run_sft, "rl": run_rl, "dpo": run_dpo}
ENGINE = {"logging_steps": 1, "save_steps": 3, "save_total_limit": None, "report_to": ("none",)}
COMPARED = {
    "sft": ("loss", "grad_norm_mean", "eval_loss", "eval_nll", "beta_mean"),
    "rl": ("loss", "grad_norm_mean", "reward_mean", "kl", "ratio_max", "eval_reward"),
    "dpo": ("loss", "grad_norm_mean", "margin", "eval_loss", "eval_accuracy"),
}


def reward(folder: Path) -> Path:
    path = folder / "own.py"
    path.write_text(
        "def letters(prompts, completions, **columns):\n"
        "    return [sum(c.isascii() and c.isalpha() for c in text) / 8 for text in completions]\n"
    )
    return path


def pairs(folder: Path) -> Path:
    path = folder / "pairs.jsonl"
    words = ["ab", "cde", "fgha", "bcdef", "gh", "abcdefg", "hgf", "edcba", "fade", "cage", "bead"]
    path.write_text("".join(json.dumps({"prompt": w, "chosen": w, "rejected": w.upper()}) + "\n" for w in words))
    return path


@pytest.fixture(scope="module")
def one_process(checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A config of each kind for one process; rows, evaluations and epochs divide by no number of processes."""
    folder = tmp_path_factory.mktemp("sharded")
    rows = data.read_text().splitlines()
    uneven = folder / "uneven.jsonl"
    uneven.write_text("\n".join([*rows, *rows[:2]]))
    sft = SftConfig(
        model=str(checkpoint),
        data=str(uneven),
        eval_data=str(data),
        objective="gift",
        probe=ProbeConfig(policy="frozen", every=1),
        canvas=CanvasConfig(max_length=64, fill="multiple:16"),
        trainer=TrainerConfig(
            **ENGINE,
            learning_rate=1e-3,
            num_train_epochs=2,
            per_device_train_batch_size=4,
            per_device_eval_batch_size=8,
            eval_draws=3,
            eval_steps=3,
        ),
        output_dir=str(folder / "one" / "sft"),
    )
    rl = RlConfig(
        model=str(checkpoint),
        tasks="countdown",
        problems=6,
        max_steps=6,
        rewards=RewardsConfig(functions=(f"{reward(folder)}:letters",)),
        rollout=RolloutConfig(
            prompts=4,
            completions=4,
            inner_updates=2,
            keep=3,
            decoding=DecodingConfig(max_new_tokens=8, steps=4, temperature=1.0),
        ),
        reference=ReferenceConfig(sync_every=2),
        held_out=HeldOutConfig(n=5, decoding=DecodingConfig(steps=2)),
        trainer=PolicyEngineConfig(**ENGINE, learning_rate=3e-3, eval_steps=3),
        output_dir=str(folder / "one" / "rl"),
    )
    dpo = DpoConfig(
        model=str(checkpoint),
        data=str(pairs(folder)),
        eval_data=str(pairs(folder)),
        canvas=CanvasConfig(max_length=64),
        choices=PreferenceChoicesConfig(draws=2, likelihood="elbo_coupled"),
        trainer=PreferenceEngineConfig(
            **ENGINE,
            learning_rate=1e-3,
            num_train_epochs=2,
            per_device_train_batch_size=4,
            per_device_eval_batch_size=5,  # 11 pairs: the last batch is so small that its views are read together
            eval_steps=3,
        ),
        output_dir=str(folder / "one" / "dpo"),
    )
    return {"sft": sft, "rl": rl, "dpo": dpo}


def launched(
    kinds: dict[str, Any], folder: Path, recipe: str, processes: int, resume: str | None = None, forked: bool = True
) -> None:
    """Run each config on so many processes, its steps shared out among them; `resume` names the checkpoint. FSDP2's
    processes are forks told what accelerate's launcher would tell them, or are begun by it.
    """
    folder.mkdir(exist_ok=True)
    commands = []
    for kind, config in kinds.items():
        size = 4 // processes
        trainer = replace(config.trainer, per_device_train_batch_size=size)
        path = folder / f"{kind}.yaml"
        path.write_text(configs.dump(replace(config, trainer=trainer, output_dir=str(folder / kind))))
        going_on = ["--resume", str(folder / kind / resume)] if resume else []
        commands.append([kind, "--config", str(path), *going_on])
    (folder / "commands.json").write_text(json.dumps(commands))
    launch = ["--config_file", str(RECIPES / f"{recipe}.yaml"), "--main_process_port", "0"]  # any that is free
    launch += ["--num_processes", str(processes), str(RANKS), str(folder / "commands.json")]
    if forked and recipe == "fsdp2":
        environment = told_by_accelerate(launch)
        finished(ranks(launch[-1], count=processes, program=cpu_ranks.main, **environment), 400)
        return
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *launch],
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
    )
    assert done.returncode == 0, done.stderr  # whole: the process that failed first wrote before those it left behind


@dataclass(frozen=True)
class Runs:
    """Folders with a run of each kind: by one process, by two with sharded weights, and by four from a checkpoint."""

    one: Path
    two: Path
    resumed: Path
    configs: dict[str, Any]


@pytest.fixture(scope="module")
def runs(one_process: dict[str, Any]) -> Runs:
    folder = Path(one_process["sft"].output_dir).parents[1]
    for kind, config in one_process.items():
        RUN[kind](config, quiet=True)
    launched(one_process, folder / "two", "fsdp2", 2, forked=False)
    shutil.copytree(folder / "two", folder / "four")
    launched(one_process, folder / "four", "fsdp2", 4, resume="checkpoint-3")
    return Runs(folder / "one", folder / "two", folder / "four", one_process)


def same_run(
    kind: str, one: Path, other: Path, metrics: Metrics, weights: Weights, *, lacks: tuple[str, ...] = ()
) -> None:
    for key in (key for key in COMPARED[kind] if key not in lacks):
        alone, sharded = ([row[key] for row in metrics(folder) if key in row] for folder in (one, other))
        assert len(alone) == len(sharded) > 0, key
        assert sharded == pytest.approx(alone, rel=1e-3, abs=1e-5), key
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[name], b[name], atol=1e-4) for name in a)


@pytest.mark.parametrize("kind", RUN)
def test_sharded_runs_give_one_processs_numbers(kind: str, runs: Runs, metrics: Metrics, weights: Weights) -> None:
    for folder in (runs.two, runs.resumed):
        same_run(kind, runs.one / kind, folder / kind, metrics, weights)


@pytest.mark.parametrize("recipe", ["zero2", "zero3"])
@pytest.mark.parametrize("kind", RUN)
def test_deepspeed_gives_one_processs_numbers(
    kind: str, recipe: str, runs: Runs, tmp_path: Path, metrics: Metrics, weights: Weights
) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    launched({kind: runs.configs[kind]}, tmp_path, recipe, 2)
    same_run(kind, runs.one / kind, tmp_path / kind, metrics, weights)
    launched({kind: runs.configs[kind]}, tmp_path, recipe, 2, resume="checkpoint-3")
    same_run(kind, runs.one / kind, tmp_path / kind, metrics, weights)
    with pytest.raises(AssertionError, match="a checkpoint of 2 processes under DeepSpeed cannot be resumed with 1"):
        launched({kind: runs.configs[kind]}, tmp_path, recipe, 1, resume="checkpoint-3")


def test_what_sharded_runs_write_is_whole(runs: Runs) -> None:
    for kind in RUN:
        model, _ = load(str(runs.two / kind))
        assert sum(p.numel() for p in model.parameters()) == sum(
            p.numel() for p in load(str(runs.one / kind))[0].parameters()
        )
    for name in ("class_accuracy.json", "masking.json"):
        assert (runs.two / "sft" / name).exists() == (runs.one / "sft" / name).exists()
    assert (runs.two / "rl" / "completions.jsonl").read_bytes() == (runs.one / "rl" / "completions.jsonl").read_bytes()


@pytest.mark.parametrize("objective", ["wd1", "diffu-grpo"])
def test_processes_without_a_prompt_or_a_problem_keep_in_step(
    objective: str, one_process: dict[str, Any], tmp_path: Path, metrics: Metrics, weights: Weights
) -> None:
    """What some processes do on whole weights and others do not, between two updates or before the first."""
    rl = one_process["rl"]
    rollout = replace(rl.rollout, prompts=1, inner_updates=1) if objective == "wd1" else rl.rollout
    rl = replace(
        rl,
        objective=objective,
        rollout=rollout,
        reference=ReferenceConfig(),
        held_out=replace(rl.held_out, n=1),
        output_dir=str(tmp_path / "one"),
    )
    run_rl(rl, quiet=True)
    launched({"rl": rl}, tmp_path / "two", "fsdp2", 2)
    lacks = ("kl", "ratio_max") if objective == "wd1" else ()  # it has neither
    same_run("rl", tmp_path / "one", tmp_path / "two" / "rl", metrics, weights, lacks=lacks)


def test_answers_are_compared_within_groups_that_processes_share(
    one_process: dict[str, Any], tmp_path: Path, metrics: Metrics, weights: Weights
) -> None:
    """Three groups of four answers, six on each process: the policy is read before every step."""
    rl = one_process["rl"]
    rl = replace(
        rl,
        objective="stabledrl",
        rollout=replace(rl.rollout, prompts=3, inner_updates=3),
        held_out=HeldOutConfig(tasks="none"),
        trainer=replace(rl.trainer, eval_steps=0),
        output_dir=str(tmp_path / "one"),
    )
    run_rl(rl, quiet=True)
    launched({"rl": rl}, tmp_path / "two", "fsdp2", 2)
    same_run("rl", tmp_path / "one", tmp_path / "two" / "rl", metrics, weights, lacks=("kl", "eval_reward"))


def test_adapters_in_mixed_precision(runs: Runs, tmp_path: Path, metrics: Metrics) -> None:
    """Computed in bfloat16, which no loss is rounded to."""
    plain = runs.configs["sft"]
    trainer = replace(plain.trainer, bf16=True, save_steps=0)
    config = replace(plain, lora=LoraConfig(rank=4), trainer=trainer, output_dir=str(tmp_path / "one"))
    run_sft(config, quiet=True)
    launched({"sft": config}, tmp_path / "two", "fsdp2", 2)
    for key, far in (("loss", 1e-2), ("eval_nll", 1e-2), ("grad_norm_mean", 5e-2)):
        alone, sharded = (
            [row[key] for row in metrics(folder) if key in row]
            for folder in (tmp_path / "one", tmp_path / "two" / "sft")
        )
        assert len(alone) == len(sharded) > 0
        assert sharded == pytest.approx(alone, rel=far), key
        assert any(torch.tensor(value).bfloat16().item() != pytest.approx(value, rel=1e-6) for value in sharded)
    model, _ = load(str(tmp_path / "two" / "sft"))
    assert hasattr(model, "disable_adapter")


@pytest.mark.parametrize("recipe", ["fsdp2", "zero2", "zero3"])
def test_adapters_give_one_processs_numbers(
    recipe: str, one_process: dict[str, Any], tmp_path: Path, metrics: Metrics, weights: Weights
) -> None:
    """Their modules are called with what they add onto, and their weights whole."""
    if recipe != "fsdp2":
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    rl = one_process["rl"]
    lora = LoraConfig(rank=4, targets=("all-linear",))
    config = replace(rl, lora=lora, reference=ReferenceConfig(), output_dir=str(tmp_path / "one"))
    run_rl(config, quiet=True)
    launched({"rl": config}, tmp_path / "two", recipe, 2)
    same_run("rl", tmp_path / "one", tmp_path / "two" / "rl", metrics, weights)


def going_on(runs: Runs, kind: str) -> Any:
    """In this one process, from a checkpoint of the sharded run."""
    folder = runs.two / kind
    return replace(runs.configs[kind], output_dir=str(folder), resume=str(folder / "checkpoint-3"))


@pytest.mark.parametrize("kind", RUN)
def test_a_sharded_checkpoint_is_refused_without_its_engine(kind: str, runs: Runs) -> None:
    config = going_on(runs, kind)
    with pytest.raises(UserError, match="checkpoint of a run under FSDP cannot be resumed under plain"):
        RUN[kind](config, quiet=True)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_steps_of_other_rows_are_refused(kind: str, runs: Runs) -> None:
    """What one process would take 2 rows a step of was trained in steps of 4."""
    config = going_on(runs, kind)
    config = replace(config, trainer=replace(config.trainer, per_device_train_batch_size=2))
    with pytest.raises(UserError, match="steps of 2 rows: they had 4"):
        RUN[kind](config, quiet=True)
