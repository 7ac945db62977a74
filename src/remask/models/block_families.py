"""Block-diffusion models, natively: SDAR, LLaDA2 and Fast-dLLM v2 on transformers' own classes.

Each writes a text block after block, with any order inside a block, and is a causal family under another mask: SDAR
(arXiv 2510.06303) is Qwen3, LLaDA2.0 and 2.1 (arXiv 2512.15745) are GLM-4-MoE, Fast-dLLM v2 (arXiv 2509.26328) is Qwen2
whose output at i−1 predicts token i. Weights are renamed where the official files name them otherwise, and saving
renames back. Logits equal those of the published code (tests/unit/test_block_models.py).
"""

from __future__ import annotations

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import (
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.core_model_loading import Split, WeightConverter, WeightRenaming

from remask.errors import UserError
from remask.models.bidirectional import Bidirectional, OfficialKeys


@strict
class SDARConfig(OfficialKeys, Qwen3Config):
    """The config of SDAR has Qwen3's keys and the tokens of a block."""

    model_type = "sdar"

    block_size: int = 4
    mask_token_id: int | None = None
    stop_token_ids: list[int] | None = None
    fill: str | None = None
    attention: str | None = None
    is_causal: bool = False
    use_cache: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.attention = self.attention or f"block:{self.block_size}"
        kwargs.pop("attn_implementation", None)  # of the published code: its kernel, with a mask of its own
        super().__post_init__(**kwargs)


class SDARForCausalLM(Bidirectional, Qwen3ForCausalLM):
    """A Qwen3 that attends by blocks. The class carries the official name, as all classes of this module do."""

    config_class = SDARConfig
    config: Any


@strict
class SDARMoeConfig(OfficialKeys, Qwen3MoeConfig):
    """The config of SDAR's mixtures of experts has Qwen3-MoE's keys and the tokens of a block."""

    model_type = "sdar_moe"

    block_size: int = 4
    mask_token_id: int | None = None
    stop_token_ids: list[int] | None = None
    fill: str | None = None
    attention: str | None = None
    is_causal: bool = False
    use_cache: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.attention = self.attention or f"block:{self.block_size}"
        kwargs.pop("attn_implementation", None)
        super().__post_init__(**kwargs)


class SDARMoeForCausalLM(Bidirectional, Qwen3MoeForCausalLM):
    """A Qwen3-MoE that attends by blocks. Experts are trained by the token losses alone: no balancing loss is added."""

    config_class = SDARMoeConfig
    config: Any


@strict
class FastDLLMQwenConfig(OfficialKeys, Qwen2Config):
    """The config of Fast-dLLM v2 has Qwen2's keys and the tokens of a block (`bd_size`). Its mask token stands in its
    code.
    """

    model_type = "Fast_dLLM_Qwen"

    bd_size: int = 32
    mask_token_id: int | None = 151665
    stop_token_ids: list[int] | None = None
    fill: str | None = None
    attention: str | None = None
    shift: bool = True
    is_causal: bool = False
    use_cache: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.attention = self.attention or f"block:{self.bd_size}"
        super().__post_init__(**kwargs)


class Fast_dLLM_QwenForCausalLM(Bidirectional, Qwen2ForCausalLM):  # noqa: N801
    """A Qwen2 that attends by blocks and is shifted."""

    config_class = FastDLLMQwenConfig
    config: Any


LLADA2_SETTINGS: dict[str, tuple[Any, ...]] = {
    "use_bias": (False, None),
    "use_qk_norm": (True,),
    "use_rmsnorm": (True, None),
    "score_function": ("sigmoid", None),
    "norm_head": (False, None),
    "norm_softmax": (False, None),
    "using_split_qkv_in_self_attention": (False, None),
    "moe_router_enable_expert_bias": (True,),
    "embedding_dropout": (0, 0.0, None),
    "output_dropout": (0, 0.0, None),
}
"""The settings of the official config that change the computation, and the values this class computes."""


@strict
class LLaDA2MoeConfig(OfficialKeys, Glm4MoeConfig):
    """The config of LLaDA2 under its official key names. Mask token and EOS stand in its code where the file is silent,
    and so does the block: its sampler's 32.
    """

    model_type = "llada2_moe"
    attribute_map: ClassVar[dict[str, str]] = {
        "n_routed_experts": "num_experts",
        "num_local_experts": "num_experts",
        "n_shared_experts": "num_shared_experts",
        "attention_bias": "use_qkv_bias",
    }

    vocab_size: int = 157184
    num_experts: int = 256
    num_shared_experts: int | None = 1
    use_qkv_bias: bool = False
    use_qk_norm: bool = True
    head_dim: int | None = None
    mask_token_id: int | None = 156895
    eos_token_id: int | list[int] | None = 156892
    stop_token_ids: list[int] | None = None
    fill: str | None = None
    attention: str | None = None
    is_causal: bool = False
    use_cache: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        settings = {"use_qk_norm": self.use_qk_norm, **kwargs}
        for key, allowed in LLADA2_SETTINGS.items():
            if key in settings and settings[key] not in allowed:
                raise UserError(
                    f"the LLaDA2 config sets {key}={settings[key]!r}, which no published checkpoint does",
                    mend=f"Remask computes {key}={allowed[0]!r} only",
                )
        if not self.num_shared_experts:
            raise UserError(
                f"the LLaDA2 config sets num_shared_experts={self.num_shared_experts!r}, which no published checkpoint "
                "does",
                mend="Remask computes models with shared experts only",
            )
        self.norm_topk_prob = self.num_experts_per_tok > 1  # what the published code does, whatever the config says
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        self.attention = self.attention or "block:32"
        super().__post_init__(**kwargs)


class LLaDA2MoeModelLM(Bidirectional, Glm4MoeForCausalLM):
    """A GLM-4-MoE that attends by blocks. Experts are trained by the token losses alone: no balancing loss is added."""

    config_class = LLaDA2MoeConfig
    config: Any


def llada2_mapping() -> list[WeightRenaming | WeightConverter]:
    """Return the mapping from LLaDA2's weight names to GLM-4-MoE's; transformers goes the way back in saving."""
    renamed = (
        (r"model\.word_embeddings\.", "model.embed_tokens."),
        (r"attention\.dense\.", "self_attn.o_proj."),
        (r"attention\.query_layernorm\.", "self_attn.q_norm."),
        (r"attention\.key_layernorm\.", "self_attn.k_norm."),
        (r"gate\.expert_bias", "gate.e_score_correction_bias"),
    )
    parts = [f"self_attn.{name}_proj" for name in "qkv"]
    fused = WeightConverter(
        source_patterns="attention.query_key_value", target_patterns=parts, operations=[Split(dim=0)]
    )
    renamings = [WeightRenaming(source_patterns=source, target_patterns=target) for source, target in renamed]
    return [*renamings, fused, *(get_checkpoint_conversion_mapping("glm4_moe") or [])]


def register_weight_names() -> None:
    """Make transformers know how the weights of these models are named in their files."""
    register_checkpoint_conversion_mapping("llada2_moe", llada2_mapping(), overwrite=True)
    register_checkpoint_conversion_mapping("sdar_moe", get_checkpoint_conversion_mapping("qwen3_moe"), overwrite=True)


BLOCK_MODELS: tuple[tuple[Any, Any], ...] = (
    (SDARConfig, SDARForCausalLM),
    (SDARMoeConfig, SDARMoeForCausalLM),
    (FastDLLMQwenConfig, Fast_dLLM_QwenForCausalLM),
    (LLaDA2MoeConfig, LLaDA2MoeModelLM),
)
