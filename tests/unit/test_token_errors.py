"""Errors per token: against the model's own logits, and every token scored once with half of the others revealed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from remask.analysis.entropy_map import entropy_map, one_by_one
from remask.analysis.token_errors import token_errors
from remask.data.canvas import Fill, Row
from remask.data.collate import Collator
from remask.diffusion.attention import Full
from remask.sft.presets import resolve

ROWS = [Row([65, 66], [70, 71, 72, 73, 74], "a"), Row([65], [80], "b")]


@pytest.fixture
def found(random_model: Any) -> list[dict[str, list]]:
    return token_errors(random_model, ROWS, mask_id=1, collator=Collator(Fill("multiple", 8), 0, 64, seed=0))


def test_all_masked_is_what_the_logits_say(random_model: Any, found: list[dict[str, list]]) -> None:
    for row, errors in zip(ROWS, found, strict=True):
        ids = torch.tensor([row.prompt + [1] * 8])
        log_p = random_model(input_ids=ids).logits[0, len(row.prompt) :].log_softmax(-1)
        gold = torch.tensor(row.response + [0] * (8 - len(row.response)))
        assert errors["wrong"] == (log_p.argmax(-1) != gold).tolist()
        assert errors["nll"] == pytest.approx((-log_p[range(8), gold]).tolist(), abs=1e-4)


def test_later_each_half_is_scored_in_the_light_of_the_other(random_model: Any, found: list[dict[str, list]]) -> None:
    collator = Collator(Fill("multiple", 8), 0, 64, seed=0)
    for row, errors, (canvas, noise) in zip(ROWS, found, one_by_one(ROWS, collator, "cpu", Full()), strict=True):
        start = len(row.prompt)
        first = set(noise.u[0, start:].argsort()[:4].tolist())
        for half in (first, set(range(8)) - first):
            ids = canvas.ids.clone()
            ids[0, [start + i for i in half]] = 1
            log_p = random_model(input_ids=ids).logits[0].log_softmax(-1)
            for i in half:
                gold = int(canvas.ids[0, start + i])
                assert errors["later_wrong"][i] == (int(log_p[start + i].argmax()) != gold)
                assert errors["later_nll"][i] == pytest.approx(-log_p[start + i, gold].item(), abs=1e-4)


def test_an_answer_of_one_token_has_one_half(random_model: Any) -> None:
    (errors,) = token_errors(random_model, ROWS[1:], mask_id=1, collator=Collator(Fill("none"), 0, 64, seed=0))
    assert errors["later_nll"] == errors["nll"]


def test_errors_stand_beside_the_entropies(random_model: Any, tokenizer: Any, found: list[dict[str, list]]) -> None:
    collator = Collator(Fill("multiple", 8), 0, 64, seed=0)
    examples = entropy_map(random_model, tokenizer, ROWS, resolve("gift"), mask_id=1, collator=collator, time=0.5)
    assert [len(e["entropy"]) for e in examples] == [len(e["wrong"]) for e in found] == [8, 8]
