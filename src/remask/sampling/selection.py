"""What to write at a masked position, and how sure the model is of it (docs/theory.md §7).

Shapes: N masked positions of the current blocks, V vocabulary.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from remask.choices import RevealName
from remask.diffusion.token_loss import IMPOSSIBLE, exponential

GROUP = 512
"""About how many tokens' probabilities are added up before the one that was drawn is looked for among them."""


class Proposal(NamedTuple):
    """A token for each position, the probability p(x̂) the model gives it before temperature, and the reveal score."""

    token: Int[Tensor, "N"]
    confidence: Float[Tensor, "N"]
    score: Float[Tensor, "N"]


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
    reveal: RevealName,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    uniform: Float[Tensor, "N"] | None = None,
) -> Proposal:
    """Choose x̂ (argmax, or a sample at `temperature` decided by one `uniform` number) and score it. Overwrites float32
    logits.

    With z = logits − max, the probability outside the likeliest token is added up by itself: p(x̂) = e^z / (1 + others)
    and its kin are exact to float32 rounding of `others`, so that two sure predictions do not both round to 1 and tie.
    Without a model score, `score` is the confidence.
    """
    x = logits.float()
    peak, best = x.max(-1, keepdim=True)
    z = x.sub_(peak)
    if reveal == "entropy":
        z = z.clamp_(min=IMPOSSIBLE)
    e = exponential(z).scatter_(-1, best, 0.0)
    others = e.sum(-1, dtype=torch.float32).double()
    if reveal == "margin":
        score = (1 - e.amax(-1).double()) / (1 + others)
    elif reveal == "entropy":
        score = (e * z).sum(-1).double() / (1 + others) - others.log1p()
    token = best[:, 0]
    if temperature > 0:
        assert uniform is not None
        if temperature == 1 and top_k is None and top_p is None:
            weight = e.scatter_(-1, best, 1.0)
        else:
            weight = exponential(restrict(z / temperature, top_k, top_p), overwrite=True)
        token = drawn(weight, uniform)
    confidence = (z.gather(-1, token[:, None])[:, 0].double() - others.log1p()).exp()
    return Proposal(token, confidence, score if reveal in ("margin", "entropy") else confidence)


def drawn(weight: Float[Tensor, "N V"], uniform: Float[Tensor, "N"]) -> Int[Tensor, "N"]:
    """One token per position, with probability in proportion to its weight: the first whose running sum passes
    `uniform` of the whole. Sums of groups of tokens first, then within one.
    """
    V = weight.shape[-1]
    size = group_size(V)
    weight = pad(weight, (0, -V % size)) if V % size else weight
    groups = weight.unflatten(-1, (-1, size))
    sums = groups.sum(-1).double()
    group, left = _passed(sums, uniform * sums.sum(-1))
    within = groups.take_along_dim(group[:, None, None], dim=1)[:, 0].double()
    place, _ = _passed(within, left)
    return group * size + place


@cache
def group_size(vocabulary: int) -> int:
    """The largest divisor up to GROUP; GROUP itself where that would be small."""
    divisor = max(d for d in range(1, GROUP + 1) if vocabulary % d == 0)
    return divisor if divisor >= GROUP // 8 or vocabulary <= GROUP else GROUP


def _passed(weight: Float[Tensor, "N M"], target: Float[Tensor, "N"]) -> tuple[Int[Tensor, "N"], Float[Tensor, "N"]]:
    """The first place whose running sum passes the target, and how much of the target is its own; where rounding leaves
    none, the last place with any weight.
    """
    running = weight.cumsum(-1)
    last = weight.shape[-1] - 1 - (weight > 0).flip(-1).long().argmax(-1)
    place = torch.minimum(torch.searchsorted(running, target[:, None], right=True)[:, 0], last)
    before = (running - weight).gather(-1, place[:, None])[:, 0]
    return place, target - before
