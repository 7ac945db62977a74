"""What `rl_study.py` found: Markdown tables on stdout, and a figure of the held-out curves.

    python benchmarks/rl_results.py --task sudoku --output study --figure docs/figures/rl-sudoku.svg

Curves are greedy accuracy on the fixed validation problems: each seed thin, their mean thick, the band
±1.96·√(p(1 − p)/problems + s²/seeds), s the spread of the seeds. Test scores have bootstrap intervals over problems ×
seeds; differences are to espo, paired by problem and seed, p corrected for their number (Holm).
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from rl_study import ARMS, LEARNING_RATES, SEEDS, VALIDATION, curve, tuned

from remask.evaluation.arms import Arm, load_evaluation, pool
from remask.evaluation.compare import compare_arms
from remask.evaluation.statistics import Difference, holm

FURTHER = {"sudoku": "cells", "countdown": "valid"}


def runs_of(folder: Path, arm: str) -> list[Path]:
    runs = [folder / "main" / f"{arm}-{seed}" for seed in SEEDS]
    return [run for run in runs if (run / "eval.json").exists()]


def tuning_table(folder: Path, task: str) -> list[str]:
    """Held-out score after the tuning runs."""
    lines = [
        "| method | " + " | ".join(f"lr {rate:g}" for rate in LEARNING_RATES) + " | taken |",
        "|---|" + "---:|" * (len(LEARNING_RATES) + 1),
    ]
    for arm in ARMS:
        folders = [folder / "tune" / f"{arm}-{rate:g}" for rate in LEARNING_RATES]
        if all((each / "metrics.jsonl").exists() for each in folders):
            ends = [statistics.mean(v for _, v in curve(each, f"eval_{task}_score")[-2:]) for each in folders]
            lines.append(
                f"| {arm} | " + " | ".join(f"{100 * e:.1f}" for e in ends) + f" | {tuned(folder, arm, task):g} |"
            )
    return lines


def percent(arm: Arm, task: str, metric: str) -> str:
    found = arm.interval(task, metric)
    return f"{100 * found.mean:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def test_table(folder: Path, task: str) -> list[str]:
    done = {arm: runs_of(folder, arm) for arm in ARMS}
    files = [folder / "start" / "eval.json", *(run / "eval.json" for runs in done.values() for run in runs)]
    arms = pool(load_evaluation(path) for path in files)
    further = FURTHER[task]
    lines = [
        f"| method | seeds | accuracy, % | {further}, % | accuracy against espo | p, Holm |",
        "|---|---:|---:|---:|---:|---:|",
        f"| start | – | {percent(arms['start'], task, 'accuracy')} | {percent(arms['start'], task, further)} | | |",
    ]
    against = {
        name: next(
            c for c in compare_arms(arms["espo"], arms[name], arms["start"]) if c.metric == "accuracy"
        ).difference
        for name, runs in done.items()
        if runs and name != "espo" and len(runs) == len(done["espo"])
    }
    corrected = holm({name: found.p_value for name, found in against.items()})
    for name, runs in done.items():
        if not runs:
            continue
        cells = [name, str(len(runs)), *(percent(arms[name], task, metric) for metric in ("accuracy", further))]
        if name in against:
            d = against[name]
            cells += [f"{100 * d.mean:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]", f"{corrected[name]:.3f}"]
        lines.append("| " + " | ".join([*cells, "", ""][:6]) + " |")
    return lines


def accuracy_difference(baseline: Arm, arm: Arm, start: Arm) -> Difference:
    return next(c.difference for c in compare_arms(baseline, arm, start) if c.metric == "accuracy")


def draw(folder: Path, task: str, target: Path) -> None:
    """Three panels: the published methods, and ESPO's two ablations."""
    matplotlib.rcParams.update(
        {"svg.hashsalt": task, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    )
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = (
        ("methods", ["espo", "diffu-grpo", "coupled-grpo", "wd1"]),
        ("{token, sequence} × {mean field, ELBO}", ["espo", "token-elbo", "sequence-mean-field", "token-mean-field"]),
        ("KL estimators", ["espo", "espo-k1", "espo-k3"]),
    )
    axes = figure.subplots(1, len(panels), sharey=True)
    for axis, (title, names) in zip(axes, panels, strict=True):
        for number, name in enumerate(names):
            seeds = [curve(run, f"eval_{task}_accuracy") for run in runs_of(folder, name)]
            if not seeds:
                continue
            steps, colour = [step for step, _ in seeds[0]], f"C{number}"
            columns = list(zip(*([value for _, value in seed] for seed in seeds), strict=True))
            means = [statistics.mean(column) for column in columns]
            half = [
                1.96 * (m * (1 - m) / VALIDATION[task] + statistics.pvariance(c) / len(c)) ** 0.5
                for m, c in zip(means, columns, strict=True)
            ]
            for seed in seeds:
                axis.plot(steps, [value for _, value in seed], color=colour, linewidth=0.5, alpha=0.5)
            axis.plot(steps, means, color=colour, linewidth=1.8, label=name)
            low, high = ([m + sign * h for m, h in zip(means, half, strict=True)] for sign in (-1, 1))
            axis.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("optimiser step")
        axis.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel(f"{task}: held-out accuracy")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, choices=sorted(VALIDATION))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    folder = arguments.output / arguments.task
    print("\n".join([*tuning_table(folder, arguments.task), "", *test_table(folder, arguments.task)]))
    if arguments.figure:
        draw(folder, arguments.task, arguments.figure)


if __name__ == "__main__":
    main()
