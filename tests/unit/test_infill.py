"""Filling in: what stands stays, every mask is written, and nothing ends the text inside."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from remask.cli import main
from remask.errors import UserError
from remask.sampling.infill import infill


@pytest.mark.parametrize("prompt", [None, "say something"])
@pytest.mark.parametrize("settings", [{}, {"steps": 1}, {"temperature": 1.0, "seed": 3}, {"steps": 50}])
def test_what_stands_stays_and_masks_are_written(
    prompt: str | None, settings: dict[str, Any], random_model: Any, tokenizer: Any
) -> None:
    text = "<|mask|>ab<|mask|><|mask|> c <|end|>"
    filled = infill(random_model, tokenizer, text, prompt=prompt, **settings)
    assert filled["written"] == [0, 3, 4]
    ids = filled["token_ids"]
    assert (
        tokenizer.decode([token for place, token in enumerate(ids) if place not in filled["written"]]) == "ab c <|end|>"
    )
    assert len(filled["confidence"]) == 3
    assert filled["forwards"] == min(settings.get("steps", 3), 3)
    ends = {tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|end|>")}
    assert not ends.intersection(ids)  # the <|end|> of the text is characters


def test_a_gap_is_what_the_model_finds_likeliest_there(random_model: Any, tokenizer: Any) -> None:
    filled = infill(random_model, tokenizer, "ab<|mask|>cd")
    ids = torch.tensor([[*tokenizer.encode("ab"), tokenizer.mask_token_id, *tokenizer.encode("cd")]])
    with torch.no_grad():
        logits = random_model(input_ids=ids).logits[0, 2]
    logits[[tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|end|>")]] = -torch.inf
    assert filled["token_ids"][2] == int(logits.argmax())


def test_what_cannot_be_filled_in(random_model: Any, tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"holds no mask; write <\|mask\|> for each token"):
        infill(random_model, tokenizer, "abc")
    with pytest.raises(UserError, match="as one block"):
        infill(random_model, tokenizer, "a<|mask|>", block_length=1)
    assert main(["generate", "--infill", "a<|mask|>", "one", "two"]) == 2
    assert "give one prompt, or none" in capsys.readouterr().err


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    text = "2<|mask|>31 1342 4213 3124"
    assert main(["generate", "--model", "tiny-direct", "--infill", text, "sudoku 2031 0002 0013 3004", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["text"] == "2431 1342 4213 3124"
    assert record["infill"] == text
