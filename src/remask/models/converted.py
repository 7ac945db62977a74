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
    config_class = LlamaConfig
    config: Any


class Qwen2ForMaskedLM(Bidirectional, Qwen2ForCausalLM):
    config_class = Qwen2Config
    config: Any


class Qwen3ForMaskedLM(Bidirectional, Qwen3ForCausalLM):
    config_class = Qwen3Config
    config: Any


@strict
class A2DLlamaConfig(OfficialKeys, LlamaConfig):
    model_type = "a2d-llama"
    is_causal: bool = False


@strict
class A2DQwen2Config(OfficialKeys, Qwen2Config):
    model_type = "a2d-qwen2"
    is_causal: bool = False


@strict
class A2DQwen3Config(OfficialKeys, Qwen3Config):
    model_type = "a2d-qwen3"
    is_causal: bool = False


class A2DLlamaLMHeadModel(LlamaForMaskedLM):
    config_class = A2DLlamaConfig


class A2DQwen2LMHeadModel(Qwen2ForMaskedLM):
    config_class = A2DQwen2Config


class A2DQwen3LMHeadModel(Qwen3ForMaskedLM):
    config_class = A2DQwen3Config


CONVERTED = (LlamaForMaskedLM, Qwen2ForMaskedLM, Qwen3ForMaskedLM)
"""Classes of the model types that are causal unless their config says otherwise."""
A2D = (A2DLlamaLMHeadModel, A2DQwen2LMHeadModel, A2DQwen3LMHeadModel)
