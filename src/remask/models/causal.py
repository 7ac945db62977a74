"""Causal models as they are: what a diffusion model may be taught by. They write from left to right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerBase

from remask.chat_template import Message, template_of, turn_end
from remask.errors import UserError, first_line
from remask.models.gguf import gguf_file, gguf_weights
from remask.models.load import load_config, load_tokenizer, quiet_transformers, torch_dtype
from remask.models.registry import model_class


def load_causal(folder: str, *, dtype: str = "auto", device: str = "cpu") -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a causal model and its tokenizer from a hub id, a folder or a GGUF file.

    Of the checkpoint's settings for generation only the tokens that end an answer are kept: `written` says the others.
    Raises UserError where it is a diffusion model, has no chat template, or cannot be read.
    """
    config = load_config(folder)
    if model_class(config) is not None:
        raise UserError("it is a diffusion model, not a causal one", where=folder, mend="give the causal original")
    tokenizer = load_tokenizer(folder)
    if not tokenizer.chat_template:
        raise UserError("it has no chat template", where=folder, mend="give an instruction-tuned model")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    stored = gguf_file(folder)
    number_kind = torch_dtype(dtype)
    keywords: dict[str, Any] = {"dtype": number_kind}
    if stored is not None:
        keywords["state_dict"] = gguf_weights(stored, config, None if dtype == "auto" else number_kind)
    try:
        with quiet_transformers():
            if stored is None:
                model = AutoModelForCausalLM.from_pretrained(folder, config=config, **keywords)
            else:
                with torch.device("meta"):
                    kind = type(AutoModelForCausalLM.from_config(config))
                model = kind.from_pretrained(None, config=config, **keywords)
    except Exception as error:  # readers of damaged files raise errors of many kinds
        raise UserError(
            f"its weights cannot be read ({first_line(error)})", where=folder, mend="download or save it again"
        ) from error
    said = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, turn_end(tokenizer), *(said if isinstance(said, list) else [said])} - {None}
    model.generation_config = GenerationConfig(eos_token_id=sorted(ends), pad_token_id=tokenizer.pad_token_id)
    return model.to(device).eval(), tokenizer


@torch.no_grad()
def written(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> list[str | None]:
    """Return a causal model's answer to each conversation, None where it did not end within `max_new_tokens`.

    temperature 0 takes the likeliest token each time; above it, tokens are drawn with `seed`. Raises UserError where
    the chat template refuses a conversation.
    """
    template = template_of(tokenizer)
    prompts = [template.ids(template.render(one, opened=True)) for one in conversations]
    given = tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(model.device)
    settings: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        settings = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), quiet_transformers():
        torch.manual_seed(seed)
        ids = model.generate(
            **given,
            max_new_tokens=max_new_tokens,
            use_cache=True,
            **settings,
        )
    ends, answers = set(model.generation_config.eos_token_id), list[str | None]()
    for row in ids[:, given["input_ids"].shape[1] :].tolist():
        end = next((place for place, token in enumerate(row) if token in ends), None)
        answers.append(None if end is None else tokenizer.decode(row[:end], skip_special_tokens=True).strip())
    return answers
