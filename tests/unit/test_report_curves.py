"""The report's curves and table cells: numbers worked by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from remask.report.curves import RL, expand
from remask.report.figures import POINTS, WINDOWS, mean_to_max, merged, thinned, trend
from remask.report.rl_figures import accuracy, alike, clipped, mean_where_all, train_and_held_out
from remask.report.run_table import late, time_shares
from remask.report.runs import Run


def one_run(metrics: list[dict[str, Any]], seed: int = 0, method: str = "espo", config: str = "") -> Run:
    info = {"training": "rl", "objective": {"name": method}, "model": "tiny"}
    return Run(Path(f"{method}-{seed}"), method, seed, "finished", info, config, metrics, [], [], [])


def drawn(draw: Callable[..., None], runs: list[Run], key: str) -> list[tuple[list[float], list[float], float]]:
    """(x, y, width) of every line drawn."""
    axes = Figure().add_subplot()
    draw(axes, runs, {run.method: "#000000" for run in runs}, key)
    return [(list(line.get_xdata()), list(line.get_ydata()), line.get_linewidth()) for line in axes.lines]


def test_the_mean_over_seeds_is_taken_where_all_of_them_are() -> None:
    short = one_run([{"step": 0, "a": 0.5}, {"step": 10, "a": 0.75}])
    long = one_run([{"step": 0, "a": 0.25}, {"step": 10, "a": 0.25}, {"step": 20, "a": 1.0}], seed=1)
    begun = one_run([], seed=2)
    assert mean_where_all([short, long, begun], "a") == ([0.0, 10.0], [0.375, 0.5])
    assert mean_where_all([begun], "a") == ([], [])


def test_only_runs_that_differ_in_their_seed_alone_are_averaged() -> None:
    config = "model: tiny\noutput_dir: runs/{0}\nseed: {0}\ntrainer:\n  learning_rate: {1}\n"
    runs = [one_run([], seed, config=config.format(seed, rate)) for seed, rate in ((0, 1e-4), (1, 1e-4), (1, 1e-3))]
    assert [len(group) for group in alike(runs)] == [2, 1]
    assert len(alike([one_run([]), one_run([], method="wd1")])) == 2


def test_accuracy_is_drawn_thin_per_seed_thick_in_mean_and_dashed_as_score() -> None:
    runs = [
        one_run([{"step": s, "eval_x_accuracy": 0.5 * seed + s / 100, "eval_x_score": 1.0} for s in (0, 10)], seed)
        for seed in (0, 1)
    ]
    score, first, second, mean = drawn(accuracy, runs, "eval_x_accuracy")
    assert score[1] == [1.0, 1.0]
    assert (first[1], second[1]) == ([0.0, 0.1], [0.5, 0.6])
    assert mean[1] == pytest.approx([0.25, 0.35])
    assert mean[2] > 2 * first[2]
    assert len(drawn(accuracy, runs[:1], "eval_x_accuracy")) == 2  # one seed: its line is the mean


def test_a_run_without_a_shared_evaluation_is_still_drawn() -> None:
    runs = [one_run([{"step": 10 * (seed + 1), "eval_x_accuracy": 0.5}], seed) for seed in (0, 1)]
    assert [x for x, y, _ in drawn(accuracy, runs, "eval_x_accuracy") if y] == [[10.0], [20.0]]


def test_clip_shares_and_held_out_pairs_are_drawn_beside_their_fellows() -> None:
    run = one_run([{"step": s, "clip_high": 0.25, "clip_low": 0.5, "loss": 1.0, "eval_loss": 2.0} for s in (1, 2)])
    assert [y for _, y, _ in drawn(clipped, [run], "clip_high")] == [[0.25, 0.25], [0.5, 0.5]]
    assert [y for _, y, _ in drawn(train_and_held_out, [run], "loss")][-1] == [2.0, 2.0]


def test_a_long_series_is_thinned_without_losing_its_extremes() -> None:
    values = list(np.sin(np.arange(5000.0)))
    values[1234], values[4321] = 9.0, -9.0
    steps, kept = thinned(range(5000), values)
    assert len(steps) == len(kept) <= POINTS
    assert (max(kept), min(kept)) == (9.0, -9.0)
    assert steps == sorted(set(steps))
    assert kept == [values[int(step)] for step in steps]
    assert thinned([1, 2], [3.0, 4.0]) == ([1, 2], [3.0, 4.0])
    assert all(
        len(x) <= POINTS for x, _, _ in drawn(trend, [one_run([{"step": s, "a": values[s]} for s in range(5000)])], "a")
    )


def test_neighbouring_windows_of_a_long_run_are_put_together() -> None:
    count = 2 * WINDOWS
    run = one_run([{"step": s, "n_mean": float(s % 2), "n_max": float(s)} for s in range(count)])
    top, mean = drawn(mean_to_max, [run], "n_mean")
    assert set(mean[1]) == {0.5}
    assert top[0] == mean[0] == [float(s) for s in range(1, count, 2)]
    assert top[1] == [float(s) for s in range(1, count, 2)]
    assert merged([1, 2], [3.0, 4.0], max) == ([1, 2], [3.0, 4.0])


def test_one_logged_value_can_be_seen() -> None:
    axes = Figure().add_subplot()
    trend(axes, [one_run([{"step": 5, "a": 1.0}])], {"espo": "#000000"}, "a")
    assert axes.lines[-1].get_marker() == "o"


def test_a_star_in_a_key_makes_a_figure_for_each_name() -> None:
    runs = [
        one_run([{"step": 1, "reward_mean": 1.0, "reward_std": 1.0, "reward_format": 1.0, "reward_off": None}]),
        one_run([{"step": 1, "reward_task": 1.0, "reward_format": 1.0}], seed=1),
    ]
    curve = next(curve for curve in RL if curve.key == "reward_*")
    assert [(c.key, c.name) for c in expand(curve, runs)] == [
        ("reward_format", "Reward, format"),
        ("reward_task", "Reward, task"),
    ]
    slugs = [c.slug for c in RL]
    assert len(slugs) == len(set(slugs))


def test_late_is_the_mean_of_the_last_tenth() -> None:
    assert late(one_run([{"step": s, "a": float(s)} for s in range(20)]), "a") == 18.5
    assert late(one_run([{"step": 1, "a": 3.0}]), "a") == 3.0
    assert late(one_run([]), "a") is None


def test_time_shares_never_fill_more_than_the_bar() -> None:
    slices = time_shares(one_run([{"step": 1, "share_sampling": 0.9, "share_update": 0.35}]))
    assert isinstance(slices, list)
    assert [(s["index"], s["shown"]) for s in slices] == [("0", "90"), ("3", "35")]
    assert sum(float(s["width"]) for s in slices) == pytest.approx(100.0)
    assert time_shares(one_run([])) == "–"


def test_time_shares_are_of_all_the_time() -> None:
    """3 s with a rollout, of which 1.8 s sampling, 0.3 s scoring and 0.9 s update; 1 s of update alone."""
    rows = [
        {"step": 1, "seconds": 3.0, "share_sampling": 0.6, "share_scoring": 0.1, "share_update": 0.3},
        {"step": 2, "seconds": 1.0, "share_update": 1.0},
        {"step": 2, "eval_sudoku_accuracy": 0.5},
    ]
    slices = time_shares(one_run(rows))
    assert isinstance(slices, list)
    # 1.8, 0.3 and 1.9 of 4 s.
    assert [(s["part"], s["width"]) for s in slices] == [
        ("sampling", "45.00"),
        ("scoring", "7.50"),
        ("update", "47.50"),
    ]


def test_time_shares_of_older_runs_count_rows_alike() -> None:
    rows = [{"step": 1, "share_sampling": 0.6, "share_update": 0.4}, {"step": 2, "share_update": 1.0}]
    slices = time_shares(one_run(rows))
    assert isinstance(slices, list)
    assert [s["shown"] for s in slices] == ["30", "70"]
