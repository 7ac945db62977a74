"""What to write at a masked position, and how sure the model is of it (methods §6).

Shapes: N masked positions of the current blocks, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

RevealRule = Literal["confidence", "margin", "entropy", "random", "left_to_right"]
CHUNK_ELEMENTS = 1 << 24
"""Largest float64 copy made of logits: 128 MiB."""


class Proposal(NamedTuple):
    """A token for each position, the probability p(x̂) the model gives it before temperature, and the reveal score."""

    token: Int[Tensor, "N"]
    confidence: Float[Tensor, "N"]
    score: Float[Tensor, "N"]


def _confidence(log_p: Tensor, token: Tensor) -> Tensor:
    """p(x̂)."""
    return log_p.gather(-1, token[:, None])[:, 0].exp()


def _margin(log_p: Tensor, token: Tensor) -> Tensor:
    """p₁ − p₂, the two likeliest tokens."""
    top = log_p.topk(2, dim=-1).values.exp()
    return top[:, 0] - top[:, 1]


def _entropy(log_p: Tensor, token: Tensor) -> Tensor:
    """−H."""
    return -torch.special.entr(log_p.exp()).sum(-1)


MODEL_SCORES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "confidence": _confidence,
    "margin": _margin,
    "entropy": _entropy,
}
"""Scores read from the prediction; `random` and `left_to_right` are drawn or counted by the loop."""


def restrict(logits: Float[Tensor, "N V"], top_k: int | None, top_p: float | None) -> Float[Tensor, "N V"]:
    """Leave only the top_k likeliest tokens, then the fewest of them that hold top_p of the probability; others −∞."""
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p is not None and top_p < 1.0:
        ranked, order = logits.sort(dim=-1, descending=True)
        p = ranked.softmax(-1)
        beyond = p.cumsum(-1) - p >= top_p  # the mass before a token already reaches top_p
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter_(1, order, beyond), -torch.inf)
    return logits


def propose(
    logits: Float[Tensor, "N V"],
    reveal: RevealRule,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    gumbel: Callable[[int, int], Float[Tensor, "n V"]] | None = None,
    counts: Sequence[int] | None = None,
) -> Proposal:
    """Choose x̂ (argmax, or a sample at `temperature` by the Gumbel trick) and score it.

    Probabilities are float64: a sure model's scores would otherwise all round to 1 and tie. `gumbel(start, stop)` gives
    the noise of rows start..stop and is needed above temperature 0. `counts` are the positions of each row:
    they decide where chunks end. Without a model score, `score` is the confidence.
    """
    rows = max(1, CHUNK_ELEMENTS // logits.shape[-1])
    tokens, confidences, scores = [], [], []
    for start, stop in _parts(counts or [logits.shape[0]], rows):
        part = logits[start:stop]
        log_p = part.double().log_softmax(-1)
        if temperature > 0:
            assert gumbel is not None
            scaled = restrict(part.float() / temperature, top_k, top_p)
            token = (scaled + gumbel(start, stop)).argmax(-1)
        else:
            token = part.argmax(-1)
        confidence = _confidence(log_p, token)
        tokens.append(token)
        confidences.append(confidence)
        scores.append(MODEL_SCORES[reveal](log_p, token) if reveal in MODEL_SCORES else confidence)
    return Proposal(torch.cat(tokens), torch.cat(confidences), torch.cat(scores))


def _parts(counts: Sequence[int], limit: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of parts of at most `limit` positions: whole rows together, a longer row cut from its own start.

    A generator on CUDA gives other numbers when one draw is cut in two, so a row must be cut alike in every batch.
    """
    start = stop = 0
    for count in counts:
        for piece in [limit] * (count // limit) + [count % limit] * (count % limit > 0):
            if stop - start + piece > limit:
                yield start, stop
                start = stop
            stop += piece
    if stop > start:
        yield start, stop
