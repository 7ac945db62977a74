"""The model a run trains: all its weights, or fresh adapters on it."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import prepare_model_for_kbit_training
from peft.utils.constants import EMBEDDING_LAYER_NAMES

from remask.choices import Dtype, Quantization
from remask.config import LoraConfig
from remask.errors import UserError
from remask.models.facts import Facts, facts
from remask.models.load import EMBEDDED, load
from remask.models.lora import add_adapter, merge, note_attention, shares_adapters
from remask.models.patches import exchange
from remask.training.sharding import loaded_whole


def load_trainable(
    name: str,
    *,
    dtype: Dtype,
    quantization: Quantization | None,
    lora: LoraConfig,
    device: torch.device,
    attention: str | None = None,
) -> tuple[Any, Any, Facts]:
    """Return (model, tokenizer, facts), the model on the CPU unless quantised. A LoRA run's model is its merged
    weights.

    Raises UserError where quantised weights would have to be trained.
    """
    if quantization and not lora.rank:
        raise UserError(f"weights of {quantization} cannot be trained", mend="train adapters on them: --lora.rank 16")
    if quantization in ("4bit", "4bit-double") and device.type == "cpu":
        raise UserError(
            "4-bit weights are trained on CUDA only: the CPU kernels of bitsandbytes have no gradient",
            mend="use --quantization 8bit, or none",
        )
    place = str(device) if quantization else "cpu"
    with loaded_whole():
        model, tokenizer = load(name, dtype=dtype, device=place, quantization=quantization, attention=attention)
    if hasattr(model, "merge_and_unload"):
        model = merge(model, where=name)
    return model, tokenizer, facts(model, tokenizer, where=name)


def trainable(model: Any, name: str, *, quantization: Quantization | None, lora: LoraConfig, seed: int) -> Any:
    """Return the model with all weights to train, or with fresh adapters drawn from the seed."""
    if not lora.rank:
        return all_trained(model)
    widest = max(max(m.in_features, m.out_features) for m in model.modules() if isinstance(m, torch.nn.Linear))
    if lora.rank > widest:
        raise UserError(f"lora.rank = {lora.rank}: no layer is wider than {widest}", mend="16 is a usual rank")
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(seed)
        if quantization:
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        return _saved_plainly(add_adapter(model, lora, base_name=_base_name(name)), lora)


def all_trained(model: Any) -> Any:
    """Return the model with all weights to train but those that its family never trains (`frozen_parameters`)."""
    model.requires_grad_(True)
    for parameter in getattr(model, "frozen_parameters", list)():
        parameter.requires_grad_(False)
    return model


def _saved_plainly(model: Any, lora: LoraConfig) -> Any:
    """Saving asks no hub whether the base's vocabulary is as it was, which it is, and leaves the card to the run."""
    of_vocabulary = any(name in EMBEDDING_LAYER_NAMES for name in lora.targets)
    saving = partial(model.save_pretrained, save_embedding_layers=of_vocabulary)

    def saved(folder: str, *arguments: Any, **keywords: Any) -> None:
        saving(folder, *arguments, **keywords)
        note_attention(folder, getattr(model.config, "attention", None), twins=shares_adapters(model))

    exchange("adapter-saving", model, "save_pretrained", saved)
    exchange("adapter-saving", model, "create_or_update_model_card", lambda folder: None)
    return model


def without_dropout(model: Any) -> Any:
    """Switch dropout off in training: a policy's likelihood of the same answer on the same noise is then the same."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    return model


def frozen_copy(model: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of the model that is never trained."""
    return copy.deepcopy(model).requires_grad_(False).eval()


def _base_name(model: str) -> str:
    """What an adapter names as its base: a local folder by its whole path, so that it is found from anywhere."""
    return str(Path(model).resolve()) if model not in EMBEDDED and Path(model).exists() else model
