"""LLaDA, natively: transformers' Llama, made bidirectional, reading and writing LLaDA's own checkpoint layout.

A LLaDA block (arXiv 2502.09992) is a Llama block without the causal mask. Renaming its weights into transformers' class
gives equal logits (tests/unit/test_golden.py), so attention kernels, FSDP plans, gradient checkpointing, quantisation
and LoRA names all come from transformers. Saving renames back: the official code still reads what is saved here.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedConfig

from remask.errors import UserError
from remask.models.bidirectional import Bidirectional, OfficialKeys

# What of the official config changes the computation, and the only value this class computes.
FIXED_SETTINGS: dict[str, Any] = {
    "activation_type": "silu",
    "alibi": False,
    "attention_layer_norm": False,
    "block_type": "llama",
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "rope": True,
    "scale_logits": False,
}


@strict
class LLaDAConfig(OfficialKeys, PreTrainedConfig):
    """The config of LLaDA under its official key names; transformers reads them through `attribute_map`.

    `fill` and `stop_token_ids` are Remask's additions: how far an answer is extended with EOS (docs/theory.md §6) and
    which tokens besides `eos_token_id` end a text.
    """

    model_type = "llada"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "intermediate_size": "mlp_hidden_size",
        "max_position_embeddings": "max_sequence_length",
        "tie_word_embeddings": "weight_tying",
        "initializer_range": "init_std",
    }
    base_model_tp_plan: ClassVar[dict[str, Any] | None] = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }

    vocab_size: int = 126464
    embedding_size: int | None = None
    d_model: int = 4096
    n_layers: int = 32
    n_heads: int = 32
    n_kv_heads: int | None = None
    mlp_hidden_size: int | None = 12288
    mlp_ratio: int = 4
    max_sequence_length: int = 4096
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    rope_parameters: dict[str, Any] | None = None
    weight_tying: bool = False
    init_std: float = 0.02
    attention_dropout: int | float | None = 0.0
    mask_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    stop_token_ids: list[int] | None = None
    fill: str | None = None
    use_cache: bool = False
    # What Llama's modules read and LLaDA never varies.
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    head_dim: int | None = None
    is_causal: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if kwargs.get("num_experts"):
            raise UserError("a LLaDA-MoE config under model type llada", mend="load it with remask.load")
        for key, needed in FIXED_SETTINGS.items():
            if key in kwargs and kwargs[key] is not None and kwargs[key] != needed:
                raise UserError(
                    f"the LLaDA config sets {key}={kwargs[key]!r}, which no published checkpoint does",
                    mend=f"Remask computes {key}={needed!r} only",
                )
        self.embedding_size = self.embedding_size or self.vocab_size
        self.vocab_size = self.embedding_size
        self.n_kv_heads = self.n_kv_heads or (1 if kwargs.get("multi_query_attention") else self.n_heads)
        self.mlp_hidden_size = self.mlp_hidden_size or self.mlp_ratio * self.d_model
        self.head_dim = self.head_dim or self.d_model // self.n_heads
        super().__post_init__(**kwargs)


RENAMINGS = [
    (r"model\.transformer\.wte\.", "model.embed_tokens."),
    (r"model\.transformer\.blocks\.(\d+)\.q_proj\.", r"model.layers.\1.self_attn.q_proj."),
    (r"model\.transformer\.blocks\.(\d+)\.k_proj\.", r"model.layers.\1.self_attn.k_proj."),
    (r"model\.transformer\.blocks\.(\d+)\.v_proj\.", r"model.layers.\1.self_attn.v_proj."),
    (r"model\.transformer\.blocks\.(\d+)\.attn_out\.", r"model.layers.\1.self_attn.o_proj."),
    (r"model\.transformer\.blocks\.(\d+)\.ff_proj\.", r"model.layers.\1.mlp.gate_proj."),
    (r"model\.transformer\.blocks\.(\d+)\.up_proj\.", r"model.layers.\1.mlp.up_proj."),
    (r"model\.transformer\.blocks\.(\d+)\.ff_out\.", r"model.layers.\1.mlp.down_proj."),
    (r"model\.transformer\.blocks\.(\d+)\.attn_norm\.", r"model.layers.\1.input_layernorm."),
    (r"model\.transformer\.blocks\.(\d+)\.ff_norm\.", r"model.layers.\1.post_attention_layernorm."),
    (r"model\.transformer\.ln_f\.", "model.norm."),
    (r"model\.transformer\.ff_out\.", "lm_head."),
]


def native_name(official: str) -> str:
    """Return a weight's name in this class, from its name in LLaDA's official files."""
    for pattern, native in RENAMINGS:
        official = re.sub(f"^{pattern}", native, official)
    return official


def _rename_official(module: Any, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Let `load_state_dict` read the official names too.

    `from_pretrained` renames by itself; a trainer that resumes hands the saved file's tensors to `load_state_dict`,
    where unknown names would be passed over in silence.
    """
    for name in [name for name in state_dict if name.startswith(f"{prefix}model.transformer.")]:
        state_dict[prefix + native_name(name.removeprefix(prefix))] = state_dict.pop(name)


class LLaDAModelLM(Bidirectional, LlamaForCausalLM):
    """A bidirectional Llama that predicts the token standing at each position.

    The class carries the official name, so a saved `config.json` names an architecture that other tools know.
    """

    config_class = LLaDAConfig
    config: Any

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__(config)
        self.register_load_state_dict_pre_hook(_rename_official)
