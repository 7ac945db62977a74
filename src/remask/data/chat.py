"""From messages to token ids: where the prompt ends is where the response starts, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from remask.data.sources import Message
from remask.errors import UserError


class Encoded(NamedTuple):
    """Token ids of a prompt (the assistant's header included) and of its response (its closing token included)."""

    prompt: list[int]
    response: list[int]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, prefill: str = "") -> list[int]:
    """The ids a model continues from. Without a chat template the turns' texts are joined by newlines.

    `prefill` is what the answer begins with.
    """
    return tokenizer.encode(
        _prompt_text(tokenizer, messages) + prefill, add_special_tokens=tokenizer.chat_template is None
    )


def encode(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], completion: str, *, where: str) -> Encoded:
    """Prompt and response ids. The two are tokenised apart, so no token straddles them.

    Raises UserError where the chat template rewrites the conversation so that the prompt is no prefix of the whole.
    """
    prompt = encode_prompt(tokenizer, messages)
    if tokenizer.chat_template is None:
        eos = tokenizer.eos_token_id
        return Encoded(prompt, tokenizer.encode(completion, add_special_tokens=False) + ([] if eos is None else [eos]))
    head = _prompt_text(tokenizer, messages)
    whole = tokenizer.apply_chat_template(
        [*messages, {"role": "assistant", "content": completion}], tokenize=False, add_generation_prompt=False
    )
    if not whole.startswith(head):
        raise UserError(
            "the chat template changes the prompt once the answer is there",
            where=where,
            mend="use a template whose generation prompt is a prefix of the full conversation",
        )
    return Encoded(prompt, tokenizer.encode(whole[len(head) :], add_special_tokens=False))


def _prompt_text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    if tokenizer.chat_template is None:
        return "\n".join(message["content"] for message in messages) + "\n"
    return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)


def decode_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stop_ids: Sequence[int]) -> str:
    """The text before the first stop token."""
    kept = list(ids)
    for place, token in enumerate(kept):
        if token in stop_ids:
            kept = kept[:place]
            break
    return tokenizer.decode(kept, skip_special_tokens=True)
