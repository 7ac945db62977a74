"""Seconds of a step of RL where rollouts are sampled between updates, and where they are sampled during them.

The embedded model is trained in one process of one thread; one or two servers, processes of one thread each, write the
answers. Settings take turns, `--rounds` times. Of each run the steps of the first two rollouts are left out; the other
steps' seconds are divided by their number.

    python benchmarks/rollout_speed.py [--rounds 3] [--steps 24]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from remask.progress import progress

KEY = "weights"
SETTINGS = """
model: tiny-direct
tasks: sudoku
problems: 64
max_steps: {steps}
rollout: {{prompts: 4, completions: 8, inner_updates: {inner}, decoding: {{max_new_tokens: 32, steps: 16}}}}
held_out: {{tasks: none}}
trainer: {{logging_steps: 1, save_steps: 1000, per_device_train_batch_size: 32, report_to: [none]}}
"""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "REMASK_ADMIN_KEY": KEY}
REMASK = (sys.executable, "-m", "remask.cli")


@contextmanager
def servers(count: int) -> Iterator[str]:
    """The addresses of so many servers, after commas; `local` where there are none."""
    begun = [
        subprocess.Popen(
            [*REMASK, "serve", "--model", "tiny-direct", "--port", "0", "--admin-key", KEY],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=ENVIRONMENT,
        )
        for _ in range(count)
    ]
    try:
        yield ",".join(one.stdout.readline().split()[0] for one in begun if one.stdout) or "local"
    finally:
        for one in begun:
            one.terminate()
            one.wait(60)


def measured(engine: str, lag: int, config: Path, folder: Path, skipped: int) -> tuple[float, float]:
    """(seconds of a step, share of them that the trainer waits for answers)."""
    flags = ["--config", str(config), "--output-dir", str(folder), "--rollout.engine", engine]
    subprocess.run(
        [*REMASK, "rl", *flags, "--rollout.max-lag", str(lag)], check=True, capture_output=True, env=ENVIRONMENT
    )
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row][skipped:]
    ahead = lag and engine != "local"
    parts = ("share_waiting",) if ahead else ("share_sampling", "share_grading")
    seconds = sum(row["seconds"] for row in steps)
    waited = sum(row["seconds"] * row.get(part, 0.0) for row in steps for part in parts)
    return seconds / len(steps), waited / seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--inner", type=int, default=4, help="optimiser steps of a rollout")
    asked = parser.parse_args()
    settings = [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1)]
    found: dict[tuple[int, int], list[tuple[float, float]]] = {one: [] for one in settings}
    with tempfile.TemporaryDirectory(prefix="rollout-speed-") as place:
        config = Path(place) / "settings.yaml"
        config.write_text(SETTINGS.format(steps=asked.steps, inner=asked.inner))
        turns = [(number, *one) for number in range(asked.rounds) for one in settings]
        with progress("runs", len(turns)) as tick:
            for done, (number, replicas, lag) in enumerate(turns, 1):
                with servers(replicas) as engine:
                    folder = Path(place) / f"{number}-{replicas}-{lag}"
                    seconds, waited = measured(engine, lag, config, folder, 2 * asked.inner)
                found[replicas, lag].append((seconds, waited))
                tick(done, f"{replicas} servers, max_lag {lag}: {seconds:.3f} s a step, {100 * waited:.0f} % waiting")
    print("| servers | max_lag | seconds a step | the trainer waits |\n|---|---|---:|---:|")
    for (replicas, lag), each in found.items():
        seconds, waited = [one[0] for one in each], [one[1] for one in each]
        print(
            f"| {replicas or 'none (local)'} | {lag} | {statistics.median(seconds):.3f} "
            f"({min(seconds):.3f} – {max(seconds):.3f}) | {100 * statistics.median(waited):.0f} % |"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
