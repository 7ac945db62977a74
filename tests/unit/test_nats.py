"""Nats a token of two arms: a ratio of sums over rows, its interval, and its classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remask.commands.evaluate import show
from remask.errors import UserError
from remask.evaluation.arms import Arm, parse_evaluation, pool
from remask.evaluation.compare import compare_arms
from remask.evaluation.nats import LEAST_ROWS, ClassComparison, compare_nats, scores, totals
from remask.report.results import benchmark, comparable_groups

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


def compared(a: Arm, b: Arm) -> list[ClassComparison]:
    found = compare_nats(a, b, "likelihood")
    assert found is not None
    return found


def test_no_decoding_had_a_part_in_a_likelihood(capsys: pytest.CaptureFixture[str]) -> None:
    """Answers that were only read: whatever decoding the records name, they are pooled, compared and shown without."""
    nats, tokens = np.full((1, R), 3.0), np.full(R, 2)
    said = {}
    for seed, name, steps in ((0, "a", 1), (1, "a", 2), (0, "b", 3)):
        said[name, seed] = {**record(name, seed, nats[0], tokens), "decoding": {"steps": steps}}
    read = [parse_evaluation(one, Path(f"{name}{seed}.json")) for (name, seed), one in said.items()]
    a, b = pool(read).values()
    assert [c.difference.mean for c in compare_arms(a, b, a)] == [0.0]
    (group,) = comparable_groups(read)
    assert benchmark(group)["facts"] == []
    problem = {"id": "p", "correct": True, "metrics": {}}
    for one in said.values():
        one["tasks"]["sudoku"] = {"problems": [problem, {**problem, "id": "q"}]}
    written = [parse_evaluation(one, Path(f"{name}{seed}.json")) for (name, seed), one in said.items()]
    with pytest.raises(UserError, match="decoded differently: steps 1 against 2"):
        pool(written)
    groups = comparable_groups(written)
    assert sorted(one.task for one in groups) == ["likelihood", "sudoku", "sudoku", "sudoku"]
    metric = {"accuracy": {"mean": 0.5, "low": 0.0, "high": 1.0, "n": 2}}
    task = {"metrics": metric, "published_metric": "accuracy", "n": 2, "generation": {"unended": 0}}
    shown = {"model": "m", "arm": "a", "seconds": 1.0, "decoding": {"steps": 3}}
    likelihood = {**task, "nats_per_token": 0.1, "draws": 1}
    for tasks, line in (
        ({"likelihood": likelihood}, "\n1 s\n"),
        ({"sudoku": task, "likelihood": likelihood}, "\ndecoding of sudoku: steps 3; 1 s\n"),
        ({"sudoku": task}, "\ndecoding: steps 3; 1 s\n"),
    ):
        show({**shown, "tasks": tasks})
        assert capsys.readouterr().out.endswith(line)


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
    (found, *_) = compared(arm("a", base[None], tokens), arm("b", (base + change)[None], tokens))
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
    found = {c.name: c for c in compared(arm("a", before, tokens), arm("b", after, tokens))}
    assert list(found) == ["all tokens", "number", "word"]
    assert (found["number"].tokens, found["number"].rows) == (R // 2, R // 2)
    assert found["all tokens"].difference.mean == pytest.approx(-4 * (R // 2) / (10 * R))
    assert found["number"].difference.mean == pytest.approx(-2.0)
    assert found["number"].difference.high < -1.9
    assert found["word"].difference.mean == pytest.approx(-2 * (R // 2) / (10 * R - R // 2))
    assert found["number"].p_holm >= found["number"].difference.p_value


def test_equal_arms_differ_by_nothing() -> None:
    nats, tokens = np.linspace(3, 9, R)[None], np.arange(R) % 7 + 2
    found = compared(arm("a", nats, tokens), arm("b", nats, tokens))[0]
    assert (found.difference.mean, found.difference.low, found.difference.high) == (0.0, 0.0, 0.0)
    assert found.p_holm == 1.0


def test_totals_add_up() -> None:
    rows = [{"number": (1, 0.5), "word": (2, 1.0)}, {"word": (3, 0.25)}]
    assert totals(rows) == {"number": (1, 0.5), "word": (5, 1.25)}


def test_a_class_of_few_rows_is_left_out_and_one_of_ten_keeps_its_level() -> None:
    """The rows without it are no evidence: under no difference 5 % of intervals leave 0 out, to sampling error."""
    rng, tokens, wrong = np.random.default_rng(0), np.full(57, 5), 0
    for _ in range(120):
        sides = []
        for name in ("a", "b"):
            said = record(name, 0, rng.gamma(4.0, 1.0, 57), tokens)
            for row, problem in enumerate(said["tasks"]["likelihood"]["problems"]):
                problem["classes"] = {"number": [5, -problem["elbo"]]} if row < LEAST_ROWS else {}
                problem["classes"] |= {"word": [5, 1.0]} if row < LEAST_ROWS - 1 else {}
            sides.append(pool([parse_evaluation(said, Path("x.json"))])[name])
        everything, number = compare_nats(*sides, "likelihood", resamples=400) or []
        assert (everything.rows, number.rows, number.name) == (57, LEAST_ROWS, "number")
        wrong += not number.difference.low <= 0 <= number.difference.high
    assert wrong <= 14  # 6 are expected; more than 14 have a probability of 1 in 1,000


def test_answers_cut_into_other_tokens_are_not_compared() -> None:
    nats, tokens = np.linspace(3, 9, R)[None], np.arange(R) % 7 + 2
    assert compare_nats(arm("a", nats, tokens), arm("b", nats, 2 * tokens), "likelihood") is None


def test_answers_that_were_only_read_have_no_decoding_to_differ_in() -> None:
    nats, tokens = np.linspace(3, 9, R)[None], np.arange(R) % 7 + 2
    sides = []
    for name, block in (("a", 4), ("b", 8)):
        said = {**record(name, 0, nats[0], tokens), "decoding": {"block_length": block}}
        sides.append(pool([parse_evaluation(said, Path(f"{name}.json"))])[name])
    assert [c.difference.mean for c in compare_arms(*sides)] == [0.0]
