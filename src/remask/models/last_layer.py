"""The last layer's feed-forward part, computed only for tokens whose outputs are asked for.

After the last layer's attention no token looks at another: what stands at places without a loss, an entropy or a
proposal would be computed and thrown away.

Shapes: B rows, L length, N chosen tokens, D width.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from remask.models.patches import Mixin, applies, derive

PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
"""The names of the parts of the layers in transformers' Llama, Qwen2, Qwen3 and their mixtures of experts."""


def narrow(layer: nn.Module) -> bool:
    """Make a layer take `outputs_at`. Return false for a layer that is not built of `PARTS`, or is to be left
    as it is.
    """
    if set(dict(layer.named_children())) != PARTS or not applies("last-layer"):
        return False
    derive("last-layer", layer, NarrowLayer)
    return True


class NarrowLayer(Mixin):
    """A mixin that stands before a layer's class."""

    def forward(
        self, hidden_states: Float[Tensor, "B L D"], outputs_at: Int[Tensor, "N"] | None = None, **keywords: Any
    ) -> Float[Tensor, "..."]:
        """Return [1, N, D] at those tokens, counted through the rows, or [B, L, D] where none are named."""
        if outputs_at is None:
            whole: Tensor = super().forward(hidden_states, **keywords)
            return whole
        parts: Any = self
        attended, _ = parts.self_attn(hidden_states=parts.input_layernorm(hidden_states), **keywords)
        chosen: Tensor = (hidden_states + attended).flatten(0, 1)[outputs_at][None]
        return chosen + parts.mlp(parts.post_attention_layernorm(chosen))
