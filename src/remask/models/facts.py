"""What a checkpoint says of itself, read from its config and tokenizer: nothing is guessed from a model's name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from remask.errors import UserError


@dataclass(frozen=True)
class Facts:
    """What a checkpoint says of itself. Nothing in Remask guesses these from a model's name.

    mask_id: the token that masks. eos_ids: what ends and fills a canvas, the first one filling. stop_ids: all that ends
    a text. fill: how far answers are extended with EOS in training (`batch` where the config is silent: LLaDA's way).
    prompt_style: which wording of a task's prompt the model knows. decoding: settings it was made for.
    """

    mask_id: int
    eos_ids: tuple[int, ...]
    stop_ids: tuple[int, ...]
    fill: str
    prompt_style: str
    decoding: dict[str, Any]


def facts(model: Any, tokenizer: PreTrainedTokenizerBase | None = None, *, where: str = "the model") -> Facts:
    """Read the facts. Raises UserError naming the one that is missing or contradicted by the tokenizer."""
    config = model.config
    mask_id = getattr(config, "mask_token_id", None)
    token_mask = None if tokenizer is None else tokenizer.mask_token_id
    if mask_id is None and token_mask is None:
        raise UserError("no mask token", where=where, mend="set mask_token_id in its config.json")
    if mask_id is not None and token_mask is not None and mask_id != token_mask:
        raise UserError(
            f"the config's mask_token_id is {mask_id}, the tokenizer's mask token is {token_mask}",
            where=where,
            mend="make them agree",
        )
    config.mask_token_id = mask_id if mask_id is not None else token_mask
    if not eos_token_ids(config) and tokenizer is not None and tokenizer.eos_token_id is not None:
        config.eos_token_id = tokenizer.eos_token_id
    if not eos_token_ids(config):
        raise UserError("no EOS token", where=where, mend="set eos_token_id in its config.json")
    size = config.vocab_size
    for name, value in (("mask_token_id", config.mask_token_id), *(("eos_token_id", e) for e in eos_token_ids(config))):
        if not 0 <= value < size:
            raise UserError(f"{name} {value} is outside its vocabulary of {size}", where=where)
    return Facts(
        config.mask_token_id,
        tuple(eos_token_ids(config)),
        tuple(stop_token_ids(config)),
        str(getattr(config, "fill", None) or "batch"),
        getattr(config, "prompt_style", None) or "instruct",
        dict(getattr(config, "default_decoding", None) or {}),
    )


def eos_token_ids(config: Any) -> list[int]:
    eos = config.eos_token_id
    return [] if eos is None else list(eos) if isinstance(eos, list | tuple) else [eos]


def first_eos(config: Any) -> int:
    """The EOS that fills a canvas."""
    return eos_token_ids(config)[0]


def stop_token_ids(config: Any) -> list[int]:
    """Every token that ends a text: the EOS ids and the model's further stop tokens."""
    return eos_token_ids(config) + list(getattr(config, "stop_token_ids", None) or [])
