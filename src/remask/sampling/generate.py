"""Prompts in, texts out, on top of the one sampling loop."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from remask.chat_template import Message
from remask.data.chat import decode_text, encode_prompt
from remask.diffusion.attention import BlockCausal
from remask.diffusion.blocks import attention_of
from remask.errors import UserError
from remask.models.facts import corruption_of, first_eos, stop_token_ids
from remask.models.unchanged import weights_unchanged
from remask.sampling import entropy_bound
from remask.sampling.denoise import run
from remask.sampling.layout import canvas_after, fitted
from remask.sampling.record import Denoised, Earlier, Step
from remask.sampling.schedule import Decoding


@dataclass(frozen=True)
class Row:
    """A canvas and how it was written: the token at each place, the step that revealed it (−1: filled after the text
    was final), the probability the model gave it then, whether a token that ends a text is among them, the block that
    each place was written with, and the tokens that did not stay.
    """

    token_ids: list[int]
    revealed_at: list[int]
    confidence: list[float]
    ended: bool
    block: list[int] = field(default_factory=list)
    earlier: list[Earlier] = field(default_factory=list)


@dataclass(frozen=True)
class Generated:
    """Answers to prompts. texts: up to the first stop token. token_ids: whole canvases. history: a `Row` per prompt.
    stats: forwards, row_forwards, tokens (of text, stop token included), seconds, and the decoding settings.
    """

    texts: list[str]
    token_ids: list[list[int]]
    history: list[Row]
    stats: dict[str, Any]


def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[Message]],
    *,
    decoding: Decoding | None = None,
    batch_size: int = 32,
    row_seeds: Sequence[int] | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_batch: Callable[[int], None] | None = None,
    prefill: str = "",
    **settings: Any,
) -> Generated:
    """Answer each prompt (a user's text, or a list of messages) with the model's chat template.

    Settings are `Decoding`'s, as one object or as keyword arguments; what is not given comes from the checkpoint's own
    `default_decoding`. Prompts are batched by length, left-padded; a prompt's answer does not depend on its batch.
    `prefill` stands before every canvas as the answer's first words; texts do not repeat it.
    """
    if isinstance(prompts, str):
        raise UserError("prompts is one string", mend="give a list of prompts")
    decoding = decoding_for(model, decoding, **settings)
    encoded = encode_prompts(model, tokenizer, prompts, decoding, prefill=prefill)
    return generate_from_ids(
        model,
        tokenizer,
        encoded,
        decoding,
        batch_size=batch_size,
        row_seeds=row_seeds,
        on_step=on_step,
        on_batch=on_batch,
    )


def generate_from_ids(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[list[int]],
    decoding: Decoding,
    *,
    batch_size: int = 32,
    row_seeds: Sequence[int] | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Generated:
    """Answer as `generate` does, for prompts that are token ids already."""
    stops = stop_token_ids(model.config)
    seeds = list(row_seeds) if row_seeds is not None else list(range(len(encoded)))
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    rows: list[Row | None] = [None] * len(encoded)
    totals = {"forwards": 0, "row_forwards": 0, "seconds": 0.0}
    with weights_unchanged(model):
        for start in range(0, len(order), batch_size):
            members = order[start : start + batch_size]
            denoised = _run_batch(model, [encoded[i] for i in members], decoding, [seeds[i] for i in members], on_step)
            for place, i in enumerate(members):
                rows[i] = _row(denoised, place, stops)
            for key in totals:
                totals[key] += getattr(denoised, key)
            if on_batch is not None:
                on_batch(min(start + batch_size, len(order)))
    done = [row for row in rows if row is not None]
    texts = [decode_text(tokenizer, row.token_ids, stops) for row in done]
    tokens = sum(length_of(row.token_ids, stops) for row in done)
    stats = {**totals, "tokens": tokens, "prompts": len(done), "decoding": decoding.described()}
    return Generated(texts, [row.token_ids for row in done], done, stats)


def length_of(ids: Sequence[int], stops: Container[int]) -> int:
    """Tokens up to the first that ends a text, that one included; the whole canvas where there is none."""
    return next((place + 1 for place, token in enumerate(ids) if token in stops), len(ids))


def encode_prompts(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[Message]],
    decoding: Decoding,
    *,
    prefill: str = "",
) -> list[list[int]]:
    """Token ids of each prompt. Raises UserError naming the first that leaves no room for the canvas."""
    encoded = [
        encode_prompt(
            tokenizer,
            [{"role": "user", "content": p}] if isinstance(p, str) else p,
            prefill=prefill,
            where=f"prompt {number}",
        )
        for number, p in enumerate(prompts)
    ]
    for number, ids in enumerate(encoded):
        refuse_long_prompt(model, ids, decoding, where=f"prompt {number}")
    return encoded


def refuse_long_prompt(model: Any, ids: Sequence[int], decoding: Decoding, *, where: str | None = None) -> None:
    """Raises UserError where a prompt leaves no room for its canvas among the model's positions."""
    limit = getattr(model.config, "max_position_embeddings", None)
    canvas = canvas_after(len(ids), decoding.max_new_tokens, attention_of(model))
    if limit and len(ids) + canvas > limit:
        raise UserError(
            f"{len(ids)} prompt tokens and a canvas of {canvas} exceed the model's {limit}",
            where=where,
            mend="shorten the prompt or lower max_new_tokens",
        )


def decoding_for(model: Any, decoding: Decoding | None = None, **settings: Any) -> Decoding:
    """The settings given, over those the checkpoint was made for.

    A default that no longer fits (a block longer than a shorter canvas that was asked for, or another one than a block
    model's) gives way. Raises UserError for settings that the model cannot follow.
    """
    attention = attention_of(model)
    replaces = corruption_of(model.config) == "uniform"
    if decoding is not None:
        if settings:
            raise UserError("both a Decoding and single settings were given", mend="give one or the other")
        return entropy_bound.fitted(decoding, model) if replaces else fitted(decoding, attention)
    defaults = entropy_bound.defaults_of(model) if replaces else _own_decoding(model)
    given = {key: value for key, value in settings.items() if value is not None}
    if not replaces and "max_new_tokens" in given and given["max_new_tokens"] != defaults.get("max_new_tokens"):
        defaults = {}
    if isinstance(attention, BlockCausal):
        defaults = {key: value for key, value in defaults.items() if key not in ("block_length", "cache")}
    unknown = set(given) - set(Decoding.__dataclass_fields__)
    if unknown:
        raise UserError(
            f"unknown decoding settings {', '.join(sorted(unknown))}",
            mend=f"they are {', '.join(Decoding.__dataclass_fields__)}",
        )
    found = Decoding(**{**defaults, **given})
    return entropy_bound.fitted(found, model) if replaces else fitted(found, attention)


def _own_decoding(model: Any) -> dict[str, Any]:
    return dict(getattr(model.config, "default_decoding", None) or {})


def _row(denoised: Denoised, place: int, stops: Container[int]) -> Row:
    ids = denoised.ids[place].tolist()
    return Row(
        ids,
        denoised.revealed_at[place].tolist(),
        denoised.confidence[place].tolist(),
        any(token in stops for token in ids),
        denoised.block[place].tolist(),
        denoised.earlier[place],
    )


def _run_batch(
    model: Any,
    prompts: Sequence[list[int]],
    decoding: Decoding,
    seeds: Sequence[int],
    on_step: Callable[[Step], None] | None,
) -> Denoised:
    width = max(len(ids) for ids in prompts)
    config = model.config  # padding is never attended to, so any token serves
    pad = first_eos(config) if config.mask_token_id is None else config.mask_token_id
    rows = [[pad] * (width - len(row)) + row for row in prompts]
    shown = [[0] * (width - len(row)) + [1] * len(row) for row in prompts]
    ids, mask = (torch.tensor(table, dtype=torch.long, device=model.device) for table in (rows, shown))
    return run(model, ids, mask, decoding, row_seeds=seeds, on_step=on_step)
