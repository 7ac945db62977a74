"""BERT-style encoders as diffusion models: they predict masked tokens already; only `positions` is added.

Loaded by `remask.load` alone: what transformers' `AutoModelForMaskedLM` gives for these types is left as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM

from remask.diffusion.head import Look
from remask.models.bidirectional import counted_positions
from remask.models.prediction import Prediction, predicted


class Encoder:
    """A mixin before an encoder's class: it calls its base model, then the head where logits are asked for."""

    base_model: Any
    if TYPE_CHECKING:

        def get_output_embeddings(self) -> Any: ...

    def before_head(self, hidden: Tensor) -> Tensor:
        """Turn hidden states [..., D] into what the output matrix is applied to."""
        raise NotImplementedError

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        positions: Tensor | None = None,
        targets: Tensor | None = None,
        weights: Tensor | None = None,
        look: Look | None = None,
        clean: Tensor | None = None,
        answer: Tensor | None = None,
        **kwargs: Any,
    ) -> Prediction:
        """Return logits as `Bidirectional.forward` gives them: every token attends to every other, clean rows are not
        read.
        """
        hidden = self.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=counted_positions(attention_mask) if position_ids is None else position_ids,
            **kwargs,
        ).last_hidden_state
        hidden = self.before_head(hidden if positions is None else hidden[positions])
        return predicted(self.get_output_embeddings(), hidden, targets, weights, look)


class DiffusionBert(Encoder, BertForMaskedLM):
    """A BERT with learned absolute positions, counted from each row's first attended token."""

    def before_head(self, hidden: Tensor) -> Tensor:
        return self.cls.predictions.transform(hidden)


class DiffusionModernBert(Encoder, ModernBertForMaskedLM):
    """A ModernBERT that predicts the token standing at each position."""

    def before_head(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)


ENCODERS: dict[Any, Any] = {BertConfig: DiffusionBert, ModernBertConfig: DiffusionModernBert}
