"""Causal models made into diffusion models: the Llama, Qwen2 and Qwen3 families.

A converted checkpoint keeps its model type, weight names and tokenizer; its config says `is_causal: false`, which
transformers' own classes obey too, names a `mask_token_id`, and says whether outputs are shifted. Checkpoints of the
`a2d-*` model types (converted by dllm) are of the same make and load as they are.
"""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from remask.models.bidirectional import Bidirectional, OfficialKeys


class LlamaForMaskedLM(Bidirectional, LlamaForCausalLM):
    """A Llama that attends in both directions."""

    config_class = LlamaConfig
    config: Any


class Qwen2ForMaskedLM(Bidirectional, Qwen2ForCausalLM):
    """A Qwen2 that attends in both directions."""

    config_class = Qwen2Config
    config: Any


class Qwen3ForMaskedLM(Bidirectional, Qwen3ForCausalLM):
    """A Qwen3 that attends in both directions."""

    config_class = Qwen3Config
    config: Any


@strict
class A2DLlamaConfig(OfficialKeys, LlamaConfig):
    """The config of a converted Llama under the model type `a2d-llama`."""

    model_type = "a2d-llama"
    is_causal: bool = False


@strict
class A2DQwen2Config(OfficialKeys, Qwen2Config):
    """The config of a converted Qwen2 under the model type `a2d-qwen2`."""

    model_type = "a2d-qwen2"
    is_causal: bool = False


@strict
class A2DQwen3Config(OfficialKeys, Qwen3Config):
    """The config of a converted Qwen3 under the model type `a2d-qwen3`."""

    model_type = "a2d-qwen3"
    is_causal: bool = False


class A2DLlamaLMHeadModel(LlamaForMaskedLM):
    """A converted Llama of the model type `a2d-llama`."""

    config_class = A2DLlamaConfig


class A2DQwen2LMHeadModel(Qwen2ForMaskedLM):
    """A converted Qwen2 of the model type `a2d-qwen2`."""

    config_class = A2DQwen2Config


class A2DQwen3LMHeadModel(Qwen3ForMaskedLM):
    """A converted Qwen3 of the model type `a2d-qwen3`."""

    config_class = A2DQwen3Config


CONVERTED = (LlamaForMaskedLM, Qwen2ForMaskedLM, Qwen3ForMaskedLM)
"""The classes of the model types that are causal unless their config says otherwise."""
A2D = (A2DLlamaLMHeadModel, A2DQwen2LMHeadModel, A2DQwen3LMHeadModel)
