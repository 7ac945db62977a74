"""Models without weights: published shapes, and any checkpoint's own, to plan with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from remask.errors import UserError
from remask.models.dream import DreamConfig
from remask.models.llada import LLaDAConfig
from remask.models.load import load_config, resolve
from remask.models.registry import known_types, model_class


def _llada_8b() -> Any:
    return LLaDAConfig(d_model=4096, n_layers=32, n_heads=32, mlp_hidden_size=12288, vocab_size=126464)


def _dream_7b() -> Any:
    return DreamConfig(
        hidden_size=3584,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        intermediate_size=18944,
        vocab_size=152064,
    )


PUBLISHED = {"llada-8b": _llada_8b, "dream-7b": _dream_7b}
"""The sizes of published models, from the config.json of GSAI-ML/LLaDA-8B-Base and Dream-org/Dream-v0-Base-7B."""


def shape_config(name: str) -> Any:
    """Return the config of a published shape, of a local folder or GGUF file, or of a hub id.

    Of a hub id nothing but its config is fetched. Raises UserError for what is none of them.
    """
    if name in PUBLISHED:
        return PUBLISHED[name]()
    folder = resolve(name)
    known = f"{', '.join(PUBLISHED)}, a local folder with a config.json, or a hub id (owner/name)"
    if not Path(folder).exists() and "/" not in name:
        raise UserError(f"no shape {name!r}", mend=f"give {known}")
    try:
        return load_config(folder)
    except UserError as error:
        raise UserError(error.what, where=folder, mend=error.mend or f"give {known}") from error


def empty_model(config: Any, dtype: str) -> Any:
    """Return the model of a config, on the device it is called under (the meta device: no memory), in `dtype`."""
    kind = model_class(config)
    if kind is None or not getattr(kind, "keeps_keys_and_values", False):
        raise UserError(
            f"cannot plan a {getattr(config, 'model_type', 'model')}", mend=f"known are {', '.join(known_types())}"
        )
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        return kind(config)
    finally:
        torch.set_default_dtype(before)
