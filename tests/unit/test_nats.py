"""Nats a token of two arms: a ratio of sums over rows, its interval, and its classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remask.evaluation.arms import Arm, parse_evaluation, pool
from remask.evaluation.nats import compare_nats, scores, totals

R = 40


def record(arm: str, seed: int, nats: np.ndarray, tokens: np.ndarray) -> dict[str, Any]:
    """An evaluation of rows of which every second one has a number, with half of the row's nats."""
    problems = []
    for row, (value, n) in enumerate(zip(nats.tolist(), tokens.tolist(), strict=True)):
        classes = {"number": [1, value / 2], "word": [n - 1, value / 2]} if row % 2 else {"word": [n, value]}
        said = {"id": f"r{row}", "correct": None, "metrics": {"likelihood": 0.5}, "tokens": n, "elbo": -value}
        problems.append({**said, "classes": classes})
    task = {"lead": "likelihood", "problems": problems}
    return {"kind": "remask.evaluation", "arm": arm, "run_seed": seed, "decoding": {}, "tasks": {"likelihood": task}}


def arm(name: str, nats: np.ndarray, tokens: np.ndarray) -> Arm:
    records = [record(name, seed, of_seed, tokens) for seed, of_seed in enumerate(nats)]
    return pool(parse_evaluation(said, Path(f"{name}{i}.json")) for i, said in enumerate(records))[name]


def test_scores_of_rows_by_hand() -> None:
    """Rows of 1 and 3 tokens with 2 and 3 nats: 5/4 nats a token; 2 nats on one token are 0.75 above that, twice over
    as the row holds a quarter of the tokens and is half of the rows.
    """
    found = scores(np.array([[1.0, 3.0]]), np.array([[2.0, 3.0]]))
    assert found.tolist() == [[1.25 + 0.5 * 0.75, 1.25 - 0.5 * 0.75]]


def test_the_interval_is_that_of_a_ratio() -> None:
    """Against a bootstrap of Σ nats / Σ tokens itself."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(5, 60, R)
    base = tokens * rng.gamma(4.0, 0.25, R)
    change = tokens * rng.normal(-0.1, 0.1, R)
    (found, *_) = compare_nats(arm("a", base[None], tokens), arm("b", (base + change)[None], tokens), "likelihood")
    draws = rng.integers(0, R, (4000, R))
    for values, said in ((base, found.baseline), (change, found.difference)):
        ratio = values[draws].sum(1) / tokens[draws].sum(1)
        assert said.mean == pytest.approx(values.sum() / tokens.sum())
        low, high = np.percentile(ratio, [2.5, 97.5])
        assert (said.low, said.high) == pytest.approx((low, high), abs=0.15 * (high - low))


def test_classes_that_few_rows_have_are_told_by_their_own_tokens() -> None:
    tokens = np.full(R, 10)
    before = np.full((2, R), 20.0) + np.arange(R) % 3
    after = before.copy()
    after[:, 1::2] -= 4.0
    found = {c.name: c for c in compare_nats(arm("a", before, tokens), arm("b", after, tokens), "likelihood")}
    assert list(found) == ["all tokens", "number", "word"]
    assert (found["number"].tokens, found["number"].rows) == (R // 2, R // 2)
    assert found["all tokens"].difference.mean == pytest.approx(-4 * (R // 2) / (10 * R))
    assert found["number"].difference.mean == pytest.approx(-2.0)
    assert found["number"].difference.high < -1.9
    assert found["word"].difference.mean == pytest.approx(-2 * (R // 2) / (10 * R - R // 2))
    assert found["number"].p_holm >= found["number"].difference.p_value


def test_equal_arms_differ_by_nothing() -> None:
    nats, tokens = np.linspace(3, 9, R)[None], np.arange(R) % 7 + 2
    found = compare_nats(arm("a", nats, tokens), arm("b", nats, tokens), "likelihood")[0]
    assert (found.difference.mean, found.difference.low, found.difference.high) == (0.0, 0.0, 0.0)
    assert found.p_holm == 1.0


def test_totals_add_up() -> None:
    rows = [{"number": (1, 0.5), "word": (2, 1.0)}, {"word": (3, 0.25)}]
    assert totals(rows) == {"number": (1, 0.5), "word": (5, 1.25)}
