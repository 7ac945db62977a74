"""Adapted layers: the same function as peft's, in the layer's precision, with less kept."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import accelerate
import pytest
import torch
from families import llada
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from peft.helpers import disable_input_dtype_casting
from peft.tuners.lora import Linear
from torch import Tensor, nn

from remask.config import LoraConfig
from remask.models.adapters import lean
from remask.models.lora import add_adapter, merge, merged_and_lost

D, E, RANK = 48, 64, 4


def layer_of(*, bias: bool = False, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """One adapted layer, its second matrix no longer 0."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(D, E, bias=bias, dtype=dtype))
    config = PeftLoraConfig(r=RANK, lora_alpha=6, target_modules=["0"], **settings)
    layer: Any = lean(get_peft_model(model, config)).base_model.model[0]  # type: ignore[arg-type]
    nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    return layer


def peft(layer: Any, x: Tensor) -> Tensor:
    out: Tensor = Linear.forward(layer, x)
    return out


def parts(layer: Any) -> tuple[Tensor, Tensor, Tensor]:
    """W, and the adapter's A and B, in float64."""
    found = layer.base_layer.weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return tuple(w.detach().double() for w in found)  # type: ignore[return-value]


@pytest.mark.parametrize("shape", [(D,), (3, D), (2, 3, D)])
@pytest.mark.parametrize("bias", [False, True])
def test_the_sum_by_hand(shape: tuple[int, ...], bias: bool) -> None:
    """x W^T + b + (α/r) x A^T B^T."""
    layer, x = layer_of(bias=bias), torch.randn(shape)
    W, A, B = parts(layer)
    by_hand = x.double() @ (W + 6 / RANK * B @ A).T + (layer.base_layer.bias.double() if bias else 0)
    out = layer(x)
    assert out.shape == (*shape[:-1], E)
    assert torch.allclose(out.double(), by_hand, atol=1e-5)
    assert torch.allclose(out, peft(layer, x), atol=1e-6)


@pytest.mark.parametrize("mixed", [False, True])
def test_in_half_precision_it_is_as_near_to_the_truth_as_pefts(mixed: bool) -> None:
    """Outputs and gradients, each by its distance from float64's."""
    layer = layer_of(dtype=torch.bfloat16)
    x = torch.randn(200, D, dtype=torch.bfloat16)
    W, A, B = (w.requires_grad_() for w in parts(layer))
    exact = x.double() @ (W + 6 / RANK * B @ A).T
    g = torch.randn(exact.shape, dtype=torch.bfloat16)
    exact.backward(g.double())
    apart = {}
    for name, way in (("ours", layer), ("peft", lambda x: peft(layer, x))):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            out = way(x)
        assert out.dtype == torch.bfloat16
        out.backward(g)
        found = out, layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad
        assert found[1].dtype == found[2].dtype == torch.float32
        true = exact, A.grad, B.grad
        apart[name] = [((f - t).norm() / t.norm()).item() for f, t in zip(found, true, strict=True)]  # type: ignore[operator]
    assert max(apart["ours"]) < 6e-3
    assert apart["ours"][0] < 1.1 * apart["peft"][0]


def test_small_gradients_of_float16_do_not_underflow() -> None:
    """A fresh adapter's second matrix and a mean over many tokens: their product lies below float16's numbers."""
    layer = layer_of(dtype=torch.float16)
    nn.init.normal_(layer.lora_B["default"].weight, std=1e-4)
    x, g = torch.randn(400, D).half(), torch.randn(400, E).half() / 16_384
    W, A, B = (w.requires_grad_() for w in parts(layer))
    (x.double() @ (W + 6 / RANK * B @ A).T).backward(g.double())
    layer(x).backward(g)
    found, exact = layer.lora_A["default"].weight.grad, A.grad
    assert exact is not None
    assert (found - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("place", ["", "base_layer", "lora_A.default", "lora_B.default"])
def test_backward_hooks_may_stand_anywhere(place: str) -> None:
    """They hand a module's output on as a view, which must not be written into."""
    layer, x = layer_of(), torch.randn(3, D, requires_grad=True)
    plain = torch.autograd.grad(layer(x).square().sum(), x)[0]
    seen = []
    layer.get_submodule(place).register_full_backward_hook(lambda *given: seen.append(given[2][0].shape))
    assert torch.allclose(torch.autograd.grad(layer(x).square().sum(), x)[0], plain, atol=1e-5)
    assert len(seen) == 1


def test_on_the_meta_device() -> None:
    assert layer_of().to("meta")(torch.randn(3, D, device="meta")).shape == (3, E)


def test_nothing_as_large_as_the_input_is_kept_in_float32() -> None:
    layer = layer_of(dtype=torch.bfloat16)
    x = torch.randn(200, D, dtype=torch.bfloat16, requires_grad=True)
    kept: dict[str, list[tuple[torch.dtype, int]]] = {"ours": [], "peft": []}
    for name, way in (("ours", layer), ("peft", lambda x: peft(layer, x))):

        def pack(tensor: Tensor, name: str = name) -> Tensor:
            kept[name].append((tensor.dtype, tensor.numel()))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            way(x)
    assert (torch.float32, x.numel()) in kept["peft"]
    assert not any(dtype == torch.float32 and size >= x.numel() for dtype, size in kept["ours"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_adapter_changes_no_bit(dtype: torch.dtype) -> None:
    layer, x = layer_of(dtype=dtype), torch.randn(2, 3, D, dtype=dtype)
    nn.init.zeros_(layer.lora_B["default"].weight)
    assert torch.equal(layer(x), layer.base_layer(x))


def test_disabled_merged_and_more_than_one() -> None:
    layer, x = layer_of(), torch.randn(3, D)
    adapted, base = layer(x), layer.base_layer(x)
    layer.enable_adapters(False)
    assert torch.equal(layer(x), base)
    layer.enable_adapters(True)
    layer.update_layer("second", RANK, lora_alpha=8, config=PeftLoraConfig(r=RANK, lora_alpha=8))
    nn.init.normal_(layer.lora_B["second"].weight, std=0.1)
    layer.set_adapter(["default", "second"])
    both = peft(layer, x)
    assert torch.allclose(layer(x), both, atol=1e-6)  # by peft: the second came later
    lean(nn.Sequential(layer))
    assert torch.allclose(layer(x), both, atol=1e-6)
    layer.set_adapter("default")
    assert torch.equal(layer(x), adapted)
    layer.merge()
    assert torch.allclose(layer(x), adapted, atol=1e-5)
    layer.unmerge()
    assert torch.allclose(layer(x), adapted, atol=1e-5)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_bias": True}])
def test_variants_are_left_to_peft(settings: dict[str, Any]) -> None:
    layer, x = layer_of(bias=True, **settings), torch.randn(3, D)
    assert type(layer) is Linear
    assert torch.equal(layer(x), peft(layer, x))


def test_dropout_falls_on_the_adapters_input_alone() -> None:
    layer, x = layer_of(lora_dropout=0.5).train(), torch.randn(1000, D)
    torch.manual_seed(1)
    ours = layer(x)
    torch.manual_seed(1)
    assert torch.allclose(ours, peft(layer, x), atol=1e-6)
    kept = layer.lora_dropout["default"]
    torch.manual_seed(1)
    W, A, B = (w.float() for w in parts(layer))
    assert torch.allclose(ours, x @ W.T + 6 / RANK * kept(x) @ A.T @ B.T, atol=1e-5)
    assert torch.equal(layer.eval()(x), layer(x))


@contextmanager
def dtypes_seen(model: nn.Module, name: str) -> Iterator[list[torch.dtype]]:
    seen: list[torch.dtype] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    yield seen
    handle.remove()


def test_a_models_adapters_keep_their_names_and_are_called(tokenizer: Any) -> None:
    """By the modules' own calls, which engines that shard or offload weights hang on."""
    plain = get_peft_model(llada(tokenizer).bfloat16(), PeftLoraConfig(r=4, target_modules=["q_proj"]))
    model = add_adapter(llada(tokenizer).bfloat16(), LoraConfig(rank=4, targets=("q_proj",)), base_name="x")
    assert model.state_dict().keys() == plain.state_dict().keys()
    inside = "base_model.model.model.layers.1.self_attn.q_proj"
    with dtypes_seen(model, f"{inside}.lora_A.default") as down, dtypes_seen(model, f"{inside}.lora_B.default") as up:
        copy.deepcopy(model)(input_ids=torch.full((1, 5), 70))
        model(input_ids=torch.full((1, 5), 70))
    assert down == up == [torch.bfloat16] * 2


def test_adapters_can_still_be_offloaded_and_told_not_to_cast(tokenizer: Any) -> None:
    model = add_adapter(llada(tokenizer), LoraConfig(rank=4, dropout=0.0), base_name="x").eval()
    ids = torch.full((1, 5), 70)
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with disable_input_dtype_casting(model):
            assert torch.equal(model(input_ids=ids).logits, plain)
        accelerate.cpu_offload(model, execution_device="cpu")
        assert torch.equal(model(input_ids=ids).logits, plain)


def small_change(dtype: torch.dtype, tokenizer: Any, size: float) -> tuple[Any, float]:
    """A merged model of weights 1.0 whose change is `size` everywhere, and what is said to be lost of it."""
    model = add_adapter(llada(tokenizer).to(dtype), LoraConfig(rank=1, alpha=1, targets=("q_proj",)), base_name="x")
    for name, parameter in model.named_parameters():
        if "q_proj" in name:
            nn.init.constant_(parameter, {"A": 1.0, "B": size}.get(name.partition("lora_")[2][:1], 1.0))
    merged, lost = merged_and_lost(model)
    return merged.model.layers[0].self_attn.q_proj.weight, lost


@pytest.mark.parametrize(
    ("size", "kept"), [(2**-9, 0.0), (2**-8, 0.0), (3 * 2**-9, 2**-7), (3 * 2**-8, 2**-6), (1.0, 1.0)]
)
def test_what_rounding_takes_of_a_merged_change(size: float, kept: float, tokenizer: Any) -> None:
    """bfloat16's numbers just above 1 are 2⁻⁷ apart; a tie goes to the even one."""
    weight, lost = small_change(torch.bfloat16, tokenizer, size)
    assert (weight == 1 + kept).all()
    assert lost == pytest.approx(abs(kept - size) / size, abs=1e-6)
    weight, lost = small_change(torch.float32, tokenizer, size)
    assert torch.allclose(weight, torch.tensor(1 + size), rtol=1e-6)
    assert lost < 1e-4


def test_layers_whose_adapter_is_not_active_are_merged_as_they_are(tokenizer: Any) -> None:
    model = add_adapter(llada(tokenizer), LoraConfig(rank=2, targets=("q_proj",)), base_name="x")
    model.add_adapter("other", PeftLoraConfig(r=2, target_modules=["v_proj"]))
    nn.init.normal_(model.get_base_model().model.layers[0].self_attn.q_proj.lora_B["default"].weight)
    ids = torch.full((1, 5), 70)
    expected = model.eval()(input_ids=ids).logits
    merged, lost = merged_and_lost(model)
    assert torch.allclose(merged(input_ids=ids).logits, expected, atol=1e-4)
    assert lost < 1e-4


def test_a_merge_that_loses_says_so(tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        model = add_adapter(llada(tokenizer).to(dtype), LoraConfig(rank=2), base_name="x")
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=1e-6)
        merge(model, where="runs/x")
    said = capsys.readouterr().err
    assert said == "runs/x: merged; rounding to bfloat16 took 100 % of the adapter's change; --dtype float32 keeps it\n"
