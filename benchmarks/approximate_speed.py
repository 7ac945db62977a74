"""Approximate sampling on the embedded model's tasks: tokens a second, tokens a forward, and what it costs in accuracy.

Every mode answers the same generated problems greedily, in blocks of 16 of the canvas of 80. Speeds are of batches
timed in turns; accuracy differences to the exact sampler are paired by problem, with bootstrap intervals. There are too
few distinct Countdown problems outside the training split for such an interval, so both tasks use that one: compared
are ways of writing with one model.

    python benchmarks/approximate_speed.py --problems 1500
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any, cast

from measure import Figure, in_turns, ratio, table

import remask
from remask import tasks
from remask.evaluation.statistics import paired_difference
from remask.sampling import Decoding, Generated, generate
from remask.tasks import GeneratedTask, Problem

BLOCK, CANVAS = 16, 80
EXACT = Decoding(max_new_tokens=CANVAS, block_length=BLOCK)
MODES = {
    "prefix cache": Decoding(max_new_tokens=CANVAS, block_length=BLOCK, cache="prefix"),
    "dual cache": Decoding(max_new_tokens=CANVAS, block_length=BLOCK, cache="dual"),
    "threshold 0.9": Decoding(max_new_tokens=CANVAS, block_length=BLOCK, threshold=0.9),
    "threshold 0.9, prefix cache": Decoding(max_new_tokens=CANVAS, block_length=BLOCK, threshold=0.9, cache="prefix"),
    "threshold 0.9, dual cache": Decoding(max_new_tokens=CANVAS, block_length=BLOCK, threshold=0.9, cache="dual"),
}


def measure(rounds: int, problems: int = 32, batch: int = 50, device: str = "cpu") -> list[Figure]:
    model, tokenizer = remask.load("tiny")
    model.to(device)
    figures = []
    for name in ("sudoku", "countdown"):
        task = cast(GeneratedTask, tasks.get(name))
        chosen = task.generate(problems, split="train", seed=1)
        figures += compare(model, tokenizer, task, chosen, rounds, batch)
    return figures


def compare(
    model: Any, tokenizer: Any, task: GeneratedTask, problems: list[Problem], rounds: int, batch: int
) -> list[Figure]:
    prompts = [task.prompt(problem, "compact") for problem in problems]

    written: dict[str, Generated] = {}

    def answer(mode: str, prompts: list[str]) -> None:
        written[mode] = generate(model, tokenizer, prompts, decoding=every[mode], batch_size=batch)

    every = {"exact": EXACT, **MODES}
    first = prompts[:batch]
    times = in_turns({mode: lambda m=mode: answer(m, first) for mode in every}, rounds=rounds, warm_up=0)
    part = f"approximate sampling, tiny model, {task.name}, n = {len(prompts)}, block {BLOCK} of {CANVAS}"
    figures: list[Figure] = []
    correct: dict[str, list[float]] = {}
    for mode in every:
        if len(prompts) > batch:
            answer(mode, prompts)
        grades = task.grade_all(problems, written[mode].texts)
        correct[mode] = [float(grade.correct) for grade in grades]
        tokens = written[mode].stats["tokens"] / written[mode].stats["row_forwards"]
        share = statistics.mean(correct[mode])
        speed = ratio(times["exact"], times[mode])
        detail = f"{100 * share:.1f} % right, {tokens:.2f} tokens a forward"
        if mode == "exact":
            figures.append(Figure(part, "exact", 1.0, detail=detail))
            continue
        found = paired_difference([correct[mode]], [correct["exact"]])
        detail += f", {100 * found.mean:+.1f} points [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
        figures.append(Figure(part, mode, *speed, bar=2.0, detail=detail))
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    print(table(measure(chosen.rounds, chosen.problems)))
