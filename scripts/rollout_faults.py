"""Kill the trainer or a server of rollouts at random moments: no rollout may be lost, and none used twice.

    python scripts/rollout_faults.py --kills 50

A run of the embedded model trains on rollouts that two servers write ahead of their use. One run is undisturbed. In the
others SIGKILL ends the trainer or a server, each as likely, after a random time; what was ended is begun again at once,
the trainer with `--resume auto`. Of every run that ends are compared with the undisturbed one: the weights, bit for
bit, and `completions.jsonl`, byte for byte, in which every rollout must stand once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx2
import torch
from safetensors.torch import load_file

MOST = 300.0
KEY = "weights"
SETTINGS = """
model: tiny-direct
tasks: countdown
problems: 20
max_steps: {steps}
rewards: {{functions: [format, length]}}
rollout: {{engine: "{engine}", max_lag: {lag}, prompts: 2, completions: 4, inner_updates: 2, keep: -1,
           decoding: {{max_new_tokens: 32, steps: 32}}}}
held_out: {{n: 2, decoding: {{max_new_tokens: 24, steps: 2}}}}
trainer: {{learning_rate: 1.0e-4, logging_steps: 1, save_steps: 3, eval_steps: 8, report_to: [none]}}
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def begun(*flags: str, log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "REMASK_ADMIN_KEY": KEY}
    with log.open("ab") as file:
        return subprocess.Popen([sys.executable, "-m", "remask.cli", *flags], stdout=file, stderr=file, env=environment)


def server(port: int, log: Path) -> subprocess.Popen[bytes]:
    return begun("serve", "--model", "tiny-direct", "--port", str(port), "--admin-key", KEY, log=log)


def wait_until_served(ports: list[int]) -> None:
    deadline = time.monotonic() + MOST
    while ports:
        try:
            httpx2.get(f"http://127.0.0.1:{ports[0]}/v1/models")
            ports = ports[1:]
        except httpx2.TransportError:
            if time.monotonic() > deadline:
                raise SystemExit("the servers do not begin: see their log") from None
            time.sleep(0.2)


class Campaign:
    """Servers that are begun again when they are ended, and what was killed so far."""

    def __init__(self, place: Path, chance: random.Random, lag: int, steps: int) -> None:
        self.place, self.chance, self.killed = place, chance, Counter[str]()
        self.ports = [free_port(), free_port()]
        self.config = place / "settings.yaml"
        engine = ",".join(f"http://127.0.0.1:{port}" for port in self.ports)
        self.config.write_text(SETTINGS.format(steps=steps, lag=lag, engine=engine))
        self.servers = [server(port, place / "servers.log") for port in self.ports]
        wait_until_served(self.ports)

    def trainer(self, folder: Path) -> subprocess.Popen[bytes]:
        flags = ("--config", str(self.config), "--output-dir", str(folder), "--resume", "auto")
        return begun("rl", *flags, log=folder.parent / f"{folder.name}.log")

    def run(self, folder: Path, kills: int, seconds: float) -> int:
        """Train to the end, with at most so many kills on the way. Return how many there were."""
        hits, process, began = 0, self.trainer(folder), time.monotonic()
        while True:
            try:
                code = process.wait(MOST if hits == kills else self.chance.uniform(0.1, seconds))
            except subprocess.TimeoutExpired:
                if hits == kills:
                    process.kill()
                    raise SystemExit(f"{folder.name} does not end: see {folder}.log") from None
            else:
                if code:
                    raise SystemExit(f"exit code {code}: {(folder.parent / f'{folder.name}.log').read_text()[-2000:]}")
                return hits
            hits += 1
            if (place := self.chance.randrange(2 * len(self.servers))) < len(self.servers):
                kill(self.servers[place])
                self.servers[place] = server(self.ports[place], self.place / "servers.log")
                self.killed["server"] += 1
            else:
                kill(process)
                self.killed["trainer"] += 1
                process = self.trainer(folder)
            if time.monotonic() - began > 20 * MOST:
                raise SystemExit(f"{folder.name} does not get on")

    def end(self) -> None:
        for one in self.servers:
            kill(one)


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def faults(folder: Path, whole: Path) -> list[str]:
    """What of a run is not as it is in the undisturbed one."""
    found = []
    lines = [(folder / "completions.jsonl").read_bytes(), (whole / "completions.jsonl").read_bytes()]
    groups = Counter(json.loads(line)["rollout"] for line in lines[0].splitlines())
    expected = Counter(json.loads(line)["rollout"] for line in lines[1].splitlines())
    if groups - expected:
        found.append(f"rollouts written twice: {sorted(groups - expected)}")
    if expected - groups:
        found.append(f"rollouts lost: {sorted(expected - groups)}")
    if lines[0] != lines[1]:
        found.append("completions.jsonl differs")
    one, other = load_file(folder / "model.safetensors"), load_file(whole / "model.safetensors")
    if one.keys() != other.keys() or not all(torch.equal(one[name], other[name]) for name in one):
        found.append("the weights differ")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--lag", type=int, default=1)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rollout-faults-") as place:
        campaign = Campaign(Path(place), random.Random(asked.seed), asked.lag, asked.steps)
        bad: list[str] = []
        hits = runs = 0
        try:
            whole, started = Path(place) / "whole", time.monotonic()
            campaign.run(whole, 0, MOST)
            seconds = time.monotonic() - started
            while hits < asked.kills:
                folder = Path(place) / f"killed-{runs}"
                hits += campaign.run(folder, asked.kills - hits, seconds)
                bad += [f"run {runs}: {fault}" for fault in faults(folder, whole)]
                runs += 1
                print(f"{hits} kills, {runs} runs, {len(bad)} faults", file=sys.stderr, flush=True)
        finally:
            campaign.end()
    killed = ", ".join(f"{count} of a {name}" for name, count in sorted(campaign.killed.items()))
    print(
        f"lag {asked.lag}: {hits} kills ({killed}) in {runs} runs of {asked.steps} steps ({seconds:.0f} s undisturbed)"
    )
    print("; ".join(bad) or "every run ended as the undisturbed one: no rollout lost, none used twice")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
