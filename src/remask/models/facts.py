"""What a checkpoint says of itself, read from its config and tokenizer: nothing is guessed from a model's name."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from transformers import PreTrainedTokenizerBase

from remask import config as configs
from remask.chat_template import turn_end
from remask.choices import CorruptionName, FillName, PromptStyle
from remask.config import DecodingConfig
from remask.config.read import STRICT
from remask.diffusion.attention import Attention as AttentionOf
from remask.diffusion.attention import BlockCausal
from remask.diffusion.attention import named as read_attention
from remask.errors import UserError

MASK_TOKENS = {"sdar": "<|MASK|>", "sdar_moe": "<|MASK|>"}
"""The mask token of each model type whose config may be silent, and whose tokenizer has it among others."""


@dataclass(frozen=True)
class OwnKeys:
    """The keys of a config.json that Remask reads besides those of the architecture."""

    __pydantic_config__ = STRICT

    mask_token_id: int | None = None
    stop_token_ids: list[int] | None = None
    fill: FillName | None = None
    shift: bool | None = None
    prompt_style: PromptStyle | None = None
    default_decoding: DecodingConfig | None = None
    attention: str | None = None
    corruption: CorruptionName | None = None


@dataclass(frozen=True)
class Facts:
    """Facts are what a checkpoint says of itself.

    corruption: what noise does to tokens (`CorruptionName`). mask_token_id: the token that masks, None where tokens are
    replaced by others. eos_ids: what ends and fills a canvas, the first one filling. stop_ids: all that ends
    a text: the EOS ids, and the token with which the chat template closes a turn. fill: how far answers are extended
    with EOS in training (`usual_fill` where the config is silent). shift: the network's output at i−1 predicts token i.
    prompt_style: which wording of a task's prompt the model was trained on. decoding: settings it was made for.
    attention: which tokens attend to which, as `diffusion.attention.named` reads it.
    """

    mask_token_id: int | None
    eos_ids: tuple[int, ...]
    stop_ids: tuple[int, ...]
    fill: str
    shift: bool
    prompt_style: str
    decoding: dict[str, Any]
    attention: str = "full"
    corruption: CorruptionName = "mask"

    @property
    def mask_id(self) -> int:
        """Return the token that masks. Raises UserError for a model that has none, saying what works with it."""
        return required_mask(self.mask_token_id)


def facts(model: Any, tokenizer: PreTrainedTokenizerBase | None = None, *, where: str = "the model") -> Facts:
    """Read the facts, and write those into the config that only the tokenizer has.

    Raises UserError naming the one that is missing, of the wrong type, or contradicted by the tokenizer.
    """
    config = model.config
    own = {field.name: getattr(config, field.name) for field in fields(OwnKeys) if hasattr(config, field.name)}
    configs.from_dict(OwnKeys, own, where=f"{where}, config.json")
    attention = getattr(config, "attention", None) or "full"
    _refuse_long_blocks(read_attention(attention), getattr(config, "max_position_embeddings", None), where)
    corruption = corruption_of(config)
    if corruption == "mask":
        config.mask_token_id = _mask_id(config, tokenizer, where)
    if not eos_token_ids(config) and tokenizer is not None:
        # An encoder's tokenizer has no EOS: its separator ends a text.
        config.eos_token_id = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if not eos_token_ids(config):
        raise UserError("no EOS token", where=where, mend="set eos_token_id in its config.json")
    if tokenizer is not None and getattr(config, "stop_token_ids", None) is None:
        closing = turn_end(tokenizer)
        config.stop_token_ids = [closing] if closing is not None and closing not in eos_token_ids(config) else []
    if corruption == "uniform":
        known = stop_token_ids(config)
        further = [token for token in _ends_of_generation(model) if token not in known]
        config.stop_token_ids = [*(getattr(config, "stop_token_ids", None) or []), *further]
    size = config.vocab_size
    named = [] if config.mask_token_id is None else [("mask_token_id", config.mask_token_id)]
    named += [("eos_token_id", token) for token in eos_token_ids(config)]
    named += [("stop_token_ids", token) for token in getattr(config, "stop_token_ids", None) or []]
    for name, value in named:
        if not 0 <= value < size:
            raise UserError(
                f"{name} {value} is outside its vocabulary of {size}", where=where, mend="correct it in its config.json"
            )
    if config.mask_token_id in stop_token_ids(config):
        raise UserError(
            f"the mask token {config.mask_token_id} is also what ends a text",
            where=where,
            mend="set mask_token_id and eos_token_id in its config.json to different tokens",
        )
    return Facts(
        config.mask_token_id,
        tuple(eos_token_ids(config)),
        tuple(stop_token_ids(config)),
        str(getattr(config, "fill", None) or usual_fill(read_attention(attention))),
        bool(getattr(config, "shift", False)),
        getattr(config, "prompt_style", None) or "instruct",
        dict(getattr(config, "default_decoding", None) or {}),
        attention,
        corruption,
    )


def corruption_of(config: Any) -> CorruptionName:
    """Return what noise does to a model's tokens: it masks them, or replaces them by uniform ones."""
    found: CorruptionName = getattr(config, "corruption", None) or "mask"
    return found


def mask_token(config: Any) -> int:
    """Return the mask token of a model whose facts have been read. Raises UserError for a model that has none."""
    return required_mask(config.mask_token_id)


def required_mask(token: int | None) -> int:
    """Return a mask token that is there. Raises UserError where there is none, saying what works without."""
    if token is None:
        raise UserError(
            "this model has no mask token: noise replaces its tokens by others, and what was asked for masks them",
            mend="with such a model (DiffusionGemma) use remask generate, remask eval on tasks, and "
            "remask sft --objective diffusion-gemma",
        )
    return token


def _ends_of_generation(model: Any) -> list[int]:
    """What ends a text by the generation config of a model of transformers' own sampler."""
    said = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [] if said is None else list(said) if isinstance(said, list) else [said]


def _refuse_long_blocks(attention: AttentionOf, positions: int | None, where: str) -> None:
    if isinstance(attention, BlockCausal) and positions is not None and attention.block > positions:
        raise UserError(
            f"blocks of {attention.block} tokens, and the model has {positions} positions",
            where=where,
            mend=f"give {positions} or fewer: --model-attention block:32",
        )


def usual_fill(attention: AttentionOf) -> str:
    """Return the usual fill: whole blocks for a block model, else LLaDA's rule: up to the batch's longest row."""
    if not isinstance(attention, BlockCausal):
        return "batch"
    return f"{'block' if attention.alignment == 'row' else 'multiple'}:{attention.block}"


def _mask_id(config: Any, tokenizer: PreTrainedTokenizerBase | None, where: str) -> int:
    in_config = getattr(config, "mask_token_id", None)
    in_tokenizer = None if tokenizer is None else tokenizer.mask_token_id
    if in_config is None and in_tokenizer is None and tokenizer is not None:
        in_tokenizer = tokenizer.get_vocab().get(MASK_TOKENS.get(config.model_type, ""))
    if in_config is None and in_tokenizer is None:
        raise UserError(
            "no mask token",
            where=where,
            mend="set mask_token_id in its config.json, or add one with `remask convert --to-diffusion`",
        )
    if in_config is not None and in_tokenizer is not None and in_config != in_tokenizer:
        raise UserError(
            f"the config's mask_token_id is {in_config}, the tokenizer's mask token is {in_tokenizer}",
            where=where,
            mend="set mask_token_id in its config.json to that of the tokenizer",
        )
    return next(token for token in (in_config, in_tokenizer) if token is not None)


def eos_token_ids(config: Any) -> list[int]:
    """Return the EOS ids of a config, as a list."""
    eos = config.eos_token_id
    return [] if eos is None else list(eos) if isinstance(eos, list | tuple) else [eos]


def first_eos(config: Any) -> int:
    """Return the EOS that fills a canvas."""
    return eos_token_ids(config)[0]


def stop_token_ids(config: Any) -> list[int]:
    """Return every token that ends a text: the EOS ids and the model's further stop tokens."""
    return eos_token_ids(config) + list(getattr(config, "stop_token_ids", None) or [])
