"""Confidence of answers: what is kept, and whether it tells the right ones."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import evaluation

import remask
from remask.errors import UserError
from remask.evaluation.arms import load_evaluation
from remask.evaluation.calibration import (
    Confidence,
    Sureness,
    bin_starts,
    binned_error,
    calibration,
    chance_error,
    sureness,
)
from remask.report import write_report


def sure(product: float, tokens: int = 2) -> Sureness:
    one = Confidence(tokens, product ** (1 / tokens), product)
    return Sureness(one, one)


def test_confidence_by_hand() -> None:
    one = Confidence.of([0.5, 0.5, 1.0, 0.25])
    assert one is not None
    assert (one.tokens, one.mean, one.least) == (4, 0.5, 0.25)
    assert one.product == pytest.approx(0.0625)
    assert Confidence.of([]) is None
    assert Confidence.of([0.0, 1.0]) == Confidence(2, 1e-15, 0.0)


def test_a_canvas_is_read_up_to_its_end_and_its_answer_apart() -> None:
    _, tokenizer = remask.load("tiny")
    text = "x=1\n<answer>42</answer>"
    ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id, *tokenizer.encode("later")]
    answer = text.index("42")
    end = len(text) + 1
    confidence = [0.8] * end + [0.1] * (len(ids) - end)
    confidence[answer], confidence[answer + 1], confidence[0] = 0.5, 0.9, 0.25
    found = sureness(tokenizer, ids, list(range(len(ids))), confidence, [tokenizer.eos_token_id])
    assert found is not None
    assert found.text.tokens == end
    assert found.text.least == 0.25
    assert found.answer == Confidence(2, round(math.sqrt(0.45), 5), 0.5)
    # What was filled was not revealed: nothing is said of it.
    filled = [-1 if i == answer + 1 else 0 for i in range(len(ids))]
    confidence[answer + 1] = math.nan
    found = sureness(tokenizer, ids, filled, confidence, [tokenizer.eos_token_id])
    assert found is not None
    assert found.answer == Confidence(1, 0.5, 0.5)
    assert sureness(tokenizer, ids, [-1] * len(ids), confidence, []) is None


def test_without_a_marked_answer_the_text_counts() -> None:
    text = Confidence(3, 0.5, 0.1)
    assert Sureness(text, None).own is text
    assert Sureness.parse(None) is None
    data: dict[str, Any] = {"text": {"tokens": 3, "mean": 0.5, "least": 0.1}, "answer": None}
    assert Sureness.parse(data) == Sureness(text, None)
    with pytest.raises(KeyError):
        Sureness.parse({"text": {"tokens": 3}, "answer": None})


def test_bins_keep_equal_values_together() -> None:
    assert bin_starts(np.arange(100.0)).tolist() == [0, 20, 40, 60, 80]
    assert bin_starts(np.array([0.0] * 50 + [1.0] * 50)).tolist() == [0, 50]
    assert bin_starts(np.zeros(3)).tolist() == [0]


def test_errors_of_bins_by_hand() -> None:
    claimed, right = np.array([0.2, 0.4, 0.9, 0.9]), np.array([0.0, 1.0, 1.0, 1.0])
    # Bins of two: |0.3 − 0.5| and |0.9 − 1|, each with half of the answers.
    assert binned_error(claimed, right, np.array([0, 2])) == pytest.approx(0.15)
    assert binned_error(claimed, right, np.array([0])) == pytest.approx(0.15)
    assert chance_error(np.array([0.0, 1.0]), np.array([0, 1])) == 0.0


def test_true_claims_are_found_true_and_false_ones_false() -> None:
    rng = np.random.default_rng(0)
    claimed = rng.random(1000)
    right = (rng.random(1000) < claimed).astype(float)[None]
    found = calibration(right, [[sure(p) for p in claimed]])
    assert found is not None
    assert found.excess.low < 0 < found.excess.high
    assert found.error < 2 * found.chance
    assert sum(b.right.low <= b.claimed <= b.right.high for b in found.bins) >= 8
    # P(right higher) for p uniform and right with probability p: densities 2p and 2(1 − p) give 5/6.
    auc = found.auc["answer"]
    assert auc is not None
    assert auc.low < 5 / 6 < auc.high
    too_sure = calibration(right, [[sure(p**0.2) for p in claimed]])
    assert too_sure is not None
    assert too_sure.excess.low > 0.2
    assert too_sure.error > 5 * too_sure.chance
    assert too_sure.auc["answer"] == pytest.approx(auc)  # the order is the same


def test_several_seeds_resample_problems() -> None:
    """Seeds that answer alike are no more evidence than one: the interval of a bin does not shrink."""
    claimed = np.linspace(0.1, 0.9, 60)
    right = (np.arange(60) % 3 > 0).astype(float)
    row = [sure(p) for p in claimed]
    one, many = calibration(right[None], [row]), calibration(np.tile(right, (4, 1)), [row] * 4)
    assert one is not None
    assert many is not None
    assert many.answers == 240
    assert (many.right, many.claimed) == pytest.approx((one.right, one.claimed))
    assert one.auc == many.auc
    widths = [np.mean([b.right.high - b.right.low for b in found.bins]) for found in (one, many)]
    assert widths[1] > 0.6 * widths[0]


def test_one_problem_says_nothing() -> None:
    assert calibration(np.array([[1.0]]), [[sure(0.5)]]) is None


def test_the_report_draws_it(tmp_path: Path) -> None:
    paths = []
    for name, seed in (("sft", 0), ("sft", 1), ("gift", 0)):
        paths.append(tmp_path / f"{name}-{seed}.json")
        paths[-1].write_text(json.dumps(evaluation(name, seed, 0.5, sure=True)))
    paths.append(tmp_path / "old.json")
    paths[-1].write_text(json.dumps(evaluation("start", None, 0.3)))
    page = write_report([], tmp_path / "report.html", evaluations=paths).read_text(encoding="utf-8")
    assert '<section id="calibration">' in page
    section = page[page.index('id="calibration"') :]
    assert "1.00 [1.00, 1.00]" in section
    assert "<td>120</td>" in section
    assert "Calibration of start on sudoku: confidence is not recorded." in page


def test_old_records_load_and_say_so(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps(evaluation("sft", 0, 0.4)))
    assert load_evaluation(path).tasks["sudoku"].problems[0].confidence is None
    page = write_report([], tmp_path / "report.html", evaluations=[path]).read_text(encoding="utf-8")
    assert '<section id="calibration">' not in page
    assert "Calibration of sft on sudoku: confidence is not recorded." in page


def test_a_confidence_that_is_none_names_its_file(tmp_path: Path) -> None:
    data = evaluation("sft", 0, 0.4, sure=True)
    data["tasks"]["sudoku"]["problems"][3]["confidence"] = {"text": 1}
    path = tmp_path / "x.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"x\.json"):
        load_evaluation(path)
