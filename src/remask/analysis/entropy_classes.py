"""Which tokens have high entropy, and whether entropy tells what a model gets wrong (numpy only).

Everything is over the tokens of the answers; the EOS fill after them is a class of its own and no part of any other
figure, since most of it is sure and right. Intervals are 95 % and resample rows.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from remask.data.token_classes import LEXICAL, POSITIONAL
from remask.errors import UserError
from remask.evaluation.clusters import RowBootstrap
from remask.evaluation.statistics import Interval

TENTHS = 10
LEAST_COUNT = 10
"""The times a token must occur to be ranked by its mean entropy."""

NUMBERS = ("entropy", "rate", "wrong", "later_wrong", "later_nll")


@dataclass(frozen=True)
class Tokens:
    """A table of N tokens of R rows: row, entropy (nats), masking rate, errors (`token_errors`), classes, and what they
    are.
    """

    row: NDArray
    entropy: NDArray
    rate: NDArray
    wrong: NDArray
    later_wrong: NDArray
    later_nll: NDArray
    classes: list[tuple[str, ...]]
    text: list[str]

    @classmethod
    def of(cls, examples: Sequence[dict[str, Any]]) -> Tokens:
        """Return all tokens of inspected examples (`entropy_map`, `token_errors`, `classes_of`)."""
        numbers = {
            key: np.array([value for example in examples for value in example[key]], dtype=np.float64)
            for key in NUMBERS
        }
        return cls(
            row=np.repeat(np.arange(len(examples)), [len(example["tokens"]) for example in examples]),
            classes=[tuple(names) for example in examples for names in example["classes"]],
            text=[token for example in examples for token in example["tokens"]],
            **numbers,
        )

    def having(self, name: str) -> NDArray:
        """Return which tokens have a class."""
        return np.array([name in names for names in self.classes], dtype=bool)

    def only(self, where: NDArray) -> Tokens:
        """Return the table of the chosen tokens alone."""
        places = np.flatnonzero(where)
        return Tokens(
            row=self.row[places],
            classes=[self.classes[i] for i in places],
            text=[self.text[i] for i in places],
            **{key: getattr(self, key)[places] for key in NUMBERS},
        )


def entropy_classes(examples: Sequence[dict[str, Any]], *, least_count: int = LEAST_COUNT) -> dict[str, Any]:
    """Return classes, tenths by entropy, how well entropy predicts errors, and frequent tokens, ready for JSON.

    Raises UserError where there are fewer than two rows, or where no row has an answer.
    """
    everything = Tokens.of(examples)
    bootstrap = RowBootstrap(len(examples))
    fill = everything.having("fill")
    tokens = everything.only(~fill)
    if not len(tokens.row):
        raise UserError("no row has an answer: there is nothing to class", mend="give rows with completions")
    names = [name for name in (*LEXICAL, *POSITIONAL) if name != "fill"]
    classes = [_class(bootstrap, tokens, name, tokens.having(name)) for name in names]
    if fill.any():
        classes.append(_class(bootstrap, everything, "fill", fill) | {"share": None})
    return {
        "rows": len(examples),
        "tokens": len(tokens.row),
        "entropy": _plain(bootstrap.mean(_sums(bootstrap, tokens, tokens.entropy))),
        "classes": [found for found in classes if found["tokens"]],
        "tenths": _tenths(bootstrap, tokens),
        "errors": {
            name: {
                "share": _plain(bootstrap.share(_sums(bootstrap, tokens, wrong))),
                "auc": _plain(bootstrap.auc(tokens.entropy, wrong, tokens.row)),
            }
            for name, wrong in (("now", tokens.wrong), ("later", tokens.later_wrong))
        },
        "rank_correlation": _plain(bootstrap.rank_correlation(tokens.entropy, tokens.later_nll, tokens.row)),
        "least_count": least_count,
        "frequent": _frequent(tokens, least_count),
    }


def _class(bootstrap: RowBootstrap, tokens: Tokens, name: str, own: NDArray) -> dict[str, Any]:
    """A class against all other tokens: means and their difference in nats, and Cliff's δ = P(higher) − P(lower)."""
    inside, outside = (_sums(bootstrap, tokens, tokens.entropy, where) for where in (own, ~own))
    auc = bootstrap.auc(tokens.entropy, own, tokens.row)
    delta = None if auc is None else Interval(2 * auc.mean - 1, 2 * auc.low - 1, 2 * auc.high - 1, auc.n)
    return {
        "name": name,
        "kind": "positional" if name in POSITIONAL else "lexical",
        "about": (LEXICAL | POSITIONAL)[name],
        "tokens": int(own.sum()),
        "share": float(own.mean()),
        "rows": len(np.unique(tokens.row[own])),
        "entropy": _plain(bootstrap.mean(inside)),
        "difference": _plain(bootstrap.difference(inside, outside)),
        "cliff": _plain(delta),
        "rate": float(tokens.rate[own].mean()) if own.any() else None,
        "wrong": float(tokens.wrong[own].mean()) if own.any() else None,
        "later_wrong": float(tokens.later_wrong[own].mean()) if own.any() else None,
    }


def _tenths(bootstrap: RowBootstrap, tokens: Tokens) -> list[dict[str, Any]]:
    """Shares that are wrong in each tenth of the tokens, from the surest to the least sure."""
    order = np.argsort(tokens.entropy, kind="stable")
    found = []
    for part in np.array_split(order, TENTHS):
        if not len(part):
            continue
        own = np.zeros(len(order), dtype=bool)
        own[part] = True
        found.append(
            {
                "low": float(tokens.entropy[part].min()),
                "high": float(tokens.entropy[part].max()),
                "tokens": len(part),
                "wrong": _plain(bootstrap.share(_sums(bootstrap, tokens, tokens.wrong, own))),
                "later_wrong": _plain(bootstrap.share(_sums(bootstrap, tokens, tokens.later_wrong, own))),
            }
        )
    return found


def _frequent(tokens: Tokens, least_count: int) -> list[dict[str, Any]]:
    """Tokens that occur often enough, the one of highest mean entropy first, with the class they most often have."""
    places = defaultdict(list)
    for i, text in enumerate(tokens.text):
        places[text].append(i)
    found = [
        {
            "token": text,
            "tokens": len(own),
            "rows": len(np.unique(tokens.row[own])),
            "class": Counter(tokens.classes[i][0] for i in own).most_common(1)[0][0],
            "entropy": float(tokens.entropy[own].mean()),
            "rate": float(tokens.rate[own].mean()),
            "wrong": float(tokens.wrong[own].mean()),
            "later_wrong": float(tokens.later_wrong[own].mean()),
        }
        for text, own in places.items()
        if len(own) >= least_count
    ]
    return sorted(found, key=lambda one: (-one["entropy"], one["token"]))


def _sums(
    bootstrap: RowBootstrap, tokens: Tokens, values: NDArray, own: NDArray | None = None
) -> tuple[NDArray, NDArray]:
    """(total, count) in each row of a quantity, over some of the tokens."""
    counted = np.ones(len(values)) if own is None else own.astype(np.float64)
    return bootstrap.sums(values * counted, tokens.row), bootstrap.sums(counted, tokens.row)


def _plain(interval: Interval | None) -> dict[str, Any] | None:
    """For JSON: what is not known is null."""
    if interval is None:
        return None
    known = not np.isnan(interval.low)
    return {"mean": interval.mean, "low": interval.low if known else None, "high": interval.high if known else None}
