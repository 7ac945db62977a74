"""Where a library's kernels take a layer's norms and gate: on CPU, with a stand-in for the library."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import FAMILIES
from test_passes import CAUSAL, losses, rows, same
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from remask import kernels
from remask.models import fused
from remask.models.fused import GatedProduct


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

    library = {"LigerRMSNormFunction": norm, "LigerSiLUMulFunction": gate}
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


@pytest.mark.slow
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gated_product_has_autograds_numbers_and_keeps_its_inputs_only(dtype: torch.dtype) -> None:
    gate, up, g = (torch.randn(5, 48).to(dtype) for _ in range(3))
    found, kept = [], []
    for product in (lambda a, b: torch.nn.functional.silu(a) * b, GatedProduct.apply):
        a, b = (x.clone().requires_grad_() for x in (gate, up))
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, saved=saved: saved.append(x) or x, lambda x: x):
            out = product(a, b)
        out.backward(g)
        found.append((out.detach(), a.grad, b.grad))
        kept.append(len({x.data_ptr() for x in saved}))
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))
    assert kept == [3, 2]


def test_the_gated_product_under_transforms() -> None:
    gate, up = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(GatedProduct.apply, (gate, up))
    assert torch.autograd.gradgradcheck(GatedProduct.apply, (gate, up))
    rows = torch.vmap(torch.func.grad(lambda a, b: GatedProduct.apply(a, b).sum()))(gate, up)
    assert torch.allclose(rows, torch.autograd.grad(GatedProduct.apply(gate, up).sum(), gate)[0])
