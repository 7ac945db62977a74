"""Which class loads which model type."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModelForMaskedLM
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from remask.models.block_families import BLOCK_MODELS, register_weight_names
from remask.models.converted import A2D, CONVERTED
from remask.models.dream import DreamConfig, DreamModel
from remask.models.encoders import ENCODERS
from remask.models.llada import RENAMINGS, LLaDAConfig, LLaDAModelLM
from remask.models.llada_moe import LLaDAMoEConfig, LLaDAMoEModelLM

NATIVE: tuple[tuple[Any, Any], ...] = (
    (LLaDAConfig, LLaDAModelLM),
    (LLaDAMoEConfig, LLaDAMoEModelLM),
    (DreamConfig, DreamModel),
    *BLOCK_MODELS,
    *((model.config_class, model) for model in A2D),
)
"""The model types that are diffusion models whatever their config says."""

UNREAD = {
    "diffusion_gemma": "a DiffusionGemma: it replaces tokens by others where Remask masks them, and reads the clean "
    "text and the canvas in two parts of the model",
    "NemotronLabsDiffusionModel": "a Nemotron-Labs-Diffusion model: its clean tokens attend from left to right inside "
    "a block, and its noised ones to the whole of it, which Remask does not compute",
}
"""The types of diffusion models that are known but not read, and why."""


def register() -> None:
    """Register the layouts with `AutoConfig` and `AutoModelForMaskedLM`. This is called once, when `remask.models` is
    imported.
    """
    for config, model in NATIVE:
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForMaskedLM.register(config, model, exist_ok=True)
    for model in CONVERTED:
        AutoModelForMaskedLM.register(model.config_class, model, exist_ok=True)
    renamings = [WeightRenaming(source_patterns=s, target_patterns=t) for s, t in RENAMINGS]
    register_weight_names()
    register_checkpoint_conversion_mapping("llada", renamings, overwrite=True)
    register_checkpoint_conversion_mapping("llada_moe", get_checkpoint_conversion_mapping("qwen3_moe"), overwrite=True)


def model_class(config: Any) -> type | None:
    """Return the diffusion class of a config, or None where there is none, or where the model is still causal."""
    kind = type(config)
    for model in CONVERTED:
        if kind is model.config_class:
            return model if getattr(config, "is_causal", True) is False else None
    return dict(NATIVE).get(kind) or ENCODERS.get(kind)


def is_convertible(config: Any) -> bool:
    """Return whether a config is of a causal model that `remask convert --to-diffusion` can convert."""
    return type(config) in {model.config_class for model in CONVERTED}


def convertible_types() -> list[str]:
    """Return the model types that `remask convert --to-diffusion` can convert."""
    return [model.config_class.model_type for model in CONVERTED]


def known_types() -> list[str]:
    """Return the model types that Remask can load."""
    return [config.model_type for config, _ in NATIVE] + [kind.model_type for kind in ENCODERS]
