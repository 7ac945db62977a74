"""Weights that are laid out once while they do not change: the same numbers to the last bit, and nothing kept after."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from families import FAMILIES
from torch import Tensor, nn
from torch.nn.functional import linear

from remask.config import LoraConfig
from remask.kernels import prepacked
from remask.models import unchanged
from remask.models.lora import add_adapter
from remask.models.patches import SWITCH
from remask.models.unchanged import weights_unchanged
from remask.sampling import Decoding, run

pytestmark = pytest.mark.skipif(
    not prepacked.fits(torch.zeros(4, 4, dtype=torch.bfloat16)),
    reason="this CPU or this PyTorch multiplies in bfloat16 without oneDNN",
)


@pytest.fixture(autouse=True)
def nothing_is_kept() -> Iterator[None]:
    yield
    assert not prepacked._held


def weight_of(rows: int, width: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0)).bfloat16()


def laid_out(weight: Tensor) -> bool:
    held = prepacked.held(weight)
    return held is not None and held.packed is not None


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", [(1, 64), (3, 5, 64), (129, 64)])
def test_products_are_equal_to_the_last_bit(shape: tuple[int, ...], biased: bool) -> None:
    weight, x = weight_of(96, 64), weight_of(900, 64)
    x = x[: torch.Size(shape[:-1]).numel()].reshape(shape)
    bias = weight_of(96, 1)[:, 0] if biased else None
    prepacked.hold(weight)
    with torch.no_grad():
        found = [prepacked.product(x, weight, bias) for _ in range(prepacked.AFTER + 3)]
        assert laid_out(weight) == (x.numel() <= prepacked.FEW * 64)
        assert all(torch.equal(y, linear(x, weight, bias)) for y in found)
    prepacked.let_go(weight)


def test_a_weight_is_laid_out_in_its_ninth_product_or_at_once() -> None:
    weight, x = weight_of(8, 8), weight_of(2, 8)
    with torch.no_grad():
        for at_once, needed in ((False, prepacked.AFTER + 1), (True, 1)):
            prepacked.hold(weight, at_once=at_once)
            for _ in range(needed):
                assert not laid_out(weight)
                prepacked.product(x, weight)
            assert laid_out(weight)
            prepacked.let_go(weight)


def test_a_weight_that_changes_is_laid_out_anew() -> None:
    layer, x = nn.Linear(8, 8).bfloat16(), weight_of(2, 8)
    with torch.no_grad(), weights_unchanged(layer, at_once=True):
        before = layer(x)
        assert laid_out(layer.weight)
        layer.state_dict()["weight"].copy_(2 * layer.weight)
        assert not torch.equal(layer(x), before)
        assert torch.equal(layer(x), linear(x, layer.weight, layer.bias))


def test_where_the_layout_gives_another_number_the_plain_product_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = weight_of(8, 8), weight_of(2, 8)
    monkeypatch.setattr(prepacked, "_multiplied", lambda x, packed, bias: linear(x, weight) + 1)
    prepacked.hold(weight, at_once=True)
    with torch.no_grad():
        assert all(torch.equal(prepacked.product(x, weight), linear(x, weight)) for _ in range(3))
        assert not laid_out(weight)
    prepacked.let_go(weight)


def test_products_with_a_gradient_or_in_another_precision_are_plain() -> None:
    layer = nn.Linear(8, 8).bfloat16()
    with weights_unchanged(layer, at_once=True):
        layer(weight_of(2, 8)).sum().backward()
        assert layer.weight.grad is not None
        assert prepacked._held[id(layer.weight)].packed is None


def test_models_in_other_precisions_and_memory_too_small_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(8, 8)
    with weights_unchanged(layer):
        assert not prepacked._held
    layer = layer.bfloat16()
    size = layer.weight.nbytes
    for free, kept in ((4 * size, 1), (4 * size - 1, 0)):
        monkeypatch.setattr(unchanged, "free_bytes", lambda device, free=free: free)
        with weights_unchanged(layer):
            assert len(prepacked._held) == kept
            assert ("forward" in vars(layer)) == bool(kept)
        assert "forward" not in vars(layer)
    monkeypatch.setenv(SWITCH, "prepacked")
    with weights_unchanged(layer):
        assert not prepacked._held


def test_contexts_may_be_nested_and_end_with_an_error() -> None:
    layer = nn.Linear(8, 8).bfloat16()

    def fails() -> None:
        with weights_unchanged(layer):
            with weights_unchanged(layer, at_once=True):
                pass
            assert "forward" in vars(layer)
            assert len(prepacked._held) == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert "forward" not in vars(layer)


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("adapted", [False, True])
def test_an_answer_is_the_same_and_all_weights_take_part(
    family: str, adapted: bool, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = FAMILIES[family](tokenizer).bfloat16()
    if adapted:
        model = add_adapter(model, LoraConfig(rank=2), base_name="x")
        with torch.no_grad():
            for name, value in model.named_parameters():
                if ".lora_B." in name:
                    value.normal_()
    prompt = torch.arange(5, 11)[None].repeat(2, 1)
    decoding = Decoding(max_new_tokens=10, steps=10, temperature=0.5)
    seen: list[int] = []
    multiplied = prepacked._multiplied

    def counted(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        seen.append(id(packed))
        return multiplied(x, packed, bias)

    monkeypatch.setattr(prepacked, "_multiplied", counted)
    found = run(model, prompt, None, decoding)
    linears = {id(m.weight) for m in model.modules() if type(m) is nn.Linear and m.weight.dtype == torch.bfloat16}
    assert len(set(seen)) >= len(linears) - 1
    monkeypatch.setenv(SWITCH, "prepacked")
    seen.clear()
    plain = run(model, prompt, None, decoding)
    assert not seen
    assert torch.equal(found.ids, plain.ids)
    assert torch.equal(found.confidence, plain.confidence)
