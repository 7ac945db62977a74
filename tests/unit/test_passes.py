"""What a forward pass leaves out (padding, the last layer's tokens that nobody asks for) changes no number."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from families import FAMILIES, IDS
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention

from remask.models import packing

Found = tuple[Tensor, list[Tensor | None]]
CAUSAL = [name for name in FAMILIES if not name.endswith("bert")]


def rows(pad: int) -> dict[str, Tensor]:
    """Padded on the left, on the right and not at all, with places chosen in each."""
    ids = nn.functional.pad(torch.cat([IDS, IDS[:1].flip(1)]), (2, 3), value=pad)
    attended = torch.ones_like(ids)
    attended[0, :5], attended[1, 6:], attended[2, :2] = 0, 0, 0
    positions = (ids == 257) & (attended != 0)
    positions[0, 5] = True  # a row's first token, where a shift would read another row
    targets = torch.arange(int(positions.sum()))
    return {"input_ids": ids, "attention_mask": attended, "positions": positions, "targets": targets}


def losses(model: Any, batch: dict[str, Tensor]) -> Found:
    loss = model(**batch).token_loss
    return loss.detach(), list(torch.autograd.grad(loss.sum(), list(model.parameters()), allow_unused=True))


def same(one: Found, other: Found) -> None:
    assert torch.allclose(one[0], other[0], atol=1e-5)
    for a, b in zip(one[1], other[1], strict=True):
        assert (a is None) == (b is None)
        assert a is None or b is None or torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def shown(module: nn.Module) -> list[torch.Size]:
    """Filled with the shape of what the module is given, at each call."""
    shapes: list[torch.Size] = []

    def note(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        shapes.append((given[0] if given else named["input_ids"]).shape)

    module.register_forward_pre_hook(note, with_kwargs=True)
    return shapes


@pytest.mark.parametrize("family", CAUSAL)
def test_a_batch_without_its_padding_is_the_batch(family: str, tokenizer: Any) -> None:
    model, batch = FAMILIES[family](tokenizer).eval(), rows(tokenizer.pad_token_id)
    seen = shown(model.model)
    found = []
    for model.packs in (False, True):
        found.append(losses(model, batch))
    same(*found)
    assert seen == [batch["input_ids"].shape, (1, int(batch["attention_mask"].sum()))]


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_a_kernel_for_rows_of_any_length_is_given_what_it_takes(
    family: str, mixed: bool, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA: with a stand-in for PyTorch's variable-length attention, in mixed precision and in float32."""
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    signature = inspect.signature(varlen.varlen_attn)
    model, batch = FAMILIES[family](tokenizer).eval(), rows(tokenizer.pad_token_id)
    lengths = batch["attention_mask"].sum(-1).tolist()
    shapes = []

    def varlen_attn(*given: Any, **named: Any) -> Tensor:
        asked = signature.bind(*given, **named).arguments
        q, k, v = asked["query"], asked["key"], asked["value"]
        assert q.dtype == k.dtype == v.dtype == (torch.bfloat16 if mixed else torch.float32)
        for ends in (asked["cu_seq_q"], asked["cu_seq_k"]):
            assert ends.dtype == torch.int32
            assert ends.tolist() == [0, *torch.tensor(lengths).cumsum(0).tolist()]
        assert asked["max_q"] == asked["max_k"] == max(lengths)
        shapes.append(q.shape)
        each = zip(*(x.transpose(0, 1).split(lengths, dim=1) for x in (q, k, v)), strict=True)
        out = [scaled_dot_product_attention(*(x[None] for x in row), scale=asked["scale"])[0] for row in each]
        return torch.cat(out, dim=1).transpose(0, 1)

    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    found = []
    for by_kernel in (False, True):
        monkeypatch.setattr(packing, "_kernel_takes", lambda *_, on=by_kernel: on)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            found.append(losses(model, batch))
    assert shapes == [(sum(lengths), 4, 8)] * len(model.model.layers)
    one, other = (torch.cat([loss, *(g.flatten() for g in gradients if g is not None)]) for loss, gradients in found)
    assert (one - other).norm() < (0.02 if mixed else 1e-5) * one.norm()


@pytest.mark.parametrize(
    ("device", "dtype", "width", "gradient", "expected"),
    [
        ("cuda", torch.bfloat16, 128, True, True),
        ("cuda", torch.float16, 64, True, True),
        ("cuda", torch.float32, 128, True, False),
        ("cuda", torch.bfloat16, 100, True, False),
        ("cuda", torch.bfloat16, 512, True, False),
        ("cuda", torch.bfloat16, 128, False, False),
        ("cpu", torch.float32, 100, False, True),
        ("meta", torch.bfloat16, 128, True, False),
    ],
)
def test_where_packing_pays(
    device: str, dtype: torch.dtype, width: int, gradient: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    packing._kernel_takes.cache_clear()
    with FakeTensorMode():
        there = torch.empty(3, dtype=dtype, device=device)
    with torch.set_grad_enabled(gradient):
        assert packing.pays(there, there, width) == expected
    packing._kernel_takes.cache_clear()


def test_a_batch_of_which_padding_is_asked_for_is_not_packed(tokenizer: Any) -> None:
    model = FAMILIES["llada"](tokenizer)
    attended = torch.ones_like(IDS)
    attended[0, :4] = 0
    with torch.no_grad():
        everywhere = model(input_ids=IDS, attention_mask=attended, positions=torch.ones_like(IDS, dtype=torch.bool))
        assert torch.allclose(
            everywhere.logits, model(input_ids=IDS, attention_mask=attended).logits.flatten(0, 1), atol=1e-5
        )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize("family", CAUSAL)
def test_the_last_layer_ends_with_what_is_asked_for(
    family: str, packs: bool, checkpointing: bool, tokenizer: Any
) -> None:
    model, batch = FAMILIES[family](tokenizer).train(), rows(tokenizer.pad_token_id)
    if checkpointing:
        model.gradient_checkpointing_enable()
    model.packs, found, asked = packs, [], int(batch["positions"].sum())
    seen = shown(model.model.layers[-1].mlp)
    for model.narrows in (False, True):
        found.append(losses(model, batch))
    same(*found)
    tokens = [size[:-1].numel() for size in seen]
    every = int(batch["attention_mask"].sum()) if packs else batch["input_ids"].numel()
    assert tokens == [every] * (1 + checkpointing) + [asked] * (1 + checkpointing)


@pytest.mark.parametrize("family", CAUSAL)
def test_nothing_asked_for_has_a_gradient_of_nothing(family: str, tokenizer: Any) -> None:
    """Under DDP and sharded weights every process calls the model, also for a batch without a loss."""
    model, none = FAMILIES[family](tokenizer).train(), torch.zeros_like(IDS, dtype=torch.bool)
    loss = model(input_ids=IDS, positions=none, targets=IDS[none]).token_loss
    assert loss.shape == (0,)
    loss.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    assert model.model.layers[0].self_attn.q_proj.weight.grad is not None


@pytest.mark.parametrize("family", CAUSAL)
def test_layers_keep_their_names_and_hidden_states_their_shape(family: str, tokenizer: Any) -> None:
    """By the name of a layer's class engines find what to shard and what not to split."""
    model = FAMILIES[family](tokenizer)
    assert {type(layer).__name__ for layer in model.model.layers} == set(model._no_split_modules)
    said = model.model(input_ids=IDS, output_hidden_states=True)
    assert len(said.hidden_states) == len(model.model.layers) + 1
    assert {state.shape for state in said.hidden_states} == {(*IDS.shape, 32)}
