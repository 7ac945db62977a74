"""SFT on the tiny model: `remask sft`'s trainer against a flat PyTorch loop doing the same, timed in turns.

    python benchmarks/sft_step.py [--rounds 5] [--steps 20] [--json FILE]

Both train the same model on the same rows in the same order at the same batch size with AdamW and clipping. The flat
loop is what one would write first: pad, mask, full logits, cross-entropy over all positions. Printed: useful tokens
(prompt and answer without fill) per second, and the ratio per round, whose median and spread count: load cancels out.
GIFT is timed beside them with the policy probe and with the frozen one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback

from remask import load
from remask.config import ProbeConfig, SftConfig
from remask.config import load as load_config
from remask.data.canvas import Row, build_rows
from remask.environment import hardware
from remask.models.facts import facts
from remask.sft import run as sft_run
from remask.tasks.generated import generated_examples
from remask.training import run as training_run

WARM_UP = 3


def flat_loop(rows: list[Row], steps: int, batch_size: int, model_path: str) -> list[float]:
    """Seconds of each step."""
    model, tokenizer = load(model_path)
    known = facts(model, tokenizer)
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    generator = torch.Generator().manual_seed(0)
    seconds = []
    for step in range(steps):
        started = time.perf_counter()
        members = [rows[(step * batch_size + i) % len(rows)] for i in range(batch_size)]
        width = max(len(row) for row in members)
        ids = torch.full((batch_size, width), known.eos_ids[0])
        response = torch.ones(batch_size, width, dtype=torch.bool)
        for b, row in enumerate(members):
            ids[b, : len(row)] = torch.tensor(row.prompt + row.response)
            response[b, : len(row.prompt)] = False
        t = torch.rand(batch_size, 1, generator=generator).clamp(min=1e-3)
        mask = (torch.rand(ids.shape, generator=generator) < t) & response
        logits = model(input_ids=ids.masked_fill(mask, known.mask_id)).logits
        ce = cross_entropy(logits.view(-1, logits.shape[-1]), ids.view(-1), reduction="none").view(ids.shape)
        loss = (ce * mask / t).sum() / response.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        seconds.append(time.perf_counter() - started)
    return seconds


class Stopwatch(TrainerCallback):
    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.marks = [time.perf_counter()]

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.marks.append(time.perf_counter())


def remask_steps(objective: str, probe: str, steps: int, batch_size: int, model_path: str, rows: int) -> list[float]:
    """Seconds of each step, everything between two steps included."""
    watch = Stopwatch()
    original = training_run.ProgressCallback

    class Timed(original):  # type: ignore[misc, valid-type]
        def on_train_begin(self, *a: Any, **k: Any) -> None:
            super().on_train_begin(*a, **k)
            watch.on_train_begin()

        def on_step_end(self, *a: Any, **k: Any) -> None:
            super().on_step_end(*a, **k)
            watch.on_step_end()

    training_run.ProgressCallback = Timed  # type: ignore[misc]
    try:
        with tempfile.TemporaryDirectory() as folder:
            recipe = load_config(SftConfig, "recipes/tiny/sft.yaml")
            config = replace(
                recipe,
                model=model_path,
                data=f"generated:sudoku+countdown:{rows}",
                eval_data=None,
                objective=objective,
                probe=ProbeConfig(policy=probe),  # type: ignore[arg-type]
                output_dir=str(Path(folder) / "run"),
                max_steps=steps,
                trainer=replace(recipe.trainer, per_device_train_batch_size=batch_size, eval_steps=0),
            )
            sft_run.run_sft(config, quiet=True)
    finally:
        training_run.ProgressCallback = original
    return [b - a for a, b in zip(watch.marks, watch.marks[1:], strict=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    model, tokenizer = load(arguments.model)
    count = arguments.steps * arguments.batch_size
    examples = generated_examples(
        f"generated:sudoku+countdown:{count}", split="train", prompt_style=facts(model, tokenizer).prompt_style
    )
    rows = build_rows(examples, tokenizer, max_length=512, over_long="error").rows
    useful = sum(len(row) for row in rows) / len(rows) * arguments.batch_size

    timed: dict[str, list[float]] = {}
    variants = {
        "flat loop": lambda: flat_loop(rows, arguments.steps, arguments.batch_size, arguments.model),
        "remask sft": lambda: remask_steps(
            "sft", "policy", arguments.steps, arguments.batch_size, arguments.model, count
        ),
        "remask gift, policy probe": lambda: remask_steps(
            "gift", "policy", arguments.steps, arguments.batch_size, arguments.model, count
        ),
        "remask gift, frozen probe": lambda: remask_steps(
            "gift", "frozen", arguments.steps, arguments.batch_size, arguments.model, count
        ),
    }
    for _ in range(arguments.rounds):
        for name, measure in variants.items():
            seconds = measure()[WARM_UP:]
            timed.setdefault(name, []).append(useful / statistics.median(seconds))

    base = timed["flat loop"]
    table = []
    for name, speeds in timed.items():
        ratios = sorted(speed / flat for speed, flat in zip(speeds, base, strict=True))
        table.append(
            {
                "what": name,
                "tokens_per_second": round(statistics.median(speeds), 1),
                "ratio": round(statistics.median(ratios), 3),
                "lowest": round(ratios[0], 3),
                "highest": round(ratios[-1], 3),
            }
        )
    print(f"{'':28}{'useful tokens/s':>16}{'of flat loop':>14}   (lowest – highest of {arguments.rounds} rounds)")
    for row in table:
        print(
            f"{row['what']:28}{row['tokens_per_second']:16.0f}{row['ratio']:13.2f}×"
            f"   ({row['lowest']:.2f} – {row['highest']:.2f})"
        )
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"hardware": hardware(), "steps": arguments.steps, "rows": table}, indent=1)
        )


if __name__ == "__main__":
    main()
