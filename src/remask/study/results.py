"""What a study found: each cell's mean and interval, its difference to the baseline, what it cost."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from remask.config import StudyConfig
from remask.errors import UserError
from remask.evaluation.arms import START, Arm, load_evaluation, pool
from remask.evaluation.compare import TaskComparison, compare_arms
from remask.evaluation.statistics import Interval, holm
from remask.files import from_json
from remask.study.grid import Cell
from remask.study.work import output

Levels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Found:
    """The result of one arm, level, task and metric. Scores are shares; `against` compares with the baseline, and
    `p_holm` is its p corrected for all differences of this metric in the study. seconds: training and evaluation of one
    seed (mean). gradient: the gradient norm's mean, standard deviation within a logged window, and largest, over the
    seeds' runs.
    """

    levels: dict[str, str]
    arm: str
    task: str
    metric: str
    seeds: int
    score: Interval
    against: TaskComparison | None
    seconds: float
    gradient: tuple[float, float, float] | None
    leads: bool = True
    """True where the metric is the one that the task is judged by."""
    p_holm: float = 1.0

    @property
    def found(self) -> bool:
        """Return whether the corrected p is below 5 %."""
        return self.p_holm < 0.05

    def row(self) -> dict[str, Any]:
        """Return the result as flat values, for files."""
        flat: dict[str, Any] = {**self.levels, "arm": self.arm, "task": self.task, "metric": self.metric}
        flat |= {"seeds": self.seeds, **asdict(self.score)}
        if self.against is not None:
            d, gain = self.against.difference, self.against.gain
            flat |= {"difference": d.mean, "difference_low": d.low, "difference_high": d.high}
            flat |= {"p": d.p_value, "p_holm": self.p_holm}
            flat |= {"gain_over_score": gain.over_score, "gain_over_delta": gain.over_delta}
        flat["seconds"] = self.seconds
        if self.gradient is not None:
            flat |= dict(zip(("grad_norm_mean", "grad_norm_std", "grad_norm_max"), self.gradient, strict=True))
        return flat


def collect(study: StudyConfig, cells: Sequence[Cell], folder: Path) -> list[Found]:
    """Return the results from evaluation files and run folders, level by level in the study's order."""
    found: list[Found] = []
    for levels in dict.fromkeys(cell.levels for cell in cells):
        here = [cell for cell in cells if cell.levels == levels]
        found += _level(study, levels, here, folder)
    for metric in {f.metric for f in found}:
        p = {i: f.against.difference.p_value for i, f in enumerate(found) if f.metric == metric and f.against}
        for place, corrected in holm(p).items():
            found[place] = replace(found[place], p_holm=corrected)
    return found


def _level(study: StudyConfig, levels: Levels, cells: Sequence[Cell], folder: Path) -> list[Found]:
    loaded = [load_evaluation(output(folder, cell.evaluation.name)) for cell in cells]
    # An arm's evaluations share their settings; arms may differ in them where decoding is what is studied.
    arms = pool(loaded, allow_different_decoding=True)
    begun = arms.get(START)
    found = []
    for name in [*([START] if study.start else []), *study.arms]:
        own = [cell for cell in cells if cell.arm == name]
        seconds, gradient = _cost(own, folder), _gradient(own, folder)
        against = {} if name in (START, study.baseline) else _compared(arms[study.baseline], arms[name], begun)
        for task in arms[name].tasks:
            for metric in arms[name].metrics(task):
                score, compared = arms[name].interval(task, metric), against.get((task, metric))
                leads = metric == arms[name].lead(task)
                found.append(
                    Found(dict(levels), name, task, metric, len(own), score, compared, seconds, gradient, leads)
                )
    return found


def _compared(baseline: Arm, arm: Arm, start: Arm | None) -> dict[tuple[str, str], TaskComparison]:
    comparisons = compare_arms(baseline, arm, start, allow_different_decoding=True)
    return {(c.task, c.metric): c for c in comparisons}


def _cost(cells: Sequence[Cell], folder: Path) -> float:
    """Seconds of a cell's stages, the mean over seeds. Jobs that run beside each other take longer than alone."""
    return statistics.mean(sum(_seconds(output(folder, job.name)) for job in cell.evaluation.chain()) for cell in cells)


def _seconds(path: Path) -> float:
    record = path if path.suffix == ".json" else path / "run.json"
    try:
        return float(from_json(record.read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            "does not say how long it took", where=str(record), mend=f"delete {path}: the study makes it anew"
        ) from error


def _gradient(cells: Sequence[Cell], folder: Path) -> tuple[float, float, float] | None:
    rows = [row for cell in cells for row in _logged(cell, folder) if "grad_norm_mean" in row]
    if not rows:
        return None
    means = [row["grad_norm_mean"] for row in rows]
    spread = statistics.mean(row.get("grad_norm_std", 0.0) for row in rows)
    return statistics.mean(means), spread, max(row.get("grad_norm_max", row["grad_norm_mean"]) for row in rows)


def _logged(cell: Cell, folder: Path) -> Iterable[dict[str, Any]]:
    for job in cell.training[-1:]:
        path = output(folder, job.name) / "metrics.jsonl"
        if path.exists():
            yield from (from_json(line) for line in path.read_text().splitlines())
