"""Templates with typed gaps: how they are read, and that each gap takes tokens of its kind only."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from remask.diffusion.attention import BlockCausal
from remask.errors import UserError
from remask.sampling import Decoding
from remask.sampling.gaps import KINDS, Gap, allowed, parts_of, tokens_of_kind
from remask.sampling.infill import gaps_of_template
from remask.sampling.writing import Writing


def test_a_template_is_texts_and_gaps() -> None:
    assert parts_of("a {{digits:3}} b{{ any : 1 }}") == ["a ", Gap("digits", 3), " b", Gap("any", 1), ""]
    assert parts_of("{{line:2}}") == ["", Gap("line", 2), ""]


@pytest.mark.parametrize("template", ["", "{{digits}}", "{{digits:0}}", "{{colour:1}}", "{digits:3}"])
def test_what_is_no_template_is_refused(template: str) -> None:
    with pytest.raises(UserError, match="template has"):
        parts_of(template)


def test_kinds_of_tokens(tokenizer: Any) -> None:
    """One token a byte: the digits are ten, the letters of ASCII twice 26, and no special token is of any kind."""
    texts = {
        kind: {tokenizer.decode([t]) for t in tokens_of_kind(tokenizer, kind, 300).nonzero()[:, 0]} for kind in KINDS
    }
    assert texts["digits"] == set("0123456789")
    assert {text for text in texts["letters"] if text.isascii()} == {chr(c) for c in range(128) if chr(c).isalpha()}
    assert texts["letters"] | {"_", "-"} | texts["digits"] <= texts["word"] | texts["letters"]
    assert "\n" not in texts["line"]
    special = set(tokenizer.all_special_ids)
    assert not any(tokens_of_kind(tokenizer, kind, 300)[token] for kind in KINDS for token in special)


@pytest.mark.parametrize("attention", [None, BlockCausal(4), BlockCausal(4, "answer")])
def test_gaps_take_their_kind_only(attention: Any, random_model: Any, tokenizer: Any) -> None:
    if attention is not None:
        random_model.attention = attention
    template = "n={{digits:3}};{{letters:2}}{{any:2}}"
    gaps = gaps_of_template(random_model, tokenizer, template, prompt="x", temperature=3.0, seed=1)
    only = allowed(tokenizer, gaps.kinds, random_model.config.vocab_size)
    before, canvas = torch.tensor([gaps.before] * 6), torch.tensor([gaps.canvas] * 6)
    writing = Writing(random_model, before, None, gaps.decoding, None, canvas, only)
    while len(writing.active):
        writing.step()
        writing.retire()
    texts = [tokenizer.decode(row[: gaps.length]) for row in writing.result(0.0).ids.tolist()]
    assert len(set(texts)) > 1
    for text in texts:
        assert text.startswith("n=")
        assert text[2:5].isdigit()
        assert text[5] == ";"
        assert text[6:8].isalpha()


def test_places_without_a_kind_take_everything(random_model: Any, tokenizer: Any) -> None:
    assert allowed(tokenizer, ["", "any"], 300) is None
    assert gaps_of_template(random_model, tokenizer, "a{{any:3}}", prompt="x").kinds == ()
    free = Writing(random_model, torch.tensor([[70]]), None, Decoding(max_new_tokens=2), None)
    assert free.allowed is None
