"""Small models of random weights in every layout that loads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from remask.models.converted import A2DQwen3Config, A2DQwen3LMHeadModel
from remask.models.diffusion_gemma import DiffusionGemmaForBlockDiffusion
from remask.models.diffusion_gemma_config import DiffusionGemmaConfig
from remask.models.dream import DreamConfig, DreamModel
from remask.models.encoders import DiffusionBert, DiffusionModernBert
from remask.models.llada import LLaDAConfig, LLaDAModelLM
from remask.models.llada_moe import LLaDAMoEConfig, LLaDAMoEModelLM

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


def seeded(build: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build().eval()
        for parameter in model.parameters():  # wide enough for predictions to differ clearly
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.2)
        return model


def special(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "mask_token_id": tokenizer.mask_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def llada(tokenizer: Any, **changes: Any) -> LLaDAModelLM:
    values = {"d_model": 32, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "mlp_hidden_size": 48, "rope_theta": 5e5}
    return seeded(lambda: LLaDAModelLM(LLaDAConfig(**values, **special(tokenizer), **changes)))


def dream(tokenizer: Any) -> DreamModel:
    return seeded(lambda: DreamModel(DreamConfig(**SIZES, intermediate_size=48, rope_theta=1e6, **special(tokenizer))))


def moe(tokenizer: Any) -> LLaDAMoEModelLM:
    sizes = {"expert_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "rope_theta": 5e4}
    return seeded(lambda: LLaDAMoEModelLM(LLaDAMoEConfig(**SIZES, **sizes, **special(tokenizer))))


def converted(tokenizer: Any) -> A2DQwen3LMHeadModel:
    return seeded(
        lambda: A2DQwen3LMHeadModel(A2DQwen3Config(**SIZES, intermediate_size=48, head_dim=8, **special(tokenizer)))
    )


def bert(tokenizer: Any) -> DiffusionBert:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    return seeded(lambda: DiffusionBert(transformers.BertConfig(**sizes, **special(tokenizer))))


def modernbert(tokenizer: Any) -> DiffusionModernBert:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    return seeded(
        lambda: DiffusionModernBert(
            transformers.ModernBertConfig(
                **sizes, **special(tokenizer), bos_token_id=0, cls_token_id=0, sep_token_id=0, local_attention=16
            )
        )
    )


def gemma(tokenizer: Any, canvas_length: int = 8, **changes: Any) -> DiffusionGemmaForBlockDiffusion:
    """A DiffusionGemma: no member of FAMILIES, whose members mask."""
    tokens = {name: value for name, value in special(tokenizer).items() if name != "mask_token_id"}
    text = {**SIZES, "num_hidden_layers": 3, "intermediate_size": 48, "head_dim": 8, "sliding_window": 8}
    text |= {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "global_head_dim": 16}
    text |= {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16, "max_position_embeddings": 512}
    vision = {"model_type": "gemma4_vision", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8, "position_embedding_size": 16}
    config = DiffusionGemmaConfig(
        text_config={**text, **tokens, **changes}, vision_config=vision, canvas_length=canvas_length
    )
    return seeded(lambda: DiffusionGemmaForBlockDiffusion(config))


FAMILIES = {
    "llada": llada,
    "dream": dream,
    "llada-moe": moe,
    "a2d-qwen3": converted,
    "bert": bert,
    "modernbert": modernbert,
}
every_family = pytest.mark.parametrize("family", FAMILIES)

IDS = torch.tensor([[65, 66, 67, 257, 257, 70, 257], [97, 98, 99, 100, 257, 101, 257]])
"""Two rows of a tokenizer of bytes; 257 is the mask."""
