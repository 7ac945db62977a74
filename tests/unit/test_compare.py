"""Reading evaluation files, pooling seeds, comparing arms; and what may not be compared."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remask.errors import UserError
from remask.evaluation.arms import Evaluation, find_evaluations, load_evaluation, parse_evaluation, pool
from remask.evaluation.compare import compare_arms, unshared
from remask.evaluation.statistics import wilson


def content(
    arm: str, seed: int | None, correct: str, *, task: str = "sudoku", first_id: int = 0, **decoding: Any
) -> dict[str, Any]:
    """An evaluation file's content; `correct` is one character a problem, 1 for right."""
    problems = [
        {
            "id": f"{task}:{first_id + i}",
            "prompt": "p",
            "completion": "c",
            "reference": "r",
            "correct": mark == "1",
            "score": float(mark),
            "metrics": {"cells": 0.5 + 0.5 * int(mark)},
            "answer": "a",
            "tokens": 5,
        }
        for i, mark in enumerate(correct)
    ]
    return {
        "kind": "remask.evaluation",
        "format": 1,
        "model": "runs/x",
        "arm": arm,
        "run_seed": seed,
        "decoding": {"steps": 40, "temperature": 0.0, "batch_size": 8} | decoding,
        "versions": {"remask": "0.1.0"},
        "hardware": {"device": "cpu"},
        "seconds": 1.5,
        "tasks": {task: {"source": "generated", "n": len(problems), "metrics": {}, "problems": problems}},
        "an unknown key": [1, 2],
    }


def evaluation(arm: str, seed: int | None, correct: str, **more: Any) -> Evaluation:
    return parse_evaluation(content(arm, seed, correct, **more), Path(f"{arm}-{seed}.json"))


def test_a_file_is_read_and_unknown_keys_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "eval.json"
    path.write_text(json.dumps(content("gift", 3, "101")))
    (tmp_path / "run.json").write_text('{"kind": "remask.run"}')
    read = load_evaluation(path)
    assert (read.arm, read.run_seed, read.seconds) == ("gift", 3, 1.5)
    assert [problem.correct for problem in read.tasks["sudoku"].problems] == [True, False, True]
    assert read.tasks["sudoku"].metrics == ("accuracy", "cells")
    assert find_evaluations(tmp_path) == [read]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "remask.run"}, "not an evaluation"),
        ({"format": 2}, "format 2"),
        ({"tasks": {}}, "no task"),
        ({"tasks": {"sudoku": {"problems": []}}}, "no problems"),
        ({"tasks": {"sudoku": {"problems": [{"id": "1"}]}}}, "not a whole evaluation"),
        ({"tasks": {"sudoku": {"problems": [{"id": "1", "correct": "yes"}]}}}, "not true or false"),
        ({"tasks": {"sudoku": {"problems": [{"id": "1", "correct": True}] * 2}}}, "twice"),
        ({"decoding": None}, "not a whole evaluation"),
    ],
)
def test_a_malformed_file_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "eval.json"
    path.write_text(json.dumps(content("gift", 0, "10") | change))
    with pytest.raises(UserError, match=message) as caught:
        load_evaluation(path)
    assert str(path) in str(caught.value)


def test_what_is_not_json_or_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "eval.json"
    with pytest.raises(UserError, match="cannot be read"):
        load_evaluation(path)
    path.write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        load_evaluation(path)


def test_arms_pool_their_seeds_in_order() -> None:
    arms = pool([evaluation("gift", 1, "11"), evaluation("sft", 0, "00"), evaluation("gift", 0, "10")])
    assert list(arms) == ["sft", "gift"]
    assert arms["gift"].seeds("sudoku") == (0, 1)
    np.testing.assert_array_equal(arms["gift"].scores("sudoku"), [[1, 0], [1, 1]])
    np.testing.assert_array_equal(arms["gift"].scores("sudoku", "cells"), [[1, 0.5], [1, 1]])


def test_the_starting_model_comes_first() -> None:
    assert list(pool([evaluation("dft", 0, "1"), evaluation("sft", 0, "1"), evaluation("start", None, "1")])) == [
        "start",
        "sft",
        "dft",
    ]


def test_one_seeds_accuracy_has_wilsons_interval() -> None:
    arm = pool([evaluation("sft", 0, "1" * 5 + "0" * 5)])["sft"]
    assert arm.interval("sudoku") == wilson(5, 10)


def test_tasks_may_lie_in_files_of_their_own() -> None:
    arm = pool([evaluation("sft", 0, "10"), evaluation("sft", 0, "01", task="countdown")])["sft"]
    assert arm.tasks == ("sudoku", "countdown")
    np.testing.assert_array_equal(arm.scores("countdown"), [[0, 1]])


def test_the_same_seed_twice_is_refused() -> None:
    with pytest.raises(UserError, match="training seed 0 twice"):
        pool([evaluation("sft", 0, "10"), evaluation("sft", 0, "10")])


def test_a_comparison_by_hand() -> None:
    arms = pool([evaluation("start", None, "0000100000"), evaluation("sft", 0, "1111100000")]) | pool(
        [evaluation("gift", 0, "1111111000")]
    )
    accuracy, cells = compare_arms(arms["sft"], arms["gift"], arms["start"])
    assert (accuracy.task, accuracy.metric, cells.metric) == ("sudoku", "accuracy", "cells")
    assert accuracy.baseline == wilson(5, 10)
    assert accuracy.candidate == wilson(7, 10)
    assert accuracy.difference.mean == pytest.approx(0.2)
    assert accuracy.gain.over_score == pytest.approx(0.4)  # 0.2 / 0.5
    assert accuracy.gain.over_delta == pytest.approx(0.5)  # 0.6 / 0.4 − 1
    assert cells.difference.mean == pytest.approx(0.1)


def test_problems_are_paired_by_id_whatever_their_order() -> None:
    backwards = content("gift", 0, "1100101001")
    backwards["tasks"]["sudoku"]["problems"].reverse()
    baseline = pool([evaluation("sft", 0, "1100101001")])["sft"]
    candidate = pool([parse_evaluation(backwards, Path("gift.json"))])["gift"]
    difference = compare_arms(baseline, candidate)[0].difference
    half = 1 - 0.025 ** (1 / 10)  # ten problems without a difference, and what others might show
    assert (difference.low, difference.mean, difference.high) == pytest.approx((-half, 0.0, half))


def test_seeds_pair_only_where_they_are_the_same() -> None:
    rng = np.random.default_rng(0)
    marks = ["".join("01"[int(x)] for x in rng.random(60) < share) for share in (0.2, 0.8)]
    baseline = pool([evaluation("sft", s, m) for s, m in zip((0, 1), marks, strict=True)])["sft"]
    same = pool([evaluation("gift", s, m) for s, m in zip((0, 1), marks, strict=True)])["gift"]
    other = pool([evaluation("gift", s, m) for s, m in zip((2, 3), marks, strict=True)])["gift"]
    assert compare_arms(baseline, same)[0].difference.high == pytest.approx(1 - 0.025 ** (1 / 60))
    assert compare_arms(baseline, other)[0].difference.high > 0.2


def test_different_problems_are_refused() -> None:
    arms = pool([evaluation("sft", 0, "10"), evaluation("gift", 0, "10", first_id=1)])
    with pytest.raises(UserError, match="not evaluated on the same sudoku problems: 2 and 2, 1 of them shared"):
        compare_arms(arms["sft"], arms["gift"])
    with pytest.raises(UserError, match="not evaluated on the same"):
        pool([evaluation("sft", 0, "10"), evaluation("sft", 1, "100")])


def test_different_tasks_are_refused() -> None:
    arms = pool([evaluation("sft", 0, "10"), evaluation("gift", 0, "10", task="countdown")])
    with pytest.raises(UserError, match="no task in common"):
        compare_arms(arms["sft"], arms["gift"])


def test_tasks_of_one_side_alone_are_named() -> None:
    arms = pool(
        [
            evaluation("sft", 0, "10"),
            evaluation("sft", 0, "10", task="countdown"),
            evaluation("gift", 0, "10", task="gsm8k"),
            evaluation("gift", 0, "10"),
        ]
    )
    assert unshared(arms["sft"], arms["gift"]) == (["countdown"], ["gsm8k"])
    assert {c.task for c in compare_arms(arms["sft"], arms["gift"])} == {"sudoku"}


def test_arms_of_one_name_are_told_apart_by_their_files() -> None:
    a = pool([evaluation("start", None, "10")])["start"]
    b = pool([replace(evaluation("start", None, "10", first_id=1), path=Path("other.json"))])["start"]
    with pytest.raises(UserError, match=r"^start \(start-None\.json\) and start \(other\.json\): not evaluated"):
        compare_arms(a, b)
    with pytest.raises(UserError, match=r"^start \(other\.json\) and start \(start-None\.json\): not evaluated"):
        compare_arms(a, a, b)


def test_different_decoding_is_refused_unless_allowed() -> None:
    arms = pool([evaluation("sft", 0, "1010"), evaluation("gift", 0, "1110", steps=80)])
    with pytest.raises(UserError, match="steps 40 against 80"):
        compare_arms(arms["sft"], arms["gift"])
    assert compare_arms(arms["sft"], arms["gift"], allow_different_decoding=True)[0].difference.mean == 0.25
    with pytest.raises(UserError, match="steps 40 against 80"):
        pool([evaluation("sft", 0, "10"), evaluation("sft", 1, "10", steps=80)])


def test_a_start_decoded_differently_is_refused() -> None:
    arms = pool([evaluation("start", None, "00", steps=80), evaluation("sft", 0, "10"), evaluation("gift", 0, "11")])
    with pytest.raises(UserError, match="start and sft"):
        compare_arms(arms["sft"], arms["gift"], arms["start"])


def test_batch_size_makes_no_difference() -> None:
    arms = pool([evaluation("sft", 0, "10"), evaluation("gift", 0, "10", batch_size=64)])
    assert compare_arms(arms["sft"], arms["gift"])[0].difference.mean == 0.0


def test_comparing_and_reporting_load_no_torch() -> None:
    code = "import sys, remask.evaluation.compare, remask.report; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
