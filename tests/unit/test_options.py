"""What the command line says of a value that an option cannot have."""

from __future__ import annotations

from typing import Any

import pytest

from remask.commands.options import parse
from remask.config import EstimatorsConfig, RlConfig, SftConfig
from remask.errors import UserError


@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        (SftConfig, ["--seed", "true"], "--seed: expected a whole number, got 'true'"),
        (SftConfig, ["--seed", "1.5"], "--seed: expected a whole number, got '1.5'"),
        (SftConfig, ["--seed"], "--seed: expected a whole number, got nothing"),
        (SftConfig, ["--trainer.learning-rate", "yes"], "--trainer.learning-rate: expected a number, got 'yes'"),
        (SftConfig, ["--choices.alpha", "abc"], "--choices.alpha: expected a number, got 'abc'"),
        (
            SftConfig,
            ["--choices.rate", "foo"],
            "--choices.rate: expected uniform, importance, lift2 or lift3, got 'foo'",
        ),
        (SftConfig, ["--dtype=Float32"], "--dtype: expected auto, float32, bfloat16 or float16, got 'Float32'"),
        (RlConfig, ["--rewards.weights", "a"], "--rewards.weights: expected a number for each value, got 'a'"),
        (EstimatorsConfig, ["--draws", "1", "x"], "--draws: expected a whole number for each value, got '1', 'x'"),
        (
            EstimatorsConfig,
            ["--parts", "elbo", "b"],
            "--parts: expected elbo, tightness, reward or gradients for each value, got 'b'",
        ),
    ],
)
def test_what_was_expected_and_what_was_given(kind: Any, arguments: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(kind, arguments, command="x", examples="")
    assert str(caught.value) == f"{said}; `remask x --help` lists the options"
