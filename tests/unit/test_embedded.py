"""The models that come with the package."""

from __future__ import annotations

import re

import pytest
import torch

import remask
from remask.errors import UserError
from remask.models.load import EMBEDDED, resolve


@pytest.mark.parametrize(
    ("name", "parameters"), [("tiny", 1_041_280), ("tiny-direct", 179_904), ("tiny-block", 179_904)]
)
def test_embedded_models_load_in_float32_and_answer(name: str, parameters: int) -> None:
    model, tokenizer = remask.load(name)
    assert model.dtype == torch.float32
    assert sum(p.numel() for p in model.parameters()) == parameters
    written = remask.generate(model, tokenizer, ["sudoku 2031 0002 0013 3004"], steps=10)
    assert len(re.sub(r"\D", "", written.texts[0])) >= 16
    assert resolve(name) == str(EMBEDDED[name])


def test_a_model_that_is_not_there_is_told_from_them() -> None:
    with pytest.raises(UserError, match="tiny or tiny-direct or tiny-block"):
        resolve("tiny-other")
