"""BERT-style encoders as diffusion models: they predict masked tokens already; only `positions` is added.

Loaded by `remask.load` alone: what transformers' `AutoModelForMaskedLM` gives for these types is left as it is.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM
from transformers.modeling_outputs import MaskedLMOutput

from remask.models.bidirectional import counted_positions


class DiffusionBert(BertForMaskedLM):
    """BERT with learned absolute positions, counted from each row's first attended token."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        positions: Tensor | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """As `Bidirectional.forward`."""
        hidden = self.bert(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=counted_positions(attention_mask) if position_ids is None else position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        ).last_hidden_state
        return MaskedLMOutput(logits=self.cls(hidden if positions is None else hidden[positions]))


class DiffusionModernBert(ModernBertForMaskedLM):
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        positions: Tensor | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """As `Bidirectional.forward`."""
        hidden = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=counted_positions(attention_mask) if position_ids is None else position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        ).last_hidden_state
        return MaskedLMOutput(logits=self.decoder(self.head(hidden if positions is None else hidden[positions])))


ENCODERS: dict[Any, Any] = {BertConfig: DiffusionBert, ModernBertConfig: DiffusionModernBert}
