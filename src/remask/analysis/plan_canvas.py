"""A training step of a model with an encoder and a decoder (DiffusionGemma), as a plan counts it.

Each row is read by the encoder, one canvas of it by the decoder, and, in half of the rows, once more without gradient
to condition it on. The canvas is taken to be the row's last one: no other looks at more. All rows are taken to be
conditioned for memory, half of them for arithmetic; experts are taken to be chosen alike often.

Shapes: B rows, L length, C tokens of a canvas, T tokens, k experts a token, E experts, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from remask.diffusion.capped import capped_losses
from remask.diffusion.token_loss import chunk_rows
from remask.errors import UserError
from remask.models.patches import Mixin, derive

CONDITIONED = 0.5
"""The share of rows that are read twice."""


class EvenExperts(Mixin):
    """A mixin before a module of experts without contents: each expert has as many tokens as the others."""

    def forward(
        self, hidden_states: Float[Tensor, "T D"], top_k_index: Int[Tensor, "T k"], top_k_weights: Float[Tensor, "T k"]
    ) -> Float[Tensor, "T D"]:
        experts: Any = self
        T, k = top_k_index.shape
        each = -(-T * k // experts.num_experts)
        rows = hidden_states.repeat_interleave(k, dim=0)
        of_each = pad(rows, (0, 0, 0, each * experts.num_experts - T * k)).view(experts.num_experts, each, -1)
        gate, up = (of_each @ experts.gate_up_proj.transpose(1, 2)).chunk(2, dim=-1)
        out = (experts.act_fn(gate) * up) @ experts.down_proj.transpose(1, 2)
        weighed = out.flatten(0, 1)[: T * k] * top_k_weights.reshape(-1, 1).to(out.dtype)
        return weighed.view(T, k, -1).sum(1)


def prepared(model: Any, *, sharded: bool) -> bool:
    """Return whether a model is of this kind; its experts compute alike then. Raises UserError where weights were to
    be sharded.
    """
    if not hasattr(model, "empty_prefix"):
        return False
    if sharded:
        raise UserError(
            "encoder and decoder share their weights, which are not sharded", mend="use --strategy ddp, and adapters"
        )
    with_even_experts(model)
    return True


def with_even_experts(model: nn.Module) -> None:
    """Make a model's experts compute alike whatever the router says."""
    for module in model.modules():
        if {"gate_up_proj", "down_proj"} <= set(dict(module.named_parameters(recurse=False))):
            derive("planned-experts", module, EvenExperts)


def step_loss(model: Any, ids: Int[Tensor, "B L"]) -> Tensor:
    """Return the loss of a step: that of the whole canvas and that of every next token."""
    (B, L), C = ids.shape, min(model.config.canvas_length, ids.shape[1])
    attended = torch.ones_like(ids, dtype=torch.bool)
    prefix = model.empty_prefix().whole()
    by_encoder = model.read(ids, attended, prefix)
    start = torch.full((B, 1), L - C)
    places = start + torch.arange(C)
    masks = prefix.masks_before(start, torch.ones(B, C, dtype=torch.bool))
    signal = model.conditioning(ids[:, L - C :], prefix, masks, places, torch.arange(B))
    hidden = model.refined(ids[:, L - C :], prefix, signal, masks, places)
    head = model.capped()
    diffusion = capped_losses(head, hidden.flatten(0, 1), torch.zeros(B * C, dtype=torch.long))
    encoder = capped_losses(head, by_encoder[:, :-1].flatten(0, 1), torch.zeros(B * (L - 1), dtype=torch.long))
    return diffusion.sum() + encoder.sum()


def step_flops(model: Any, rows: int, length: int, *, frozen: bool, again: bool) -> float:
    """Return the operations of a step: two a weight that is used and token, four a key, query and channel of attention;
    twice as many in the backward pass, or as many where weights are frozen (attention always twice), and the layers
    once more with checkpointing. Logits are formed once more in the backward pass where they are formed in parts.
    """
    C = min(model.config.canvas_length, length)
    text, layers = model.config.text_config, model.model.decoder.layers
    used = sum(_used(layer, text) for layer in layers)
    attention = {"encoder": 0.0, "decoder": 0.0}
    for layer, kind in zip(layers, text.layer_types, strict=True):
        seen = min(length, text.sliding_window) if kind == "sliding_attention" else length
        width = text.num_attention_heads * layer.self_attn.head_dim
        attention["encoder"] += 4.0 * rows * length * seen * width
        attention["decoder"] += 4.0 * rows * C * min(length, seen + C) * width
    conditioning = sum(p.numel() for p in model.model.decoder.self_conditioning.parameters() if p.dim() == 2)
    encoder = 2.0 * rows * length * used + attention["encoder"]
    decoder = 2.0 * rows * C * (used + conditioning) + attention["decoder"]
    head = 2.0 * model.lm_head.weight.numel()
    heads = head * rows * (C + length - 1)
    first = CONDITIONED * (decoder + 2 * head * rows * C)  # its logits, and what embeddings they make
    forward = encoder + decoder + heads
    backward = forward + (sum(attention.values()) if frozen else forward)
    parts = rows * max(C, length - 1) > chunk_rows(model.lm_head.out_features)
    return first + forward + backward + (heads if parts else 0.0) + (encoder + decoder if again else 0.0)


def _used(layer: nn.Module, text: Any) -> float:
    """The weights of a layer's matrices that a token is multiplied with, without adapters'."""
    named = [(name, p) for name, p in layer.named_parameters() if "lora_" not in name]
    dense = sum(p.numel() for _, p in named if p.dim() == 2)
    return dense + sum(p.numel() for _, p in named if p.dim() == 3) * text.top_k_experts / text.num_experts
