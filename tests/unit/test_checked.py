"""What the tests' own checks of shapes find: a size of one name that is two, in arguments and results."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from checked import MOST, begin_anew, jaxtyped

Joined = Callable[..., Tensor]


def joining(result: str) -> Joined:
    @jaxtyped
    def joined(a: Float[Tensor, "B L"], b: Float[Tensor, "B L"], *, far: int = 1) -> Float[Tensor, "B L"]:
        return {"right": a + b, "narrow": a[:, 1:] + b[:, 1:], "none": None}[result]

    return joined


def test_right_shapes_pass() -> None:
    for length in (3, 4):
        assert joining("right")(torch.zeros(2, length), b=torch.zeros(2, length), far=2).shape == (2, length)


@pytest.mark.parametrize(
    ("result", "arguments", "keywords"),
    [
        ("right", [torch.zeros(2, 3), torch.zeros(2, 4)], {}),
        ("right", [torch.zeros(2, 3), torch.zeros(3, 3)], {}),
        ("right", [torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long)], {}),
        ("right", [torch.zeros(2, 3), torch.zeros(2, 3)], {"far": "x"}),
        ("narrow", [torch.zeros(2, 3), torch.zeros(2, 3)], {}),
        ("none", [torch.zeros(2, 3), torch.zeros(2, 3)], {}),
    ],
)
def test_wrong_ones_do_not(result: str, arguments: list[Tensor], keywords: dict[str, object]) -> None:
    with pytest.raises(TypeCheckError, match="joined"):
        joining(result)(*arguments, **keywords)


@pytest.mark.usefixtures("unchecked")
def test_nothing_is_checked_where_checks_are_off() -> None:
    assert joining("none")(torch.zeros(2, 3), torch.zeros(2, 3)) is None


def test_the_first_calls_of_each_test_are_checked() -> None:
    joined = joining("right")
    for _ in range(MOST):
        joined(torch.zeros(2, 3), torch.zeros(2, 3))
    joined(torch.zeros(2, 3), torch.zeros(1, 3))
    begin_anew()
    with pytest.raises(TypeCheckError):
        joined(torch.zeros(2, 3), torch.zeros(1, 3))
