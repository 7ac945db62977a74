"""Right tokens by class: counted as token errors are, and pooled by row on the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_report import run_dir

from remask.diffusion.corruption import Canvas
from remask.diffusion.halves import score_in_halves, score_masked
from remask.diffusion.reader import ModelReader
from remask.report import write_report
from remask.report.class_accuracy import pooled
from remask.report.runs import ClassCounts, Run, load_run
from remask.sft.class_accuracy import spaced


def canvas_of(ids: torch.Tensor, prompt: int) -> Canvas:
    response = torch.ones_like(ids, dtype=torch.bool)
    response[:, :prompt] = False
    return Canvas(ids, torch.ones_like(response), response, response)


def test_halves_of_a_batch_are_those_of_its_rows(random_model: Any) -> None:
    ids = torch.arange(40, 60).reshape(2, 10)
    u = torch.rand(2, 10, generator=torch.Generator().manual_seed(0))
    wrong, nll = score_in_halves(ModelReader(random_model), canvas_of(ids, 3), u, 1)
    for row in range(2):
        alone = score_in_halves(ModelReader(random_model), canvas_of(ids[row : row + 1], 3), u[row : row + 1], 1)
        assert torch.equal(alone[0][0], wrong[row])
        torch.testing.assert_close(alone[1][0], nll[row])
    assert not wrong[:, :3].any()
    assert not nll[:, :3].any()
    assert (nll[:, 3:] > 0).all()


def test_nothing_masked_is_nothing_wrong(random_model: Any) -> None:
    canvas = canvas_of(torch.arange(40, 50)[None], 3)
    wrong, nll = score_masked(ModelReader(random_model), canvas, torch.zeros(1, 10, dtype=torch.bool), 1)
    assert not wrong.any()
    assert not nll.any()


def test_rows_are_spaced_evenly() -> None:
    rows: list[Any] = list(range(10))
    assert spaced(rows, 4) == [0, 2, 5, 7]
    assert spaced(rows, 20) == rows


def run(tmp_path: Path, method: str, seed: int, counts: ClassCounts) -> Run:
    return replace(load_run(run_dir(tmp_path, method, seed, 0.5)), class_counts=counts)


def test_runs_on_the_same_rows_are_pooled_by_row(tmp_path: Path) -> None:
    tokens = {"number": [4, 4, 2]}
    runs = [
        run(tmp_path, "sft", 0, ClassCounts(True, tokens, {"number": [1, 2, 1]}, {"number": [2, 4, 1]})),
        run(tmp_path, "sft", 1, ClassCounts(True, tokens, {"number": [1, 2, 1]}, {"number": [4, 4, 2]})),
    ]
    found = pooled(runs)["number"]
    assert found.before is not None
    assert found.after is not None
    assert found.change is not None
    assert (found.tokens, found.before.mean, found.after.mean) == (20, 8 / 20, 17 / 20)
    assert found.change.mean == pytest.approx(9 / 20)
    assert found.after.n == 3
    assert found.after.low < 17 / 20 < found.after.high


def test_no_change_in_any_row_is_not_certainty(tmp_path: Path) -> None:
    counts = ClassCounts(True, {"number": [4, 4]}, {"number": [1, 2]}, {"number": [1, 2]})
    change = pooled([run(tmp_path, "sft", 0, counts)])["number"].change
    assert change is not None
    assert change.low < -0.5 < change.mean == 0 < 0.5 < change.high


def test_runs_on_other_rows_stand_side_by_side(tmp_path: Path) -> None:
    runs = [
        run(tmp_path, "sft", 0, ClassCounts(True, {"number": [4]}, {"number": [1]}, {"number": [3]})),
        run(tmp_path, "sft", 1, ClassCounts(True, {"word": [2, 2]}, None, {"word": [1, 2]})),
    ]
    found = pooled(runs)
    assert found["word"].after is not None
    assert found["word"].after.mean == 3 / 4
    assert found["word"].before is None  # not of all runs
    assert found["word"].change is None


def test_the_page_says_what_was_read(tmp_path: Path) -> None:
    runs = [run_dir(tmp_path, "sft", 0, 0.4), run_dir(tmp_path, "gift", 0, 0.4)]
    path = runs[1] / "class_accuracy.json"
    table = json.loads(path.read_text())
    path.write_text(json.dumps(table | {"held_out": False, "before": None}))
    page = write_report(runs, tmp_path / "report.html").read_text(encoding="utf-8")
    section = page[page.index('<section id="learned">') :]
    section = section[: section.index("</section>")]
    # 7 of 12 before, 10 of 12 after.
    assert "<td>58.3</td><td>83.3</td><td>+25.0 [" in section
    assert "<td>–</td><td>83.3</td><td>–</td>" in section
    assert "Held-out rows in 1 of 2 runs" in section


def test_a_run_that_was_not_read_to_the_end_is_left_out(tmp_path: Path) -> None:
    folder = run_dir(tmp_path, "sft", 0, 0.4)
    path = folder / "class_accuracy.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"after": None}))
    page = write_report([folder], tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<section id="learned">' not in page
    assert "Right tokens by class: no run holds" in page
