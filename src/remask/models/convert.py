"""From a causal model to a diffusion model, and from an adapter on a base to one merged model."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from remask.diffusion.attention import BlockCausal, named
from remask.errors import UserError
from remask.models.facts import facts, usual_fill
from remask.models.load import load, load_config, load_model, load_tokenizer
from remask.models.lora import is_adapter, merge
from remask.models.registry import convertible_types, is_convertible, model_class

FILL = "multiple:32"
"""The rule by which a converted model's answers are extended with EOS. It has not learned yet to fill longer canvases,
as LLaDA has; filled up to a batch's longest row, about half of all tokens of rows like GSM8K's are EOS."""


def to_diffusion(
    folder: str,
    *,
    shift: bool = True,
    mask_token: str = "<|mask|>",
    dtype: str = "auto",
    attention: str = "full",
    multiple: int = 64,
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Return a causal Llama, Qwen2 or Qwen3 as a diffusion model that is yet to be trained.

    attention: `full` (every token attends to every other), `block:32` (each attends to its block of so many tokens, and
    to those before), or `block:4:causal` (where tokens of finished blocks attend to no later one, as they did). The
    model has a mask token, whose embedding starts as the mean of all others. With `shift` (as Dream and DiffuLLaMA do)
    the output at i−1 goes on predicting token i, as the causal model learned to. Where the vocabulary must grow, it
    grows to a `multiple` of so many tokens, as matrix products on GPUs are faster then. Raises UserError where the
    model is of another family or is a diffusion model already.
    """
    if multiple < 1:
        raise UserError(f"vocabulary_multiple = {multiple}", mend="give 1 or more")
    config = load_config(folder)
    if model_class(config) is not None:
        raise UserError("it is a diffusion model already", where=folder, mend="load it as it is")
    if not is_convertible(config):
        raise UserError(
            f"model type {config.model_type!r} cannot be converted",
            where=folder,
            mend=f"these can: {', '.join(convertible_types())}",
        )
    kind = named(attention)
    config.is_causal, config.shift, config.use_cache = False, shift, False
    if isinstance(kind, BlockCausal):
        config.attention = attention
    tokenizer = load_tokenizer(folder)
    trained_rows = min(len(tokenizer), config.vocab_size)
    if tokenizer.mask_token_id is None:
        known = tokenizer.get_vocab().get(mask_token)
        if not mask_token or (known is not None and known not in tokenizer.added_tokens_decoder):
            raise UserError(
                f"{mask_token!r} is ordinary text to its tokenizer and cannot be the mask token",
                where=folder,
                mend="give another --mask-token",
            )
        tokenizer.add_special_tokens({"mask_token": mask_token})
    config.mask_token_id = tokenizer.mask_token_id
    if getattr(config, "fill", None) is None:
        config.fill = FILL if not isinstance(kind, BlockCausal) else usual_fill(kind)
    model: Any = load_model(folder, dtype=dtype, config=config)
    if tokenizer.mask_token_id >= config.vocab_size:
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=multiple, mean_resizing=False)
        _fill_rows(model, slice(trained_rows, None), trained_rows)
    elif tokenizer.mask_token_id >= trained_rows:  # in the padding of the vocabulary: nothing has trained it
        _fill_rows(model, slice(tokenizer.mask_token_id, tokenizer.mask_token_id + 1), trained_rows)
    facts(model, tokenizer, where=folder)
    return model.eval(), tokenizer


@torch.no_grad()
def _fill_rows(model: Any, new: slice, trained_rows: int) -> None:
    """Set embeddings, and rows of the head, to the mean of the trained ones: no new token is likely then."""
    for rows in {id(w): w for w in (model.get_input_embeddings().weight, model.lm_head.weight)}.values():
        rows[new] = rows[:trained_rows].float().mean(0).to(rows.dtype)


def merged(adapter: str, *, base: str | None = None, dtype: str = "float32") -> tuple[Any, PreTrainedTokenizerBase]:
    """Return the base with the adapter's change added to its weights. Raises UserError where `adapter` is none."""
    if base is None and not is_adapter(adapter):
        raise UserError("no LoRA adapter there", where=adapter, mend="give a folder with adapter_config.json")
    model, tokenizer = load(base or adapter, adapter=adapter if base else None, dtype=dtype, device="cpu")
    return merge(model, where=adapter), tokenizer
