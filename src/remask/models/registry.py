"""Which class loads which model type."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModelForMaskedLM
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from remask.errors import UserError
from remask.models.block_families import BLOCK_MODELS, register_weight_names
from remask.models.converted import A2D, CONVERTED
from remask.models.diffusion_gemma import DiffusionGemmaForBlockDiffusion
from remask.models.diffusion_gemma_config import DiffusionGemmaConfig
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
    "NemotronLabsDiffusionModel": "a Nemotron-Labs-Diffusion model: its clean tokens attend from left to right inside "
    "a block, and its noised ones to the whole of it, which Remask does not compute",
}
"""The types of diffusion models that are known but not read, and why."""

CANVAS_MODELS: dict[Any, Any] = {DiffusionGemmaConfig: DiffusionGemmaForBlockDiffusion}
"""The classes of models that replace tokens by others instead of masking them. They are loaded by `remask.load` alone:
what transformers' auto classes give for these types is left as it is.
"""

LLADA_TYPES = ("llada", "lladamoe", "llada_moe")
"""The model types that LLaDA-MoE checkpoints give; those with experts are read as LLaDA-MoE."""


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
    return dict(NATIVE).get(kind) or ENCODERS.get(kind) or CANVAS_MODELS.get(kind)


def class_to_load(config: Any, folder: str) -> Any:
    """Return the diffusion class of a checkpoint's config. Raises UserError where there is none."""
    kind = model_class(config)
    if kind is None and is_convertible(config):
        raise UserError(
            f"a causal model (model type {config.model_type}), not a diffusion language model",
            where=folder,
            mend=f"make it one: remask convert --to-diffusion {folder} --output FOLDER",
        )
    if kind is None:
        raise UserError(
            f"model type {config.model_type!r} is not a diffusion language model Remask knows",
            where=folder,
            mend=f"these load: {', '.join(known_types())}, and what `remask convert --to-diffusion` makes",
        )
    return kind


def own_config(values: dict[str, Any]) -> Any | None:
    """Return the config of a checkpoint that `AutoConfig` would read otherwise, from what its config.json says; None
    for all others.
    """
    kind = values.get("model_type")
    if kind == DiffusionGemmaConfig.model_type:
        return DiffusionGemmaConfig.from_dict(values)
    if values.get("num_experts") and kind in LLADA_TYPES:
        published = kind if kind != LLaDAMoEConfig.model_type else None
        return LLaDAMoEConfig.from_dict({**values, "model_type": "llada_moe", "published_type": published})
    return None


def refuse_quantised(config: Any, where: str) -> None:
    """Raises UserError for a model that is not loaded in 4 or 8 bits."""
    if type(config) in CANVAS_MODELS:
        raise UserError(
            f"a {config.model_type} is not quantised: most of its weights are experts, no layers that bitsandbytes has",
            where=where,
            mend="use --dtype bfloat16",
        )


def is_convertible(config: Any) -> bool:
    """Return whether a config is of a causal model that `remask convert --to-diffusion` can convert."""
    return type(config) in {model.config_class for model in CONVERTED}


def convertible_types() -> list[str]:
    """Return the model types that `remask convert --to-diffusion` can convert."""
    return [model.config_class.model_type for model in CONVERTED]


def known_types() -> list[str]:
    """Return the model types that Remask can load."""
    return [kind.model_type for kind in (*dict(NATIVE), *ENCODERS, *CANVAS_MODELS)]
