"""What of an engine's settings would lose work is refused before it starts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import Trainer

from remask.config import EngineConfig
from remask.errors import UserError
from remask.training.arguments import training_arguments
from remask.training.reference import Reference
from remask.training.sharding import refuse_to_lose_the_model, settle_ddp


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


def test_ddp_keeps_gradients_once(tmp_path: Path) -> None:
    engine = EngineConfig(report_to=("none",))
    trainer = Trainer(nn.Linear(2, 2), training_arguments(engine, tmp_path, device="cpu", seed=0, evaluates=False))
    settle_ddp(trainer)
    assert trainer.accelerator.ddp_handler.to_kwargs()["gradient_as_bucket_view"] is True


@pytest.mark.parametrize(
    ("used", "extra", "at_once"), [("true", {}, True), ("false", {}, False), ("true", "own", False)]
)
def test_gradients_of_sharded_weights_are_shared_out_after_each_micro_batch(
    used: str, extra: Any, at_once: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers' loop asks its accelerator; unless the accelerator is configured otherwise."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", used)
    engine = EngineConfig(report_to=("none",), extra={"accelerator_config": {"even_batches": True}} if extra else {})
    arguments = training_arguments(engine, tmp_path, device="cpu", seed=0, evaluates=False)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    trainer = Trainer(nn.Linear(1, 1), arguments)
    assert trainer.accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False) == at_once
