"""LLaDA-MoE, natively: transformers' Qwen3-MoE, made bidirectional.

LLaDA-MoE (arXiv 2509.24389) has Qwen3-MoE's layers and weight names: RMS norms on each head's queries and keys, a
softmax router whose top-k weights are not renormalised, SwiGLU experts. Only some config keys have other names. What
its config allows and no published checkpoint uses (shared experts, expert biases, grouped routing) is refused.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from remask.errors import UserError
from remask.models.bidirectional import Bidirectional, OfficialKeys

FIXED_SETTINGS: dict[str, tuple[Any, ...]] = {
    "clip_qkv": (None,),
    "moe_router_enable_expert_bias": (False, None),
    "moe_router_score_function": ("softmax", None),
    "partial_rotary_factor": (1, 1.0, None),
    "qk_layernorm": (True,),
    "routed_scaling_factor": (1, 1.0, None),
    "router_num_group": (None,),
    "router_topk_group": (None,),
    "shared_expert_intermediate_size": (None,),
}
"""The settings of the official config that change the computation, and the values this class computes."""


@strict
class LLaDAMoEConfig(OfficialKeys, Qwen3MoeConfig):
    """The config of LLaDA-MoE under its official key names.

    Checkpoints on the hub say `model_type: llada` like the dense ones; `published_type` keeps what was said, and it is
    what is saved.
    """

    model_type = "llada_moe"
    attribute_map: ClassVar[dict[str, str]] = {
        "num_local_experts": "num_experts",
        "moe_intermediate_size": "expert_intermediate_size",
        "intermediate_size": "dense_intermediate_size",
    }

    dense_intermediate_size: int = 8192
    expert_intermediate_size: int = 1024
    num_experts: int = 64
    num_hidden_layers: int = 16
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    head_dim: int | None = None
    rms_norm_eps: float = 1e-5
    norm_topk_prob: bool | None = None
    moe_layer_freq: list[int] | None = None
    mask_token_id: int | None = None
    stop_token_ids: list[int] | None = None
    fill: str | None = None
    is_causal: bool = False
    use_cache: bool = False
    published_type: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for key, allowed in FIXED_SETTINGS.items():
            if key in kwargs and kwargs[key] not in allowed:
                raise UserError(
                    f"the LLaDA-MoE config sets {key}={kwargs[key]!r}, which no published checkpoint does",
                    mend=f"Remask computes {key}={allowed[0]!r} only",
                )
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        if self.moe_layer_freq is not None:
            self.mlp_only_layers = [i for i, sparse in enumerate(self.moe_layer_freq) if not sparse]
        super().__post_init__(**kwargs)

    def to_diff_dict(self) -> dict[str, Any]:
        values = super().to_diff_dict()
        values["model_type"] = values.pop("published_type", None) or self.model_type
        return values


class LLaDAMoEModelLM(Bidirectional, Qwen3MoeForCausalLM):
    """A bidirectional mixture of experts. Its experts are trained by the token losses alone: no auxiliary balancing
    loss is added.
    """

    config_class = LLaDAMoEConfig
    config: Any

    def __init__(self, config: LLaDAMoEConfig) -> None:
        super().__init__(config)
        self.register_load_state_dict_pre_hook(_stack_experts)


EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


def _stack_experts(module: Any, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Let `load_state_dict` read a file's names, where each expert stands alone; in the model they are stacked.

    `from_pretrained` does so by itself; a trainer that resumes hands over the file's tensors, and names that it does
    not know would be passed over in silence.
    """
    found: dict[str, dict[str, dict[int, Tensor]]] = {}
    for name in list(state_dict):
        if match := EXPERT.fullmatch(name):
            found.setdefault(match[1], {}).setdefault(match[3], {})[int(match[2])] = state_dict.pop(name)
    for place, kinds in found.items():
        gate, up, down = (torch.stack([kinds[kind][i] for i in sorted(kinds[kind])]) for kind in ("gate", "up", "down"))
        state_dict[f"{place}.gate_up_proj"] = torch.cat([gate, up], dim=1)
        state_dict[f"{place}.down_proj"] = down
