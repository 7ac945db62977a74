"""Filling in: a text with masks in it is written where they stand, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from remask.chat_template import Message, template_of
from remask.data.chat import encode_prompt
from remask.diffusion.attention import BlockCausal
from remask.diffusion.blocks import attention_of
from remask.errors import UserError
from remask.models.facts import mask_token
from remask.sampling.denoise import run
from remask.sampling.gaps import Gap, parts_of
from remask.sampling.generate import decoding_for
from remask.sampling.schedule import Decoding


@dataclass(frozen=True)
class Gaps:
    """A text with gaps as the sampler takes it. before: token ids of the prompt. canvas: those of the text, masks where
    it has gaps, and of the token that ends it. length: how many of them are the text's. kinds: of each place's gap,
    empty where there is none; none at all where every gap takes any token.
    """

    before: list[int]
    canvas: list[int]
    length: int
    decoding: Decoding
    kinds: tuple[str, ...] = ()

    def written(self, mask_id: int) -> list[int]:
        """Return the places of the gaps."""
        return [place for place, token in enumerate(self.canvas) if token == mask_id]


def infill(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    prompt: str | list[Message] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Return the text with its masks written: {text, token_ids, written (places in token_ids), confidence, forwards}.

    Each of the model's mask token in `text` is one token to write. With a `prompt` the text is the answer to it and is
    followed by the end token, else it stands alone. Settings are `Decoding`'s; the canvas is the text and one block,
    and no token that ends a text is written in it. Raises UserError where the text holds no mask.
    """
    gaps = gaps_in(model, tokenizer, text, prompt=prompt, **settings)
    before, canvas = (torch.tensor([ids], dtype=torch.long, device=model.device) for ids in (gaps.before, gaps.canvas))
    done = run(model, before, None, gaps.decoding, canvas=canvas)
    ids, written = done.ids[0, : gaps.length].tolist(), gaps.written(model.config.mask_token_id)
    return {
        "text": tokenizer.decode(ids, skip_special_tokens=False),
        "token_ids": ids,
        "written": written,
        "confidence": [round(float(done.confidence[0, place]), 4) for place in written],
        "forwards": done.forwards,
    }


def gaps_in(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    prompt: str | list[Message] | None = None,
    **settings: Any,
) -> Gaps:
    """Return what is to be written of a text, as `infill` reads it. Raises UserError where the text holds no mask."""
    mask_id = mask_token(model.config)
    spelled = tokenizer.decode([mask_id])
    texts = text.split(spelled)
    if len(texts) == 1:
        raise UserError("the text to fill in holds no mask", mend=f"write {spelled} for each token that is missing")
    parts: list[str | Gap] = [texts[0]]
    for part in texts[1:]:
        parts += [Gap("any", 1), part]
    return _laid(model, tokenizer, parts, prompt, settings)


def gaps_of_template(
    model: Any, tokenizer: PreTrainedTokenizerBase, template: str, *, prompt: str | list[Message], **settings: Any
) -> Gaps:
    """Return what is to be written of a template (`gaps.parts_of`), which is the answer to a prompt. Raises UserError
    for a template that cannot be read.
    """
    return _laid(model, tokenizer, parts_of(template), prompt, settings)


def _laid(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    parts: Sequence[str | Gap],
    prompt: str | list[Message] | None,
    settings: dict[str, Any],
) -> Gaps:
    """Texts and gaps as tokens. Each text stands by itself: no token reaches into a gap."""
    template, mask_id = template_of(tokenizer), mask_token(model.config)
    ids: list[int] = []
    kinds: list[str] = []
    for part in parts:
        if isinstance(part, Gap):
            ids += [mask_id] * part.count
            kinds += [part.kind] * part.count
        else:
            ids += template.following(part) if ids else template.ids(template.marked(part))
            kinds += [""] * (len(ids) - len(kinds))
    if prompt is None:
        before = list(template.before)
    else:
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        before = encode_prompt(tokenizer, turns)
    after = [template.end] if prompt is not None and template.end is not None else []
    canvas = ids + after
    decoding = decoding_of(model, len(canvas), ids.count(mask_id), settings)
    plain = set(kinds) <= {"", "any"}
    return Gaps(before, canvas, len(ids), decoding, () if plain else (*kinds, *[""] * len(after)))


def decoding_of(model: Any, length: int, gaps: int, settings: dict[str, Any]) -> Decoding:
    """Return the settings for a canvas of a text with so many gaps: one block of the whole text, a gap a step at most;
    in a block model its own blocks. Raises UserError for settings that such a text cannot have.
    """
    given = {key: value for key, value in settings.items() if value is not None and key != "max_new_tokens"}
    if "block_length" in given:
        raise UserError("a text is filled in as one block, or in the model's", mend="leave block_length out")
    in_blocks = isinstance(attention_of(model), BlockCausal)
    if in_blocks and "steps" in given:
        raise UserError(
            "this model fills in block by block, a token a step", mend="leave steps out, or give a threshold"
        )
    defaults = {"temperature": 0.0} if in_blocks else {"temperature": 0.0, "steps": gaps}
    settings = {**defaults, **given, "max_new_tokens": length}
    decoding = replace(decoding_for(model, **settings), stop_early=False)
    if in_blocks:
        return replace(decoding, steps=None)
    return replace(decoding, steps=min(decoding.steps or gaps, gaps), block_length=None)
