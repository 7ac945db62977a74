"""Where a library's kernels take a layer's norms, rotation and gate: on CPU, with a stand-in for the library."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import accelerate
import pytest
import torch
from families import FAMILIES, llada
from peft.helpers import disable_input_dtype_casting
from test_passes import CAUSAL, losses, rows, same
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from remask import kernels
from remask.config import LoraConfig
from remask.models import fused
from remask.models.lora import add_adapter


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each of the stand-in's functions was called."""
    calls: Counter[str] = Counter()

    def norm(x: Tensor, weight: Tensor, eps: float, offset: float, casting: str, in_place: bool) -> Tensor:
        assert (offset, casting, in_place) == (0.0, "llama", False)
        calls["norm"] += 1
        return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)

    def gate(gate: Tensor, up: Tensor) -> Tensor:
        calls["gate"] += 1
        return gate * gate.sigmoid() * up

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        calls["rotation"] += 1
        half = q.shape[-1] // 2
        c, s = cos[:, None, :, :half], sin[:, None, :, :half]
        parts = ((x[..., :half], x[..., half:]) for x in (q, k))
        q, k = (torch.cat([a * c - b * s, b * c + a * s], dim=-1) for a, b in parts)
        return q, k

    library = {"LigerRMSNormFunction": norm, "LigerSiLUMulFunction": gate, "LigerRopeFunction": rotate}
    functions = {name: SimpleNamespace(apply=function) for name, function in library.items()}
    monkeypatch.setattr(kernels, "ON", True)
    monkeypatch.setattr(fused, "_liger", lambda: SimpleNamespace(**functions))
    monkeypatch.setattr(fused, "fuses", lambda x: kernels.ON)
    return calls


@pytest.mark.parametrize("family", CAUSAL)
def test_kernels_take_the_place_of_every_layers_parts(
    family: str, tokenizer: Any, called: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = FAMILIES[family](tokenizer).eval(), rows(tokenizer.pad_token_id)
    with_them = losses(model, batch)
    layers = len(model.model.layers)
    per_layer = 4 if hasattr(model.model.layers[0].self_attn, "q_norm") else 2
    assert called["norm"] == per_layer * layers + 1
    assert called["rotation"] == layers
    assert called["gate"] == (0 if family == "llada-moe" else layers)  # experts are a product of their own
    monkeypatch.setattr(kernels, "ON", False)
    before = Counter(called)
    same(with_them, losses(model, batch))
    assert called == before


@pytest.mark.parametrize(
    ("on", "is_cuda", "size", "dtype", "mixed", "expected"),
    [
        (True, True, 3, torch.bfloat16, False, True),
        (True, True, 3, torch.float32, True, True),
        (True, True, 3, torch.float32, False, False),
        (True, True, 0, torch.bfloat16, False, False),
        (True, False, 3, torch.bfloat16, False, False),
        (False, True, 3, torch.bfloat16, False, False),
    ],
)
def test_what_kernels_are_given(
    on: bool,
    is_cuda: bool,
    size: int,
    dtype: torch.dtype,
    mixed: bool,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "ON", on)
    monkeypatch.setattr(kernels, "triton_is_here", lambda: True)
    with FakeTensorMode():
        tensor = torch.empty(size, dtype=dtype, device="cuda" if is_cuda else "cpu")
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: mixed and kind == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: torch.bfloat16)
    for library in (object(), None):
        monkeypatch.setattr(fused, "_liger", lambda library=library: library)
        assert fused.fuses(tensor) == (expected and library is not None)


@pytest.mark.parametrize(("on", "triton", "liger"), [(True, True, True), (True, True, False), (False, True, True)])
def test_whose_kernels_a_number_was_measured_with(
    on: bool, triton: bool, liger: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "ON", on)
    monkeypatch.setattr(kernels, "triton_is_here", lambda: triton)
    monkeypatch.setattr(kernels, "liger_is_here", lambda: liger)
    assert kernels.in_use() == [name for name, used in (("remask", on and triton), ("liger", on and liger)) if used]


@pytest.mark.parametrize("family", CAUSAL)
def test_layers_keep_their_classes_names_and_compile(family: str, tokenizer: Any) -> None:
    model, batch = FAMILIES[family](tokenizer).eval(), rows(tokenizer.pad_token_id)
    for layer in model.model.layers:
        assert type(layer.self_attn).__name__.endswith("Attention")
        assert type(layer.input_layernorm).__name__.endswith("RMSNorm")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    compiled = torch.compile(model.model, backend="eager")
    with torch.no_grad():
        plain = model.model(**inputs).last_hidden_state
        assert torch.equal(compiled(**inputs).last_hidden_state, plain)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_adapters_inputs_are_cast_once_in_mixed_precision(dropout: float, tokenizer: Any) -> None:
    """The numbers are those of peft's own casts, forth and back; these stay where dropout would round otherwise."""
    model = add_adapter(llada(tokenizer).bfloat16(), LoraConfig(rank=4, dropout=dropout), base_name="x").train()
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    seen: list[torch.dtype] = []
    layer.lora_A["default"].register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    x = torch.randn(3, 32, dtype=torch.bfloat16)
    found = []
    for kind in (type(layer), type(layer).__mro__[2]):  # with the mixin, and peft's own
        layer.__class__ = kind
        for mixed in (True, False):
            torch.manual_seed(0)
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                found.append(layer(x))
    wide = torch.float32
    assert seen == [wide if dropout else torch.bfloat16, wide, wide, wide]
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])
    assert not torch.equal(found[0], found[1])


def test_adapters_can_still_be_offloaded_and_told_not_to_cast(tokenizer: Any) -> None:
    model = add_adapter(llada(tokenizer), LoraConfig(rank=4, dropout=0.0), base_name="x").eval()
    ids = torch.full((1, 5), 70)
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with disable_input_dtype_casting(model):
            assert torch.equal(model(input_ids=ids).logits, plain)
        accelerate.cpu_offload(model, execution_device="cpu")
        assert torch.equal(model(input_ids=ids).logits, plain)
