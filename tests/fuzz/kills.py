"""Kill a run at random moments and let it go on, again and again: in the end it must be the run that was never stopped.

    python tests/fuzz/kills.py --kind rl --kills 20

Two runs of the embedded model with the same settings: one undisturbed, one ended by SIGKILL as many times as asked for,
each time after a random time from its start, and gone on with by `--resume auto`. Compared are the weights bit for bit,
`completions.jsonl` byte for byte, and `metrics.jsonl` line for line but for times.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

TIMES = ("seconds", "share_", "_per_second", "train_runtime")
MOST = 600.0
COMMON = """
model: tiny-direct
max_steps: {steps}
trainer: {{logging_steps: 3, save_steps: 2, eval_steps: 8, report_to: [none], {engine}}}
"""
SETTINGS = {
    "sft": """
data: "generated:direct:countdown:60"
eval_data: "generated:direct:countdown:8"
objective: gift
probe: {policy: frozen, every: 1}
lora: {rank: 4, dropout: 0.1}
""",
    "rl": """
tasks: countdown
problems: 20
rewards: {functions: [format, length]}
rollout: {prompts: 2, completions: 4, inner_updates: 3, decoding: {max_new_tokens: 24, steps: 4}}
held_out: {n: 4, decoding: {max_new_tokens: 24, steps: 2}}
reference: {sync_every: 5}
""",
    "dpo": """
data: "generated:countdown:24"
eval_data: "generated:countdown:4"
choices: {draws: 2}
""",
}
ENGINE = {
    "sft": "per_device_train_batch_size: 4",
    "rl": "learning_rate: 1.0e-4",
    "dpo": "per_device_train_batch_size: 2",
}


def command(kind: str, config: Path, folder: Path) -> list[str]:
    flags = ["--config", str(config), "--output-dir", str(folder), "--resume", "auto"]
    return [sys.executable, "-m", "remask.cli", kind, *flags]


def begin(kind: str, config: Path, folder: Path) -> subprocess.Popen[bytes]:
    log = (folder.parent / f"{folder.name}.log").open("ab")
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    return subprocess.Popen(command(kind, config, folder), stdout=log, stderr=log, env=environment)


def killed(kind: str, config: Path, folder: Path, kills: int, seconds: float, chance: random.Random) -> int:
    """How many kills hit the run before it was done. A run that is done begins anew until there were enough."""
    hits = 0
    while hits < kills:
        process = begin(kind, config, folder)
        try:
            process.wait(chance.uniform(0.0, 1.1) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            hits += 1
            continue
        if process.returncode:
            raise SystemExit(f"exit code {process.returncode}: see {folder}.log")
        return hits
    return hits


def lines(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not any(part in k for part in TIMES)} for row in rows]


def differences(a: Path, b: Path) -> list[str]:
    """The names of what differs between two finished runs."""
    found = []
    names = {path.name for folder in (a, b) for path in folder.glob("*model.safetensors")}
    for name in sorted(names):
        one, other = load_file(a / name), load_file(b / name)
        if one.keys() != other.keys() or not all(torch.equal(one[key], other[key]) for key in one):
            found.append(name)
    if lines(a) != lines(b):
        found.append("metrics.jsonl")
    for name in ("completions.jsonl", "class_accuracy.json", "masking.json"):
        content = [(folder / name).read_bytes() if (folder / name).exists() else b"" for folder in (a, b)]
        if content[0] != content[1]:
            found.append(name)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kind", choices=sorted(SETTINGS), required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    chance = random.Random(asked.seed)
    with tempfile.TemporaryDirectory(prefix="kills-") as place:
        config = Path(place) / "settings.yaml"
        config.write_text(SETTINGS[asked.kind] + COMMON.format(steps=asked.steps, engine=ENGINE[asked.kind]))
        whole = Path(place) / "whole"
        started = time.monotonic()
        if begin(asked.kind, config, whole).wait(MOST):
            raise SystemExit((whole.parent / "whole.log").read_text())
        seconds = time.monotonic() - started
        hits = runs = 0
        bad: list[str] = []
        while hits < asked.kills:
            folder = Path(place) / f"killed-{runs}"
            now = killed(asked.kind, config, folder, asked.kills - hits, seconds, chance)
            if (code := begin(asked.kind, config, folder).wait(MOST)) != 0:
                raise SystemExit(f"exit code {code}: {(folder.parent / f'{folder.name}.log').read_text()[-2000:]}")
            differing = differences(whole, folder)
            bad += [f"run {runs}: {name} differs" for name in differing]
            hits, runs = hits + now, runs + 1
    print(f"{asked.kind}: {hits} kills in {runs} runs of {asked.steps} steps ({seconds:.0f} s undisturbed); ", end="")
    print("; ".join(bad) or "every run ended as the undisturbed one")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
