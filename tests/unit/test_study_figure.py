"""A study's figure: rows of arms, or curves where the one axis is a number."""

from __future__ import annotations

from pathlib import Path

import pytest

from remask.evaluation.statistics import Interval
from remask.study.figure import curves, draw, numbers, rows
from remask.study.results import Found


def found(arm: str, score: float, task: str = "sudoku", **levels: str) -> Found:
    return Found(levels, arm, task, "accuracy", 2, Interval(score, score - 0.1, score + 0.1, 50), None, 1.0, None)


@pytest.mark.parametrize(
    ("levels", "values"),
    [
        ([{"rows": "30"}, {"rows": "1e3"}, {"rows": "100"}], [30.0, 1000.0, 100.0]),
        ([{"rows": "30"}, {"rows": "100"}], None),  # too few for a curve
        ([{"rows": "30"}, {"rows": "100"}, {"rows": "all"}], None),
        ([{"rows": "1", "rate": "1"}, {"rows": "2", "rate": "1"}, {"rows": "3", "rate": "1"}], None),
        ([{}, {}, {}], None),
    ],
)
def test_one_axis_of_three_numbers_makes_curves(levels: list[dict[str, str]], values: list[float] | None) -> None:
    assert numbers([found("sft", 0.5, **level) for level in levels]) == values


def test_a_curve_goes_through_its_points_in_order() -> None:
    scores = {"1000": 0.9, "30": 0.2, "100": 0.6}
    figure = curves([found("sft", score, rows=rows) for rows, score in scores.items()])
    (panel,) = figure.axes
    line = panel.containers[0].lines[0]
    assert line.get_xdata().tolist() == [30, 100, 1000]
    assert line.get_ydata().tolist() == pytest.approx([20, 60, 90])
    assert panel.get_xscale() == "log"
    assert panel.get_xlabel() == "rows"


def test_both_files_are_written_whole_and_alike_each_time(tmp_path: Path) -> None:
    files = {kind: tmp_path / f"results.{kind}" for kind in ("svg", "png")}
    images = []
    for _ in range(2):
        draw("a study", "sft", [found("sft", 0.5), found("gift", 0.6)], files)
        images.append(files["svg"].read_bytes())
    assert images[0] == images[1]
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"results.svg", "results.png"}


def test_rows_have_a_column_for_each_task_where_all_levels_have_all() -> None:
    both = [found("sft", 0.5, task, size=size) for size in ("small", "large") for task in ("sudoku", "countdown")]
    titles = [panel.get_title(loc="left") for panel in rows("sft", both).axes]
    expected = ["sudoku, size small", "countdown, size small", "sudoku, size large", "countdown, size large"]
    assert titles == expected
    apart = rows("sft", [both[0], both[3]]).axes
    assert [panel.get_title(loc="left") for panel in apart] == [expected[0], expected[3]]
    assert apart[0].get_position().x0 == pytest.approx(apart[1].get_position().x0)
    assert [label.get_text() for panel in apart for label in panel.get_yticklabels()] == ["sft", "sft"]
