"""Whether a change of the code changes any number: digests of trained weights, samples and measurements.

    python benchmarks/digests.py --json before.json          # on the commit before
    python benchmarks/digests.py --against before.json       # on the commit after: exit code 1 where one differs

Through the command line only, so that the code below it may move. Everything is taken on one thread: sums in another
order are other numbers. Records of one machine are compared with records of the same machine.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from remask import cli

SFT = (
    *("sft", "gift", "gift-elbo", "gift-raw", "gift-log", "gift-cbrt", "gift-nll", "gift-permuted", "gift-alpha"),
    *("weft-sw", "cart", "dft", "rho1", "lift2", "lift3"),
)
RL = ("espo", "diffu-grpo", "coupled-grpo", "wd1", "token-elbo", "sequence-mean-field", "token-mean-field")
DPO = ("vrpo", "dpo")
STEPS = "8"
LORA = ("--lora.rank", "4", "--lora.targets", "q_proj", "v_proj")
SAMPLERS = {
    **{f"reveal {rule}": ("--decoding.reveal", rule) for rule in ("confidence", "margin", "entropy", "random")},
    "reveal left_to_right": ("--decoding.reveal", "left_to_right"),
    "warm": ("--decoding.temperature", "0.7"),
    "top-k and top-p": ("--decoding.temperature", "1", "--decoding.top-k", "5", "--decoding.top-p", "0.9"),
    "threshold": ("--decoding.threshold", "0.9"),
    "t-schedule": ("--decoding.schedule", "t", "--decoding.temperature", "0.5"),
    "guidance": ("--decoding.guidance", "1.5"),
    "blocks": ("--decoding.block-length", "8"),
    "prefix cache": ("--decoding.block-length", "8", "--decoding.cache", "prefix"),
    "dual cache": ("--decoding.block-length", "8", "--decoding.cache", "dual"),
}
TIMES = ("seconds", "runtime", "per_second", "share_", "flos", "mfu", "memory", "peak")
"""Logged values whose names hold one of these depend on the clock or the machine."""


def weights(folder: Path) -> str:
    """A digest of a model folder's tensors, or of its adapter's."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in sorted(load_file(path).items()):
            found.update(name.encode())
            found.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def metrics(folder: Path) -> str:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return digest([timeless(row) for row in rows])


def timeless(value: Any) -> Any:
    """The same JSON without what a clock, a machine or a folder says."""
    if isinstance(value, dict):
        left_out = {"versions", "hardware", "command", "date", "model", "arm", "path", "settings"}
        return {
            key: timeless(item)
            for key, item in value.items()
            if key not in left_out and not any(word in key for word in TIMES)
        }
    return [timeless(item) for item in value] if isinstance(value, list) else value


def command(*arguments: str) -> str:
    """What `remask …` prints."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(list(arguments))
    if code:
        raise SystemExit(f"remask {' '.join(arguments)} ended with {code}:\n{err.getvalue()}")
    return out.getvalue()


def trained(kind: str, folder: Path, *arguments: str) -> dict[str, str]:
    command(kind, "--output-dir", str(folder), "--max-steps", STEPS, "--trainer.report-to", "none", *arguments)
    return {"weights": weights(folder), "metrics": metrics(folder)}


def sft(folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    data = ("--model", "tiny-direct", "--data", "direct:sudoku+countdown:64", "--trainer.logging-steps", "2")
    for name in SFT:
        for way, more in (("full", ()), ("lora", LORA)):
            arguments = (*data, "--objective", name, "--trainer.per-device-train-batch-size", "8", *more)
            yield f"sft {name} {way}", lambda a=arguments, n=f"{name}-{way}": trained("sft", folder / n, *a)


def rl(folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    shape = ("--rollout.prompts", "4", "--rollout.completions", "4", "--rollout.inner-updates", "2")
    data = ("--model", "tiny-direct", "--tasks", "sudoku", "--problems", "32", "--held-out.tasks", "none")
    speed = ("--trainer.learning-rate", "1e-3", "--rollout.decoding.temperature", "1")
    for name in RL:
        arguments = (*data, *shape, *speed, "--objective", name, "--trainer.per-device-train-batch-size", "8")
        yield f"rl {name}", lambda a=arguments, n=name: trained("rl", folder / n, *a)


def dpo(folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    for name in DPO:
        arguments = ("--model", "tiny-direct", "--data", "generated:sudoku:32", "--objective", name)
        yield f"dpo {name}", lambda a=arguments, n=name: trained("dpo", folder / n, *a)


def sampling(folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    for name, flags in SAMPLERS.items():

        def answers(name: str = name, flags: tuple[str, ...] = flags) -> str:
            path = folder / f"{name}.json"
            task = ("--model", "tiny", "--tasks", "countdown", "--n", "20", "--batch-size", "8")
            command("eval", *task, "--json", str(path), *flags)
            return digest(timeless(json.loads(path.read_text())["tasks"]))

        yield f"sample {name}", answers


def measured(folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    def estimators() -> str:
        path = folder / "estimators.json"
        few = ("--rows", "4", "--draws", "1", "2", "--replicates", "4", "--reference", "16", "--exact-tokens", "6")
        small = ("--orders", "1", "4", "--prompts", "2", "--completions", "2", "--gradients", "4")
        command("estimators", "--model", "tiny", *few, *small, "--json", str(path))
        return digest(timeless(json.loads(path.read_text())))

    def compare() -> str:
        for name, steps in (("few", "8"), ("many", "32")):
            task = ("--model", "tiny", "--tasks", "sudoku", "--n", "20", "--decoding.steps", steps)
            command("eval", *task, "--json", str(folder / f"{name}.json"))
        sides = (str(folder / "few.json"), str(folder / "many.json"))
        return digest(timeless(json.loads(command("compare", *sides, "--allow-different-decoding", "--json"))))

    yield "estimators", estimators
    yield "compare", compare


PARTS = {"sft": sft, "rl": rl, "dpo": dpo, "sampling": sampling, "measured": measured}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="where the digests go")
    parser.add_argument("--against", help="digests of before: what differs is listed, and the exit code is 1")
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), default=tuple(PARTS))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for part in asked.only:
            (Path(folder) / part).mkdir()
            for name, take in PARTS[part](Path(folder) / part):
                found[name] = take()
                print(f"{time.monotonic() - started:6.0f} s  {name}: {found[name]}", file=sys.stderr, flush=True)
    if asked.json:
        Path(asked.json).write_text(json.dumps(found, indent=1) + "\n")
    if asked.against:
        before = json.loads(Path(asked.against).read_text())
        other = [name for name, value in found.items() if before.get(name) != value]
        for name in other:
            print(f"{name}: {before.get(name, 'not recorded')} before, {found[name]} now")
        print(f"{len(found) - len(other)} of {len(found)} as before")
        return 1 if other else 0
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
