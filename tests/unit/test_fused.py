"""Where a library's kernels take a layer's norms, rotation and gate: on CPU, with a stand-in for the library."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import FAMILIES, llada
from test_passes import CAUSAL, losses, rows, same
from torch import Tensor

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


def test_elsewhere_than_on_cuda_nothing_changes(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ON", True)
    x = torch.ones(2, dtype=torch.bfloat16)
    assert not fused.fuses(x)
    model = llada(tokenizer)
    assert type(model.model.norm).__name__ == "LlamaRMSNorm"
    assert type(model.model.layers[0].self_attn).__name__ == "LlamaAttention"


def test_adapters_inputs_are_cast_once_in_mixed_precision(tokenizer: Any) -> None:
    """And the numbers are those of peft's own casts, forth and back."""
    model = add_adapter(llada(tokenizer).bfloat16(), LoraConfig(rank=4, dropout=0.0), base_name="x")
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    seen: list[torch.dtype] = []
    layer.lora_A["default"].register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    x = torch.randn(3, 32, dtype=torch.bfloat16)
    found = []
    for kind in (type(layer), type(layer).__mro__[2]):  # with the mixin, and peft's own
        layer.__class__ = kind
        with torch.autocast("cpu", torch.bfloat16):
            found.append(layer(x))
        found.append(layer(x))  # without autocast adapters compute in float32
    assert seen == [torch.bfloat16, torch.float32, torch.float32, torch.float32]
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])
    assert not torch.equal(found[0], found[1])
