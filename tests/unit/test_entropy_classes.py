"""Entropy by class and entropy against errors: worked by hand on a few tokens."""

from __future__ import annotations

from typing import Any

import pytest

from remask.analysis.entropy_classes import entropy_classes
from remask.errors import UserError


def example(entropy: list[float], classes: list[tuple[str, ...]], **changes: Any) -> dict[str, Any]:
    count = len(entropy)
    return {
        "tokens": [f"{names[0][0]}" for names in classes],
        "entropy": entropy,
        "classes": classes,
        "rate": [0.5] * count,
        "wrong": [h > 1 for h in entropy],
        "later_wrong": [False] * count,
        "later_nll": entropy,
        **changes,
    }


NUMBER, WORD, FILL = ("number", "answer"), ("word",), ("fill",)


def by_name(found: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one for one in found["classes"]}


def test_a_class_is_compared_with_all_other_tokens_of_the_answers() -> None:
    rows = [
        example([2.0, 1.0, 0.0, 9.0], [NUMBER, NUMBER, WORD, FILL]),
        example([1.5, 0.5, 9.0], [NUMBER, WORD, FILL]),
    ]
    found = entropy_classes(rows, least_count=2)
    classes = by_name(found)
    assert found["tokens"] == 5
    assert found["entropy"]["mean"] == 1
    assert set(classes) == {"number", "answer", "word", "fill"}
    assert classes["number"]["share"] == 0.6
    assert classes["number"]["entropy"]["mean"] == 1.5
    assert classes["number"]["difference"]["mean"] == 1.25
    assert classes["number"]["cliff"]["mean"] == 1
    assert classes["word"]["cliff"]["mean"] == -1
    assert classes["answer"] == classes["number"] | {
        "name": "answer",
        "kind": "positional",
        "about": classes["answer"]["about"],
    }
    assert classes["fill"]["entropy"]["mean"] == 9
    assert classes["fill"]["share"] is None
    assert [one["token"] for one in found["frequent"]] == ["n", "w"]
    assert found["frequent"][0]["wrong"] == pytest.approx(2 / 3)


def test_entropy_that_orders_the_errors_has_auc_one() -> None:
    rows = [example([0.1 * i for i in range(20)], [WORD] * 20) for _ in range(3)]
    found = entropy_classes(rows)
    assert found["errors"]["now"]["auc"]["mean"] == 1
    assert found["errors"]["now"]["share"]["mean"] == 0.45
    assert found["errors"]["later"]["auc"] is None  # nothing is wrong later
    assert found["errors"]["later"]["share"]["high"] > 0
    assert found["rank_correlation"]["mean"] == pytest.approx(1)
    assert [tenth["tokens"] for tenth in found["tenths"]] == [6] * 10
    assert [tenth["wrong"]["mean"] for tenth in found["tenths"]] == [0, 0, 0, 0, 0, 0.5, 1, 1, 1, 1]


def test_a_class_in_one_row_has_no_interval() -> None:
    found = entropy_classes([example([1.0, 2.0], [NUMBER, WORD]), example([3.0], [WORD])])
    assert by_name(found)["number"]["entropy"] == {"mean": 1.0, "low": None, "high": None}


def test_nothing_to_class_is_refused() -> None:
    with pytest.raises(UserError, match="no row has an answer"):
        entropy_classes([example([1.0], [FILL]), example([], [])])
    with pytest.raises(UserError, match="more rows"):
        entropy_classes([example([1.0], [WORD])])
