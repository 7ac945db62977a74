"""The tokenizer of a GGUF file: vocabulary and merges are stored, how text is split before them is but named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import PreTrainedTokenizerFast

from remask.errors import UserError, first_line
from remask.models.gguf import read_gguf


def splits() -> dict[str, Any]:
    """Return the ways to split text that transformers does not know, by llama.cpp's names for them.

    `smollm`: every digit by itself, and the rest as GPT-2 splits it (SmolLM2's tokenizer.json). `gpt-2`: as GPT-2.
    """
    return {
        "smollm": Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]),
        "gpt-2": ByteLevel(add_prefix_space=False),
    }


def gguf_tokenizer(path: Path) -> Any:
    """Return the tokenizer that a file holds, as transformers reads it; not for files beside which there is one.

    Raises UserError where the file does not say how text is split before it is merged into tokens: it has but a name
    for that.
    """
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    stored = read_gguf(path)
    mend = "put the tokenizer.json and tokenizer_config.json of the model that it was made from beside it"
    kind, split = (stored.metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    own = splits()
    if kind != "llama" and (kind != "gpt2" or (split not in GGUF_PRE_TOKENIZER_SPLITS and split not in own)):
        raise UserError(
            f"its tokenizer is of a kind that cannot be made from the file (model {kind!r}, pre {split!r})",
            where=str(path),
            mend=mend,
        )
    try:
        architecture, vocabulary, settings = get_gguf_tokenizer(str(path))
        made, _ = convert_gguf_tokenizer(architecture, vocabulary)
        if kind == "gpt2" and split in own:
            made.pre_tokenizer = own[split]
        mask = stored.metadata.get("tokenizer.ggml.mask_token_id")
        if mask is not None:
            settings["mask_token"] = vocabulary["tokens"][mask]
        return PreTrainedTokenizerFast(tokenizer_object=made, **settings)
    except Exception as error:  # of a damaged file
        raise UserError(f"its tokenizer cannot be read ({first_line(error)})", where=str(path), mend=mend) from error
