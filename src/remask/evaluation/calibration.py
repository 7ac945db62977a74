"""Whether answers are right where the model was sure of them (numpy only).

A token's confidence is the probability it had when it was revealed. Over the n tokens of an answer

    product = Π p_i        mean = product^(1/n)        least = min p_i

The product is a claim that can be checked: where one token is revealed a step, each p_i is the chance that the token is
the right one, and one text alone is right, it is the chance that all of them are. Where several texts are right it is
too low; where many tokens are revealed a step, their p_i leave one another out. Order (AUC) asks less: only that the
right answers are those of higher confidence. Sizes: S training seeds, P problems.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from remask.data.token_classes import classes_of
from remask.evaluation.clusters import LEAST_ROWS, RowBootstrap
from remask.evaluation.statistics import Interval, Scores, cluster_interval, wilson

LEAST_PROBABILITY = 1e-30
"""The probability that lower ones are raised to: a token that was revealed at 0 then has a logarithm."""

MOST_BINS, LEAST_IN_BIN = 10, 20
CHANCE_DRAWS = 200

SCORES = {
    "answer": "the product over the final answer's tokens",
    "least": "the least sure token of the final answer",
    "text": "the geometric mean over the whole text",
}
"""The scores that answers are put in order by."""


@dataclass(frozen=True)
class Confidence:
    """The confidence of some revealed tokens: how many they are, the geometric mean of their probabilities, and the
    least.
    """

    tokens: int
    mean: float
    least: float

    @classmethod
    def of(cls, probabilities: Sequence[float]) -> Confidence | None:
        """Return the confidence of tokens with these probabilities, or None where there are no tokens."""
        if not probabilities:
            return None
        logs = [math.log(max(p, LEAST_PROBABILITY)) for p in probabilities]
        return cls(len(logs), _short(math.exp(sum(logs) / len(logs))), _short(min(probabilities)))

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Confidence:
        """Read the value from a record's JSON."""
        return cls(int(data["tokens"]), float(data["mean"]), float(data["least"]))

    @property
    def product(self) -> float:
        """Return the product of the probabilities."""
        return float(self.mean**self.tokens)


def _short(value: float) -> float:
    """A probability to five digits: so much of a probability does not depend on what else was in the batch."""
    return float(f"{value:.5g}")


@dataclass(frozen=True)
class Sureness:
    """The confidence in a whole text, its stop token included, and in its final answer where one is marked."""

    text: Confidence
    answer: Confidence | None

    @property
    def own(self) -> Confidence:
        """Return the confidence in the final answer, or in the text where none is marked."""
        return self.answer or self.text

    @classmethod
    def parse(cls, data: Mapping[str, Any] | None) -> Sureness | None:
        """Read the value from a record's JSON; older records have none. Raises KeyError or TypeError for what is no
        such value.
        """
        if data is None:
            return None
        answer = data["answer"]
        return cls(Confidence.parse(data["text"]), None if answer is None else Confidence.parse(answer))


def sureness(
    tokenizer: Any,
    token_ids: Sequence[int],
    revealed_at: Sequence[int],
    confidence: Sequence[float],
    stops: Collection[int],
) -> Sureness | None:
    """Return the confidence in a canvas [C], given its tokens, the steps that revealed them (−1: filled), and their
    probabilities then.

    The final answer is what `token_classes` takes for it. None where the text has no revealed token.
    """
    length = next((i + 1 for i, token in enumerate(token_ids) if token in stops), len(token_ids))
    revealed = [i for i in range(length) if revealed_at[i] >= 0]
    text = Confidence.of([confidence[i] for i in revealed])
    if text is None:
        return None
    classes = classes_of(tokenizer, list(token_ids[:length]))
    return Sureness(text, Confidence.of([confidence[i] for i in revealed if "answer" in classes[i]]))


@dataclass(frozen=True)
class Bin:
    """A bin holds answers of like confidence: what was claimed of them in the mean, and the share that is right."""

    claimed: float
    right: Interval


@dataclass(frozen=True)
class Calibration:
    """A calibration says how well confidence agrees with results over S × P answers.

    claimed: the mean product. excess: claimed minus the share right. error: Σ_b n_b/N |claimed_b − right_b| over the
    bins (expected calibration error). chance: what it would be in the mean, were every claim true. auc: of each of
    `SCORES`, P(a right answer's is higher than a wrong one's), None where all or none is right.
    """

    answers: int
    right: float
    claimed: float
    excess: Interval
    error: float
    chance: float
    auc: dict[str, Interval | None]
    bins: tuple[Bin, ...]


def calibration(right: Scores, sure: Sequence[Sequence[Sureness]], *, level: float = 0.95) -> Calibration | None:
    """Return the calibration of answers that are right [S, P], 0 or 1, given the confidence in each. Intervals resample
    problems; a bin of one seed has Wilson's. None for a single problem.
    """
    S, P = right.shape
    if P < LEAST_ROWS:
        return None
    problem = np.tile(np.arange(P), S)
    hit = right.ravel()
    own = [one.own for row in sure for one in row]
    scores = {
        "answer": np.array([one.product for one in own]),
        "least": np.array([one.least for one in own]),
        "text": np.array([one.text.mean for row in sure for one in row]),
    }
    bootstrap = RowBootstrap(P, level=level)
    claimed = scores["answer"]
    order = np.argsort(claimed, kind="stable")
    starts = bin_starts(claimed[order])
    bins = []
    for part in np.split(order, starts[1:]):
        if S == 1:
            share: Interval | None = wilson(int(hit[part].sum()), len(part), level)
        else:
            share = bootstrap.share((bootstrap.sums(hit[part], problem[part]), np.bincount(problem[part], minlength=P)))
        assert share is not None
        bins.append(Bin(float(claimed[part].mean()), share))
    return Calibration(
        answers=len(hit),
        right=float(hit.mean()),
        claimed=float(claimed.mean()),
        excess=cluster_interval(claimed.reshape(S, P) - right, level),
        error=float(binned_error(claimed[order], hit[order], starts)),
        chance=chance_error(claimed[order], starts),
        auc={name: bootstrap.auc(score, hit > 0, problem) for name, score in scores.items()},
        bins=tuple(bins),
    )


def bin_starts(ordered: NDArray) -> NDArray[np.intp]:
    """Return where bins of about equal size begin in rising values [N]: at most MOST_BINS, equal values in one bin."""
    N = len(ordered)
    count = max(1, min(MOST_BINS, N // LEAST_IN_BIN))
    ends = np.linspace(0, N, count + 1).round().astype(int)[:-1]
    return np.unique(np.searchsorted(ordered, ordered[ends], "left"))


def binned_error(claimed: NDArray, right: NDArray, starts: NDArray[np.intp]) -> NDArray:
    """Return Σ_b n_b/N |mean claimed − mean right| = Σ_b |Σ (claimed − right)| / N, of [..., N] in bins of its last
    axis.
    """
    return np.asarray(np.abs(np.add.reduceat(claimed - right, starts, axis=-1)).sum(-1) / claimed.shape[-1])


def chance_error(claimed: NDArray, starts: NDArray[np.intp], *, seed: int = 0, draws: int = CHANCE_DRAWS) -> float:
    """Return the mean error of answers that are right with just the probabilities claimed [N]: few answers in a bin
    alone make an error.
    """
    rng = np.random.default_rng(seed)
    errors = [binned_error(claimed, rng.random(len(claimed)) < claimed, starts) for _ in range(draws)]
    return float(np.mean(errors))
