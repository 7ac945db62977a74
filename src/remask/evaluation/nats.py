"""Nats a token: what two arms make of the same answers, over all tokens and class by class.

Σ nats / Σ tokens over rows is a ratio of sums. Each row is given a score whose mean over rows is that ratio, and whose
spread is the ratio's to first order (the delta method, https://en.wikipedia.org/wiki/Delta_method): with ρ the ratio
and R rows, ρ + (R / Σ tokens)·(nats_r − ρ·tokens_r). Scores are compared as any others are, paired by row and seed.

Shapes: S seeds, R rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from remask.data.token_classes import LEXICAL, POSITIONAL
from remask.evaluation.arms import ALL, Arm
from remask.evaluation.statistics import Difference, Interval, cluster_interval, holm, paired_difference

LEAST_ROWS = 10
"""The rows that must have a class of tokens for it to be compared: an interval over fewer would be too narrow."""


@dataclass(frozen=True)
class ClassComparison:
    """A comparison holds what two arms make of one class of tokens. tokens: how many there are in the rows, rows: how
    many rows have one. p_holm: the p-value of the difference, corrected for all classes; that of all tokens, which are
    no class, is as it is.
    """

    name: str
    tokens: int
    rows: int
    baseline: Interval
    candidate: Interval
    difference: Difference
    p_holm: float


def compare_nats(
    baseline: Arm, candidate: Arm, task: str, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> list[ClassComparison] | None:
    """Return candidate − baseline in nats a token, over all tokens first, then for each class that ten rows or more
    have, over the rows that have it. Empty where a record does not say it (answers that were written, not read); None
    where the two cut the answers into other tokens, so that nats a token cannot be compared.
    """
    order = baseline.problem_ids(task)
    sides = [_sums(arm, task, order) for arm in (baseline, candidate)]
    shared = [name for name in (ALL, *LEXICAL, *POSITIONAL) if all(name in side for side in sides)]
    if ALL in shared and not np.array_equal(sides[0][ALL][0][0], sides[1][ALL][0][0]):
        return None
    paired = baseline.seeds(task) == candidate.seeds(task)
    found: dict[str, tuple[int, int, Interval, Interval, Difference]] = {}
    for name in shared:
        tokens = sides[0][name][0][0]
        having = tokens > 0
        if int(having.sum()) < (2 if name == ALL else LEAST_ROWS):
            continue
        b, c = (scores(*(part[:, having] for part in side[name])) for side in sides)
        difference = paired_difference(
            c, b, level=level, resamples=resamples, seed=seed, paired_seeds=paired, limit=math.inf
        )
        means = [cluster_interval(each, level, seed=seed, resamples=resamples) for each in (b, c)]
        found[name] = int(tokens.sum()), int(having.sum()), means[0], means[1], difference
    corrected = holm({name: said[-1].p_value for name, said in found.items() if name != ALL})
    return [ClassComparison(name, *said, corrected.get(name, said[-1].p_value)) for name, said in found.items()]


def nats_a_token(arm: Arm, task: str, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval | None:
    """Return the nats a token of an arm over all tokens of its rows, with the bootstrap's interval over rows (and
    seeds, if several). None where a record does not say it, or there is but one row.
    """
    sums = _sums(arm, task, arm.problem_ids(task))
    if ALL not in sums or sums[ALL][0].shape[1] < 2:
        return None
    return cluster_interval(scores(*sums[ALL]), level, seed=seed, resamples=resamples)


def scores(tokens: Float[ndarray, "S R"], nats: Float[ndarray, "S R"]) -> Float[ndarray, "S R"]:
    """Return scores whose mean is Σ nats / Σ tokens, and whose spread over rows is that of this ratio."""
    ratio = nats.sum() / tokens.sum()
    by_row: Float[ndarray, "S R"] = ratio + tokens.shape[1] / tokens.sum(1, keepdims=True) * (nats - ratio * tokens)
    return by_row


def totals(problems: Sequence[Mapping[str, tuple[int, float]]]) -> dict[str, tuple[int, float]]:
    """Return the tokens and nats of each class over all problems, in the classes' order."""
    found: dict[str, tuple[int, float]] = {}
    for name in (ALL, *LEXICAL, *POSITIONAL):
        of_class = [problem[name] for problem in problems if name in problem]
        if of_class:
            found[name] = sum(tokens for tokens, _ in of_class), sum(nats for _, nats in of_class)
    return found


def _sums(arm: Arm, task: str, order: list[str]) -> dict[str, tuple[ndarray, ndarray]]:
    """Tokens and nats [S, R] of each class that all of an arm's records speak of."""
    by_seed = []
    for result in arm.results(task):
        by_id = {problem.id: problem.nats for problem in result.problems}
        if any(nats is None for nats in by_id.values()):
            return {}
        by_seed.append([by_id[id] or {} for id in order])
    names = set.intersection(*({name for row in rows for name in row} for rows in by_seed))

    def table(name: str, part: int) -> ndarray:
        return np.array([[row.get(name, (0, 0.0))[part] for row in rows] for rows in by_seed], dtype=np.float64)

    return {name: (table(name, 0), table(name, 1)) for name in names}
