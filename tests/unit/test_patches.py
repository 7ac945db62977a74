"""What is changed in objects of other libraries is listed, named after what it is, and can be left alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from test_passes import CAUSAL, losses, rows, same
from torch import nn

import remask
from remask.config import LoraConfig
from remask.errors import UserError
from remask.models.lora import add_adapter
from remask.models.patches import PATCHES, SWITCH, Mixin, derive, exchanged

SOURCE = Path(remask.__file__).parent


def changed(model: nn.Module) -> set[str]:
    """The classes of its modules that Remask put together."""
    return {type(module).__name__ for module in model.modules() if isinstance(module, Mixin)}


@pytest.mark.parametrize("name", PATCHES)
def test_a_patch_is_made_in_the_module_that_the_list_names(name: str) -> None:
    patch = PATCHES[name]
    assert re.search(f'["`]{name}["`]', (SOURCE / patch.where).read_text())
    assert patch.what
    assert patch.why


@pytest.mark.parametrize("family", CAUSAL)
def test_all_of_a_models_patches_can_be_left_out(family: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and gradients are then those of plain modules."""
    batch = rows(tokenizer.pad_token_id)

    def built() -> Any:
        torch.manual_seed(0)
        return add_adapter(FAMILIES[family](tokenizer), LoraConfig(rank=2), base_name="x").requires_grad_(True).eval()

    patched = built()
    names = changed(patched)
    assert {name.partition("Of")[0] for name in names} >= {"NarrowLayer", "FusedNorm", "LeanAdapter", "LeanDown"}
    monkeypatch.setenv(SWITCH, "all")
    plain = built()
    assert changed(plain) == set()
    plain.load_state_dict(patched.state_dict())
    same(losses(patched, batch), losses(plain, batch))


def test_one_patch_is_left_out_by_its_name(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "last-layer, gated-product")
    names = {name.partition("Of")[0] for name in changed(FAMILIES["llada"](tokenizer))}
    assert names == {"FusedNorm"}


@pytest.mark.parametrize("name", ["last_layer", "zero3-loading"])
def test_what_is_no_patch_or_is_needed_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, name)
    with pytest.raises(UserError, match=f"{name} cannot be left out.*last-layer"):
        derive("norm", nn.Linear(2, 2), Mixin)


def test_a_derived_class_says_what_it_is_made_of_and_where_it_comes_from() -> None:
    class Doubled(Mixin):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = 2 * super().forward(x)
            return out

    layer, other = nn.Linear(2, 2), nn.Linear(2, 2)
    before = layer(torch.ones(1, 2))
    derive("norm", layer, Doubled)
    derive("norm", layer, Doubled)
    assert torch.equal(layer(torch.ones(1, 2)), 2 * before)
    assert type(layer).__name__ == "DoubledOfLinear"
    assert type(layer).__module__ == __name__
    assert isinstance(layer, nn.Linear)
    assert type(other) is nn.Linear


def test_an_exchanged_method_is_the_classes_again_also_after_an_error() -> None:
    layer = nn.Linear(2, 2)

    def fails(x: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError

    with exchanged("sharded-head", layer, "forward", lambda x: x + 1):
        assert torch.equal(layer(torch.zeros(1)), torch.ones(1))
    with exchanged("sharded-head", layer, "forward", fails), pytest.raises(ZeroDivisionError):
        layer(torch.zeros(1))
    assert "forward" not in vars(layer)
