"""The config of DiffusionGemma, which has the sizes of its text in a part of its own."""

from __future__ import annotations

from typing import Any

from transformers import DiffusionGemmaConfig as PublishedConfig

from remask.errors import UserError

EXPERTS = ("num_experts", "top_k_experts", "moe_intermediate_size")
"""The sizes of the experts that a config must have: transformers has no default of them."""


class DiffusionGemmaConfig(PublishedConfig):
    """The published config. The sizes that Remask asks a config for stand in its `text_config`."""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        text: Any = self.text_config
        if lacking := [name for name in EXPERTS if not getattr(text, name)]:
            raise UserError(
                f"config.json lacks {', '.join(lacking)} in text_config", mend="take the whole config of the checkpoint"
            )
        if text.use_bidirectional_attention == "all":
            raise UserError(
                "the DiffusionGemma config sets use_bidirectional_attention='all', which no published checkpoint does",
                mend="Remask computes a causal encoder only",
            )

    @property
    def corruption(self) -> str:
        """Return how texts are noised: tokens are replaced by uniform ones."""
        return "uniform"

    @property
    def mask_token_id(self) -> None:
        """Return none: nothing is masked."""
        return None

    @property
    def attention(self) -> str:
        """Return the canvases as blocks that begin with the answer. The clean tokens of one attend from left to
        right, which `Attention` does not say.
        """
        return f"block:{self.canvas_length}:answer"

    @attention.setter
    def attention(self, text: str) -> None:
        if text != self.attention:
            raise UserError(
                f"attention {text}, and a DiffusionGemma reads canvases of {self.canvas_length} tokens",
                mend="leave --model-attention out",
            )

    @property
    def eos_token_id(self) -> Any:
        """Return what ends a text: the file's own `eos_token_id`, or that of its `text_config`."""
        stated = getattr(self, "stated_eos", None)
        return self._text.eos_token_id if stated is None else stated

    @eos_token_id.setter
    def eos_token_id(self, value: Any) -> None:
        if value is not None:
            self.stated_eos = value

    def to_dict(self) -> dict[str, Any]:
        """Return the values to save, under the keys that they came with."""
        values = super().to_dict()
        return {"eos_token_id" if key == "stated_eos" else key: value for key, value in values.items()}

    @property
    def vocab_size(self) -> int:
        """Return the number of tokens."""
        return int(self._text.vocab_size)

    @property
    def hidden_size(self) -> int:
        """Return the width of hidden states."""
        return int(self._text.hidden_size)

    @property
    def num_hidden_layers(self) -> int:
        """Return the number of the decoder's layers; the encoder has as many."""
        return int(self._text.num_hidden_layers)

    @property
    def num_attention_heads(self) -> int:
        """Return the number of heads; their size differs between layers."""
        return int(self._text.num_attention_heads)

    @property
    def max_position_embeddings(self) -> int:
        """Return the positions of prompt and answer together."""
        return int(self._text.max_position_embeddings)

    @property
    def _text(self) -> Any:
        return self.text_config
