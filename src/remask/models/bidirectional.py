"""What makes a diffusion model of a causal one: attention both ways, aligned logits, logits only where asked for.

A mixin that stands before a causal class of transformers (Llama, Qwen2, Qwen3, …): attention kernels, FSDP plans,
gradient checkpointing, quantisation and LoRA names stay that class's own.

Shapes: B batch, L length, N chosen positions, D width, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from remask.diffusion import attention
from remask.diffusion.attention import BlockCausal, Full
from remask.diffusion.head import Look
from remask.errors import UserError
from remask.models import packing, streams
from remask.models.batch import Batch
from remask.models.blocks import Given, in_blocks, read_by
from remask.models.fused import fuse
from remask.models.last_layer import narrow
from remask.models.prediction import Prediction, predicted
from remask.models.streams import CleanRows


class Causal:
    """Tell type checkers what the class of transformers has that a mixin stands before."""

    if TYPE_CHECKING:
        model: Any
        lm_head: Any
        training: bool

        def __init__(self, config: Any) -> None: ...

        def get_input_embeddings(self) -> Any: ...

        def set_attn_implementation(self, name: str) -> None: ...


class Bidirectional(Causal):
    """A mixin whose `forward` gives logits aligned with their tokens: `logits[:, i]` predicts token i.

    A config with `shift` true says that the network's own output at i−1 predicts token i, as in models that began as
    causal ones (Dream): the shift is undone here and nowhere else.
    """

    config: Any
    keeps_keys_and_values = True
    """`past_key_values` reaches attention: a sampler may keep what it computed (`sampling/cache.py`)."""
    packs: bool | None = None
    """Leave padding out of passes for chosen positions (`packing.py`). None: where that pays."""

    def __init__(self, config: Any) -> None:
        config.is_causal = False
        reads = attention.named(getattr(config, "attention", None) or "full")
        # Transformers give the embedding of `pad_token_id` no gradient. Here the pad is the EOS, which fills the canvas
        # and is attended to and learned: freezing it would change training and understate every gradient norm.
        pad_token_id, config.pad_token_id = config.pad_token_id, None
        super().__init__(config)
        self.attention = reads
        config.pad_token_id = pad_token_id
        if packing.attention_of(config) == "sdpa":
            self.set_attn_implementation(packing.NAME)
        fuse(self.model)
        self.narrows = narrow(self.model.layers[-1])
        # By these names engines find what to shard and what not to split over devices.
        self._no_split_modules = {type(layer).__name__ for layer in self.model.layers}

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        positions: Tensor | None = None,
        targets: Tensor | None = None,
        weights: Tensor | None = None,
        look: Look | None = None,
        clean: Tensor | None = None,
        answer: Tensor | None = None,
        at: Tensor | None = None,
        keep: bool = False,
        kept: CleanRows | None = None,
        **kwargs: Any,
    ) -> Prediction:
        """Logits [B, L, V], or [N, V] at the N true places of `positions` (bool [B, L], row-major order).

        With `targets` [N] only their losses instead, and with `weights` [N] the sum Σ w·ce, which then has the gradient
        (`Prediction`); with `look` what it says of the logits, which it is shown a part at a time, without gradient.

        A block model (`attention` in its config) reads rows block by block: the noised blocks of `input_ids` in the
        light of the `clean` rows [B, L] before them, of which `answer` [B, L] is what was noised; where no clean rows
        are given the ids themselves are taken for them, up to the block of a row's first chosen position. The ids may
        be K noised versions of the clean rows, all of one after all of the other [K·B, L]. With `keep` the clean rows
        alone are read, and given back as `kept`, with which later calls need not read them again; None where a model
        cannot. With `at` [B, q] only those tokens of the rows, given by their places, are computed: `past_key_values`
        has, and is given, the keys and values of the whole rows.

        `attention_mask` [B, L] is 1 where a token may be attended to. Positions are counted from each row's first
        attended token, so left padding does not move a row.
        """
        kwargs.pop("use_cache", None)
        if not isinstance(self.attention, Full):
            if position_ids is not None or inputs_embeds is not None or (at is None) == ("past_key_values" in kwargs):
                raise UserError(
                    "a block model was called with embeddings, position_ids or a cache, which it does not take",
                    mend="call it with input_ids and attention_mask, and write texts with remask.generate",
                )
            given = Given.of(input_ids, attention_mask, clean, answer)
            if keep or (
                positions is not None and clean is not None and packing.attention_of(self.config) == packing.NAME
            ):
                return self._beside(given, positions, keep, kept, targets, weights, look)
            reading = read_by(self.attention, given, positions)
            return self._predicted(in_blocks(reading, positions, at), targets, weights, look, kwargs)
        if keep:
            return Prediction()
        batch = None
        if position_ids is None and inputs_embeds is None and not kwargs:
            batch = self._packed(input_ids, attention_mask, positions)
        if batch is None:
            batch = padded(input_ids, attention_mask, position_ids, inputs_embeds, positions)
        return self._predicted(batch, targets, weights, look, kwargs)

    def _beside(
        self,
        given: Given,
        positions: Tensor | None,
        keep: bool,
        kept: CleanRows | None,
        targets: Tensor | None,
        weights: Tensor | None,
        look: Look | None,
    ) -> Prediction:
        """What is asked of noised blocks, which are read with no more than they look at; with `keep` the clean rows."""
        if keep and not self._reads_apart():
            return Prediction()
        assert isinstance(self.attention, BlockCausal)
        assert given.clean is not None
        rows = streams.Rows(self.attention, given.attended, given.answer)
        if keep:
            batch, found = streams.clean_batch(rows, given.clean)
            if bool(found.tokens.any()):
                self.hidden_at(batch.starts.new_zeros(0, dtype=torch.long), **batch.inputs)
            found.filled = True
            return Prediction(kept=found)
        assert positions is not None
        shift = getattr(self.config, "shift", False)
        batch = streams.noised_batch(rows, given.ids, given.clean, positions, shift=shift, kept=kept)
        return self._predicted(batch, targets, weights, look, {})

    def _reads_apart(self) -> bool:
        """Whether keys and values may be handed from one pass to another: they may not where activations are computed
        again, nor where weights are sharded and gathered for a pass.
        """
        model: Any = self
        again = self.training and model.is_activation_checkpointing
        sharded = hasattr(self.get_input_embeddings().weight, "ds_id") or any(
            isinstance(module, FSDPModule) for module in model.modules()
        )
        assert isinstance(self.attention, BlockCausal)
        of_clean = self.attention.causal and getattr(self.config, "shift", False)  # outputs of the clean rows are asked
        return packing.attention_of(self.config) == packing.NAME and not again and not sharded and not of_clean

    def _predicted(
        self, batch: Batch, targets: Tensor | None, weights: Tensor | None, look: Look | None, keywords: dict[str, Any]
    ) -> Prediction:
        shift = getattr(self.config, "shift", False)
        at = batch.predictors(shift=shift)
        hidden = self.hidden_at(at, **batch.inputs, **keywords)
        if at is None and shift:
            hidden = hidden.flatten(0, 1)[batch.predicting()].view_as(hidden)
        return predicted(self.lm_head, hidden, targets, weights, look)

    def hidden_at(self, at: Tensor | None, **inputs: Any) -> Tensor:
        """Return what the head is given: [N, D] at those tokens, counted through the rows; [B, L, D] where none are
        named.
        """
        only = {"outputs_at": at} if at is not None and self.narrows else {}
        hidden: Tensor = self.model(use_cache=False, **only, **inputs).last_hidden_state
        if at is None:
            return hidden
        return hidden[0] if only else hidden.flatten(0, 1)[at]

    def _packed(self, ids: Tensor | None, mask: Tensor | None, positions: Tensor | None) -> Batch | None:
        """The batch without its padding, where that is wanted and possible."""
        config = self.config
        if ids is None or mask is None or positions is None or packing.attention_of(config) != packing.NAME:
            return None
        wanted = self.packs
        if wanted is None:
            embedding: Tensor = self.get_input_embeddings().weight
            width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
            wanted = packing.pays(ids, embedding, width)
        windows = "sliding_attention" in (getattr(config, "layer_types", None) or ())
        return packing.packed(ids, mask, positions) if wanted and not windows else None


class Config:
    """Tell type checkers what configs of transformers have."""

    if TYPE_CHECKING:

        def to_diff_dict(self) -> dict[str, Any]: ...


class OfficialKeys(Config):
    """A config mixin: the keys that older code reads are written beside those that replaced them in transformers 5."""

    rope_parameters: Any
    dtype: Any

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the values to save. Without `rope_theta` or `rope_scaling` older code would silently take its own
        default.
        """
        values = super().to_diff_dict()
        rope = values.get("rope_parameters") or {}
        if "rope_theta" in rope:
            values["rope_theta"] = rope["rope_theta"]
        if "partial_rotary_factor" in rope:
            values["partial_rotary_factor"] = rope["partial_rotary_factor"]
        if rope.get("rope_type", "default") != "default":
            values["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
        if values.get("dtype") is not None:
            values["torch_dtype"] = values["dtype"]
        return values


def counted_positions(attention_mask: Tensor | None) -> Tensor | None:
    """Return [B, L], each token's number among its row's attended ones, from 0; None where the mask does not say."""
    if attention_mask is None or attention_mask.dim() != 2:
        return None
    return attention.counted(attention_mask != 0)


def padded(
    ids: Tensor | None,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    embeddings: Tensor | None,
    positions: Tensor | None,
) -> Batch:
    """The batch as it stands: ids [B, L] or embeddings [B, L, D]. A start is also where padding ends."""
    tokens = ids if ids is not None else embeddings
    assert tokens is not None
    starts = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    starts[:, 0] = True
    if attention_mask is not None and attention_mask.dim() == 2:
        starts[:, 1:] = (attention_mask[:, 1:] != 0) & (attention_mask[:, :-1] == 0)
    inputs = {
        "input_ids": ids,
        "attention_mask": attention_mask,
        "position_ids": counted_positions(attention_mask) if position_ids is None else position_ids,
        "inputs_embeds": embeddings,
    }
    return Batch(inputs, positions, starts)
