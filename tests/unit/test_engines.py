"""What of an engine's settings would lose work is refused before it starts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from remask.errors import UserError
from remask.rl.reference import Reference
from remask.training.sharding import refuse_to_lose_the_model


def under(stage: int, gathers: bool | None) -> Any:
    zero = (
        {"stage": stage} if gathers is None else {"stage": stage, "stage3_gather_16bit_weights_on_model_save": gathers}
    )
    plugin = SimpleNamespace(deepspeed_config={"zero_optimization": zero})
    return SimpleNamespace(
        is_deepspeed_enabled=True, accelerator=SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin))
    )


@pytest.mark.parametrize("gathers", [None, False])
def test_zero3_that_would_leave_the_model_in_pieces(gathers: bool | None) -> None:
    with pytest.raises(UserError, match="ZeRO-3 would not write the model whole; set zero3_save_16bit_model"):
        refuse_to_lose_the_model(under(3, gathers))


@pytest.mark.parametrize("trainer", [under(3, True), under(2, None), SimpleNamespace(is_deepspeed_enabled=False)])
def test_engines_that_write_it(trainer: Any) -> None:
    refuse_to_lose_the_model(trainer)


def test_a_reference_knows_its_parameters_under_fsdps_checkpointing() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = Reference(model)
    model[0] = checkpoint_wrapper(model[0])
    after = Reference(model)
    assert before.copy is not None
    assert after.copy is not None
    assert list(before.copy) == list(after.copy) == ["0.weight", "0.bias", "1.weight", "1.bias"]
