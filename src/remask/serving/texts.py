"""Text of a canvas that may be shown: what is final of it, what of that is new, and the probabilities of its tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from remask.data.chat import decode_text
from remask.serving.jobs import Finished, Progress

HALF_A_CHARACTER = "\ufffd"
"""What a tokenizer writes for bytes that are not yet a whole character."""


@dataclass(frozen=True)
class Reader:
    """Reads canvases. stop_ids: tokens that end a text. stops: texts that it ends before."""

    tokenizer: PreTrainedTokenizerBase
    stop_ids: frozenset[int]
    stops: tuple[str, ...] = ()
    known: dict[int, str] = field(default_factory=dict)
    """Texts of tokens that were asked for: every step of a canvas asks for all of them anew."""

    def text(self, ids: Sequence[int]) -> tuple[str, bool]:
        """Return the text before the first stop token and before the first text to stop at, and whether the latter is
        there.
        """
        text = decode_text(self.tokenizer, ids, list(self.stop_ids))
        ends = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        return (text[: min(ends)], True) if ends else (text, False)

    def settled(self, progress: Progress) -> str:
        """Return the text that no later step can change. The beginning of what may become a text to stop at is kept
        back, and so is half a character.
        """
        text, stopped = self.text(progress.tokens[: progress.settled])
        if stopped:
            return text
        text = text.rstrip(HALF_A_CHARACTER)
        kept_back = max((_overlap(text, stop) for stop in self.stops), default=0)
        return text[: len(text) - kept_back]

    def has_stopped(self, progress: Progress) -> bool:
        """Return whether a text to stop at is in what is settled."""
        return self.text(progress.tokens[: progress.settled])[1]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return each token's text by itself."""
        for token in ids:
            if token not in self.known:
                self.known[token] = self.tokenizer.decode([token])
        return [self.known[token] for token in ids]

    def tokens_of_text(self, finished: Finished) -> int:
        """Return how many tokens the text has that is sent, the one that ends it included."""
        text, stopped = self.text(finished.row.token_ids)
        if not stopped:
            return finished.tokens
        ids = finished.row.token_ids
        return next(n for n in range(1, len(ids) + 1) if len(self.tokenizer.decode(ids[:n])) > len(text))

    def probabilities(self, finished: Finished) -> list[dict[str, Any]]:
        """Return for each token of the text, as far as it is sent: itself, its bytes, and the logarithm of the
        probability that the model gave it when it was written (at temperature 1, over all tokens).
        """
        count = self.tokens_of_text(finished)
        ids, confidence = finished.row.token_ids[:count], finished.row.confidence[:count]
        known = [(token, p) for token, p in zip(ids, confidence, strict=True) if token not in self.stop_ids]
        return [
            {
                "token": text,
                "logprob": math.log(p) if p > 0 else -9999.0,
                "bytes": list(text.encode()),
                "top_logprobs": [],
            }
            for text, (_, p) in zip(self.pieces([token for token, _ in known]), known, strict=True)
        ]


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of a text are the first ones of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
