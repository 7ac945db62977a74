"""Which policy objective learns best: every method from the same start, on the same budget, over several seeds.

    python scripts/pretrain_tiny.py --output base-sudoku --direct --tasks sudoku --canvas 20 --width 64 --layers 3 \\
        --steps 2500 --stop-after 450 --learning-rate 3e-3 --batch-size 64
    (countdown: --canvas 32 --stop-after 1500)
    python benchmarks/rl_study.py tune --task sudoku --base base-sudoku --output study
    python benchmarks/rl_study.py main --task sudoku --base base-sudoku --output study
    python benchmarks/rl_results.py --task sudoku --output study --figure rl-sudoku.svg

`tune` tries every method at the same two learning rates on one seed that is not used again; `main` runs each at its
best one (held-out score on validation problems at the end), three seeds, and answers test problems once. A run that is
done is not done again: stop and start as you like.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from remask import config as configs
from remask.config import (
    DecodingConfig,
    EvalConfig,
    HeldOutConfig,
    PolicyChoicesConfig,
    PolicyEngineConfig,
    RlConfig,
    RolloutConfig,
)
from remask.evaluation.evaluate import evaluate_model
from remask.rl.run import run_rl
from remask.training.folder import status_of

LEARNING_RATES = (1e-4, 3e-4)
TUNING_SEED, SEEDS = 100, (0, 1, 2)
VALIDATION = {"sudoku": 120, "countdown": 120}
TEST = {"sudoku": 500, "countdown": 120}
STEPS = {"sudoku": 20, "countdown": 16}
"""Of decoding a canvas of 20 or 32, in rollouts (temperature 1) and in evaluations (greedy)."""


@dataclass(frozen=True)
class Arm:
    """A method: a preset and what it changes. With a rate it is not tuned: what would another rate have done?"""

    objective: str
    choices: dict[str, Any] = field(default_factory=dict)
    rate: float | None = None


ARMS = {
    "espo": Arm("espo"),
    "diffu-grpo": Arm("diffu-grpo"),
    "wd1": Arm("wd1"),
    "coupled-grpo": Arm("coupled-grpo"),
    "token-elbo": Arm("token-elbo"),
    "sequence-mean-field": Arm("sequence-mean-field"),
    "token-mean-field": Arm("token-mean-field"),
    "espo-k1": Arm("espo", {"kl": "k1"}),
    "espo-k3": Arm("espo", {"kl": "k3"}),
    "espo-lr3e-4": Arm("espo", rate=3e-4),
    "wd1-lr1e-4": Arm("wd1", rate=1e-4),
}


def config_of(arm: str, task: str, base: Path, folder: Path, *, seed: int, rate: float, steps: int) -> RlConfig:
    chosen = ARMS[arm]
    return RlConfig(
        model=str(base),
        tasks=task,
        problems=1500,
        objective=chosen.objective,
        choices=PolicyChoicesConfig(**chosen.choices),
        output_dir=str(folder),
        resume="auto",
        seed=seed,
        max_steps=steps,
        rollout=RolloutConfig(
            prompts=16,
            completions=8,
            inner_updates=2,
            batch_size=128,
            keep=2,
            decoding=DecodingConfig(temperature=1.0, steps=STEPS[task]),
        ),
        held_out=HeldOutConfig(
            n=VALIDATION[task], batch_size=120, decoding=DecodingConfig(temperature=0.0, steps=STEPS[task])
        ),
        trainer=PolicyEngineConfig(
            learning_rate=rate,
            per_device_train_batch_size=128,
            logging_steps=4,
            eval_steps=20,
            save_steps=40,
            backward="whole",
            report_to=("none",),
        ),
    )


def carry_out(config: RlConfig, label: str) -> Path:
    folder = Path(config.output_dir)
    if status_of(folder) == "finished" and configs.load(RlConfig, folder / "config.yaml").max_steps == config.max_steps:
        return folder
    if not (folder / "run.json").exists():
        config = replace(config, resume=None, overwrite=True)
    if not run_rl(config, label=label).finished:
        raise KeyboardInterrupt
    return folder


def curve(folder: Path, key: str) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row[key]) for row in rows if key in row]


def tuned(folder: Path, arm: str, task: str) -> float:
    """The learning rate of highest held-out score over the last two evaluations."""
    if ARMS[arm].rate is not None:
        return ARMS[arm].rate
    ends = {
        rate: sum(value for _, value in curve(folder / "tune" / f"{arm}-{rate:g}", f"eval_{task}_score")[-2:])
        for rate in LEARNING_RATES
    }
    return max(ends, key=lambda rate: ends[rate])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=["tune", "main"])
    parser.add_argument("--task", required=True, choices=sorted(TEST))
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", default=[a for a, arm in ARMS.items() if not arm.rate], choices=list(ARMS))
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--tune-steps", type=int, default=80)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder, task = arguments.output / arguments.task, arguments.task
    if arguments.phase == "tune":
        for arm in arguments.arms:
            for rate in LEARNING_RATES:
                run = folder / "tune" / f"{arm}-{rate:g}"
                carry_out(
                    config_of(arm, task, arguments.base, run, seed=TUNING_SEED, rate=rate, steps=arguments.tune_steps),
                    f"{task} {arm} {rate:g}",
                )
            print(f"{task}: {arm} at {tuned(folder, arm, task):g}", flush=True)
        return
    answer(arguments.base, task, folder / "start" / "eval.json", "start")
    for seed in arguments.seeds:
        for arm in arguments.arms:
            run, rate = folder / "main" / f"{arm}-{seed}", tuned(folder, arm, task)
            carry_out(
                config_of(arm, task, arguments.base, run, seed=seed, rate=rate, steps=arguments.steps),
                f"{task} {arm} seed {seed}",
            )
            answer(run, task, run / "eval.json", arm)


def answer(model: Path, task: str, path: Path, arm: str) -> None:
    """Test problems, answered greedily, once."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        config = EvalConfig(
            model=str(model),
            tasks=task,
            n=TEST[task],
            batch_size=100,
            json=str(path),
            arm=arm,
            decoding=DecodingConfig(steps=STEPS[task]),
        )
        evaluate_model(config, label=f"test {path.parent.name}")


if __name__ == "__main__":
    main()
