"""DiffusionGemma: a causal encoder reads the clean text, and a decoder of the same weights refines a canvas after it.

Tokens are replaced by others drawn uniformly where other models mask them, so there is no mask token. The class is
transformers' own (Gemma 4, a mixture of experts); what is added is how Remask calls it. Its logits are transformers'
own to the last bit (tests/unit/test_diffusion_gemma.py).

The published class keeps all logits of a canvas to condition the next step on, [B, C, V] for V of 262,144. Here they
are seen a part at a time, and what is kept of them is what the decoder makes of them: embeddings [B, C, D].

Shapes: B rows, L length, C tokens of a canvas, n new tokens, N chosen positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DiffusionGemmaForBlockDiffusion as Published

from remask.diffusion.attention import BlockCausal
from remask.diffusion.capped import Capped, capped_losses, in_parts
from remask.diffusion.head import Look, look_at
from remask.errors import UserError
from remask.models.diffusion_gemma_config import DiffusionGemmaConfig
from remask.models.prediction import Prediction
from remask.models.prefix import Prefix, canvas_masks, causal_mask, places_of

FROZEN = (".router.", ".vision_tower.", ".embed_vision.")
"""Parts of parameters' names that are not trained: the router, as published, and the images' encoder, which no text
reaches."""

TWINS = (".encoder.language_model.layers.", ".decoder.layers.")
"""What the names of weights have in the encoder, and in its stead in the decoder."""


@dataclass
class CanvasPrediction(Prediction):
    """A prediction of a canvas. clean_loss [M]: −log p of clean tokens by the encoder, in nats, where they were asked
    for.
    """

    clean_loss: Tensor | None = None


class DiffusionGemmaForBlockDiffusion(Published):
    """Transformers' class, called as Remask calls models. It carries the official name, as what is saved names it."""

    config_class = DiffusionGemmaConfig
    config: Any
    keeps_keys_and_values = True
    not_adapted = r".*\.(router|vision_tower|embed_vision)\..*"
    """Names of modules that get no adapters: those that are not trained."""
    narrows = False
    accepts_loss_kwargs = False

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.attention = BlockCausal(config.canvas_length, "answer")

    def frozen_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that are not trained."""
        for name, parameter in self.named_parameters():
            if any(part in name for part in FROZEN):
                yield parameter

    def share_adapters(self, *, fresh: bool) -> None:
        """Give each encoder layer the adapters of the decoder layer that it shares its weights with: fresh ones, so
        that one model is trained still, or loaded ones where the two are equal, as those of Remask's runs are.
        """
        for of_encoder, of_decoder in self._twins():
            for name, adapted in list(of_decoder.named_modules()):
                twin = of_encoder.get_submodule(name)
                if hasattr(adapted, "lora_A") and hasattr(twin, "lora_A") and (fresh or _equal(adapted, twin)):
                    of_encoder.set_submodule(name, adapted)

    def adapters_are_shared(self) -> bool:
        """Return whether encoder and decoder have the same adapters, so that they can be added to their weights."""
        return all(
            hasattr(twin, "lora_A") == hasattr(adapted, "lora_A") and (twin is adapted or not hasattr(twin, "lora_A"))
            for of_encoder, of_decoder in self._twins()
            for name, adapted in of_decoder.named_modules()
            if "lora_" not in name and ".base_layer" not in name and (twin := of_encoder.get_submodule(name))
        )

    def share_merged(self) -> None:
        """Give the decoder the layers whose adapters were added to the weights in the encoder, which shares them."""
        for of_encoder, of_decoder in self._twins():
            for name, adapted in list(of_decoder.named_modules()):
                if hasattr(adapted, "lora_A"):
                    of_decoder.set_submodule(name, of_encoder.get_submodule(name))

    def _twins(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        inner: Any = self.model
        return zip(inner.encoder.language_model.layers, inner.decoder.layers, strict=True)

    def forward(
        self,
        input_ids: Int[Tensor, "B L"] | None = None,
        attention_mask: Tensor | None = None,
        positions: Bool[Tensor, "B L"] | None = None,
        targets: Int[Tensor, "N"] | None = None,
        weights: Float[Tensor, "N"] | None = None,
        look: Look | None = None,
        clean: Int[Tensor, "B L"] | None = None,
        answer: Bool[Tensor, "B L"] | None = None,
        conditioned: Bool[Tensor, "B"] | None = None,
        scored_clean: Bool[Tensor, "B L"] | None = None,
        prefix: Prefix | None = None,
        signal: Float[Tensor, "B C D"] | None = None,
        keep: bool = False,
    ) -> CanvasPrediction:
        """Return what is said of one canvas of each row.

        In training, `input_ids` are noised rows beside the `clean` ones, and the true places of `positions` lie in one
        canvas of each row, counted in whole canvases from the first place of `answer`: the clean text before it is
        read by the encoder, its noised tokens by the decoder. Logits are given at the positions, [N, V], or what
        `targets`, `weights` or `look` ask for (`Bidirectional.forward`). `conditioned` rows are read twice, the second
        time in the light of the first, which has no gradient. Of the tokens of `scored_clean`, none of which is a row's
        first, the encoder's losses are given besides.

        In sampling, a call with `keep` has the encoder read the tokens of `clean` that come next and adds them to
        `prefix`, with `attention_mask` [B, n] 1 where they may be attended to. A call with a `prefix` alone is of
        canvases `input_ids` [B, C] after it, conditioned on a `signal` of embeddings.

        Raises UserError for a call that is none of these.
        """
        if keep and prefix is not None and clean is not None:
            attended = torch.ones_like(clean) if attention_mask is None else attention_mask
            self.read(clean, attended != 0, prefix)
            return CanvasPrediction()
        if prefix is not None and input_ids is not None:
            hidden = self.refined(input_ids, prefix, signal, canvas_masks(prefix, input_ids.shape[1]), None)
            return self._said(hidden, targets, weights, look)
        if input_ids is None or clean is None or answer is None or positions is None:
            raise UserError(
                "a DiffusionGemma was called without a clean text, an answer and positions",
                mend="give input_ids, clean, answer and positions, and write texts with remask.generate",
            )
        attended = torch.ones_like(clean) if attention_mask is None else attention_mask
        return self._scored(
            input_ids,
            clean,
            attended != 0,
            answer,
            positions,
            conditioned,
            scored_clean,
            partial(self._said, targets=targets, weights=weights, look=look),
        )

    def empty_prefix(self) -> Prefix:
        """Return a prefix of nothing, to be read into. Layers with a window keep what a next token can see."""
        text = self.config.text_config
        return Prefix([text.sliding_window if kind == "sliding_attention" else None for kind in text.layer_types])

    def embeddings_of(self, logits: Float[Tensor, "n V"]) -> Float[Tensor, "n D"]:
        """Return the mean embedding of what is predicted, on which a canvas is conditioned."""
        tokens = self.model.decoder.embed_tokens
        p = logits.softmax(-1, dtype=torch.float32).to(tokens.weight.dtype)
        return p @ tokens.weight * tokens.embed_scale.to(tokens.weight.dtype)

    def capped(self) -> Capped:
        """Return the head with its soft cap, cap·tanh(z / cap)."""
        return Capped(self.lm_head, self.final_logit_softcapping)

    def _said(
        self,
        hidden: Tensor,
        targets: Tensor | None = None,
        weights: Tensor | None = None,
        look: Look | None = None,
    ) -> CanvasPrediction:
        head = self.capped()
        if look is not None:
            return CanvasPrediction(seen=look_at(head, hidden.flatten(0, -2), look))
        if targets is None:
            return CanvasPrediction(logits=head(hidden))
        ce = capped_losses(head, hidden.flatten(0, -2), targets)
        if weights is None:
            return CanvasPrediction(token_loss=ce)
        return CanvasPrediction(loss=(ce * weights.detach()).sum(), token_loss=ce.detach())

    def _scored(
        self,
        noised: Tensor,
        clean: Tensor,
        attended: Tensor,
        answer: Tensor,
        positions: Tensor,
        conditioned: Tensor | None,
        scored_clean: Tensor | None,
        said: Any,
    ) -> CanvasPrediction:
        """The canvas that the positions lie in, and the clean tokens that are asked for."""
        prefix = self.empty_prefix().whole()
        by_encoder = self.read(clean, attended, prefix)
        start, columns = canvas_columns(answer, positions, self.config.canvas_length)
        inside = columns < attended.sum(-1, keepdim=True)  # rows are padded on the right
        columns = columns.clamp(max=clean.shape[1] - 1)
        ids, chosen = noised.gather(1, columns), positions.gather(1, columns) & inside
        masks = prefix.masks_before(start, inside)
        signal = None
        if conditioned is not None and bool(conditioned.any()):
            signal = self.conditioning(ids, prefix, masks, columns, conditioned.nonzero()[:, 0])
        hidden = self.refined(ids, prefix, signal, masks, columns)
        found: CanvasPrediction = said(hidden[chosen])
        if scored_clean is not None:
            row, place = scored_clean.nonzero(as_tuple=True)
            found.clean_loss = capped_losses(self.capped(), by_encoder[row, place - 1], clean[row, place])
        return found

    def conditioning(
        self, ids: Tensor, prefix: Prefix, masks: dict[str, Tensor | None], places: Tensor, among: Tensor
    ) -> Float[Tensor, "B C D"]:
        """The embeddings of what a first pass says of these rows; those of the others are zero. The first pass has no
        gradient; the embeddings have theirs, as published.
        """
        of_them = {kind: None if mask is None else mask[among] for kind, mask in masks.items()}
        with torch.no_grad():
            hidden = self.refined(ids[among], prefix.of(among), None, of_them, places[among]).flatten(0, 1)
        head = self.capped()

        def embedded(hidden: Tensor) -> Tensor:
            with torch.no_grad():
                logits = head(hidden)
            return self.embeddings_of(logits)

        found = in_parts(embedded, head, hidden)
        signal = found.new_zeros(*ids.shape, found.shape[-1])
        return signal.index_copy(0, among, found.view(len(among), *signal.shape[1:]))

    def read(self, ids: Int[Tensor, "B n"], attended: Bool[Tensor, "B n"], prefix: Prefix) -> Float[Tensor, "B n D"]:
        """The encoder over tokens that come next; their keys and values are added to the prefix."""
        encoder: Any = self.model.encoder.language_model
        before = prefix.taken(attended)
        places = places_of(prefix.attended)[:, -ids.shape[1] :]
        hidden = encoder.embed_tokens(ids)
        turned = {kind: encoder.rotary_emb(hidden, places, kind) for kind in encoder.unique_layer_types}
        masks = {window: causal_mask(prefix.attended, before, window) for window in set(prefix.windows)}
        for number, layer in enumerate(encoder.layers):
            called = partial(
                layer,
                position_embeddings=turned[self.config.text_config.layer_types[number]],
                attention_mask=masks[prefix.windows[number]],
                position_ids=places,
                past_key_values=prefix,
            )
            # Transformers keeps the encoder out of checkpointing, as a cache that grows would grow twice. This one
            # does not: what a layer computes again is handed back and not kept.
            twin: Any = self.model.decoder.layers[number]
            if self.training and twin.gradient_checkpointing and prefix.is_whole:
                hidden = checkpoint(called, hidden, use_reentrant=False)
            else:
                hidden = called(hidden)
        out: Tensor = encoder.norm(hidden)
        return out

    def refined(
        self,
        ids: Int[Tensor, "B C"],
        prefix: Prefix,
        signal: Tensor | None,
        masks: dict[str, Tensor | None],
        places: Tensor | None,
    ) -> Float[Tensor, "B C D"]:
        """The decoder over canvases after the prefix, or at the places that are given."""
        decoder: Any = self.model.decoder
        embedded = decoder.embed_tokens(ids)
        given = torch.zeros_like(embedded) if signal is None else signal.to(embedded.dtype)
        hidden = decoder.self_conditioning(embedded, given)
        if places is None:
            length = prefix.attended.sum(-1, keepdim=True)
            places = length + torch.arange(ids.shape[1], device=ids.device)
        turned = {kind: decoder.rotary_emb(hidden, places, kind) for kind in decoder.unique_layer_types}
        for layer, kind in zip(decoder.layers, self.config.text_config.layer_types, strict=True):
            hidden = layer(
                hidden,
                position_embeddings=turned[kind],
                attention_mask=masks[kind],
                position_ids=places,
                past_key_values=prefix,
            )
        out: Tensor = decoder.norm(hidden)
        return out


def with_twins(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return an adapter's tensors under the names of both parts that share them: engines save shared tensors once, and
    plain peft looks for them in the encoder and in the decoder.
    """
    found = dict(weights)
    for of_encoder, of_decoder in (TWINS, TWINS[::-1]):
        for name, tensor in weights.items():
            found.setdefault(name.replace(of_encoder, of_decoder), tensor)
    return {name: found[name].clone() for name in sorted(found)}


def _equal(one: nn.Module, other: nn.Module) -> bool:
    """Whether two layers have the same adapters, of equal values."""
    a, b = ({name: p for name, p in each.named_parameters() if "lora_" in name} for each in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def canvas_columns(
    answer: Bool[Tensor, "B L"], positions: Bool[Tensor, "B L"], length: int
) -> tuple[Int[Tensor, "B 1"], Int[Tensor, "B C"]]:
    """Return (start, columns): where the canvas begins in which a row's positions lie, and all its columns, which may
    go beyond the row. A row without positions has its answer's first canvas. Raises UserError where a row's positions
    lie in two canvases.
    """
    first = answer.long().argmax(-1, keepdim=True)
    asked = torch.where(positions.any(-1, keepdim=True), positions.long().argmax(-1, keepdim=True), first)
    start = first + (asked - first).div(length, rounding_mode="floor") * length
    columns = torch.arange(positions.shape[1], device=positions.device)
    if bool((positions & ((columns < start) | (columns >= start + length))).any()):
        raise UserError(
            f"positions in more than one canvas of {length} tokens", mend="ask for one canvas of each row at a time"
        )
    return start, start + torch.arange(length, device=positions.device)
