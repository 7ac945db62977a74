"""What an any-order model really says of an answer: its exact likelihood where all subsets can be read, and bounds.

A model that writes one token at a time, in a uniformly random order σ, gives an answer the probability

    p(x) = E_σ Π_i p(x_σi | x_σ<i)

and the ELBO is the mean over orders of the logarithm instead of the logarithm of the mean (RADD, arXiv 2406.03736).
Both follow from the n·2^(n−1) values log p(x_i | S), S the tokens that are shown. The logarithm of a mean over M drawn
orders lies between the two and rises with M (importance-weighted bounds, arXiv 1509.00519).

What is corruptible but not supervised stays hidden throughout: a part of an answer, written while the rest is masked.

Shapes: B batch, L length, n tokens to be written, M orders. Everything is in nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from remask.diffusion.corruption import Canvas, apply_mask
from remask.diffusion.likelihood import scored_tokens
from remask.diffusion.reader import Reader
from remask.errors import UserError

MOST_TOKENS = 14
"""The most response tokens that `subset_log_p` accepts: they take 16,384 forwards of a row, and two more take four
times as many."""


@dataclass(frozen=True)
class AnyOrder:
    """An exact likelihood over all orders of writing holds two values, in nats.

    log_likelihood: log E_σ Π p. elbo: E_σ Σ log p, which is at most as high.
    """

    log_likelihood: float
    elbo: float


def block_by_block(row: Canvas) -> list[Canvas]:
    """Return one copy of the row for each of its blocks with tokens to write; only that block is to be written in it.

    The row's likelihood is the product of the copies', as each is read in the light of the clean blocks before it.
    `row` is a batch of one.
    """
    if row.block is None:
        return [row]
    written = scored_tokens(row)
    return [replace(row, supervised=written & (row.block == number)) for number in row.block[written].unique()]


@torch.no_grad()
def subset_log_p(reader: Reader, row: Canvas, mask_id: int, *, batch_size: int = 64) -> Float[Tensor, "subsets n"]:
    """Return log p(x_i | prompt and the response tokens in S) for every subset S, 0 where i is in S; bit i of S's
    number says whether i is in it. `row` is a batch of one.

    Raises UserError for a row with no token to write, or more than MOST_TOKENS.
    """
    places = scored_tokens(row)[0].nonzero()[:, 0]
    n = len(places)
    if not 1 <= n <= MOST_TOKENS:
        raise UserError(f"{n} tokens to write", mend=f"subsets are written out for 1 to {MOST_TOKENS}")
    shown = (torch.arange(2**n)[:, None] >> torch.arange(n)) & 1 > 0
    found = torch.zeros(2**n, n, dtype=torch.float64)
    for part in torch.arange(2**n - 1).split(batch_size):  # the last shows all and scores nothing
        mask = torch.zeros(len(part), row.ids.shape[1], dtype=torch.bool, device=row.ids.device)
        mask[:, places] = ~shown[part].to(mask.device)
        losses = _losses(reader, row, mask, mask, mask_id)
        found[part] = found[part].masked_scatter(~shown[part], -losses.double().cpu())
    return found


def exact(log_p: Float[Tensor, "subsets n"]) -> AnyOrder:
    """Compute both sums over all n! orders, by subsets from the full one down. What a subset shows is all that matters
    of the order in which its tokens were written.
    """
    n = log_p.shape[1]
    numbers = torch.arange(2**n)
    shown = (numbers[:, None] >> torch.arange(n)) & 1 > 0
    sizes = shown.sum(-1)
    likelihood = torch.zeros(2**n, dtype=torch.float64)
    mean = torch.zeros_like(likelihood)
    for size in range(n - 1, -1, -1):
        members = numbers[sizes == size]
        hidden = ~shown[members]
        after = members[:, None] | (1 << torch.arange(n))
        onward = (log_p[members] + likelihood[after]).masked_fill(~hidden, -torch.inf)
        likelihood[members] = onward.logsumexp(-1) - math.log(n - size)
        mean[members] = ((log_p[members] + mean[after]) * hidden).sum(-1) / (n - size)
    return AnyOrder(likelihood[0].item(), mean[0].item())


def drawn_orders(count: int, n: int, generator: torch.Generator) -> Int[Tensor, "M n"]:
    """Draw `count` uniformly random orders of n tokens."""
    return torch.rand(count, n, generator=generator).argsort(-1)


@torch.no_grad()
def order_log_p(
    reader: Reader, row: Canvas, mask_id: int, orders: Int[Tensor, "M n"], *, batch_size: int = 64
) -> Float[Tensor, "M"]:
    """Return Σ_i log p(x_σi | x_σ<i) for each order σ, in n forwards of one row each. `row` is a batch of one."""
    places = scored_tokens(row)[0].nonzero()[:, 0]
    count, n = orders.shape
    rank = orders.argsort(-1)  # [M, n]: when each token is written
    jobs = torch.cartesian_prod(torch.arange(count), torch.arange(n)).reshape(-1, 2)
    total = torch.zeros(count, dtype=torch.float64)
    for part in jobs.split(batch_size):
        when = rank[part[:, 0]]
        mask = torch.zeros(len(part), row.ids.shape[1], dtype=torch.bool, device=row.ids.device)
        one = torch.zeros_like(mask)
        mask[:, places] = (when >= part[:, 1:]).to(mask.device)
        one[:, places] = (when == part[:, 1:]).to(mask.device)
        losses = _losses(reader, row, mask, one, mask_id)
        total.index_add_(0, part[:, 0], -losses.double().cpu())
    return total


def multi_sample_bound(log_p: Sequence[float] | Tensor) -> float:
    """Return log (1/M) Σ_m p_σm, which is at most log p(x) in expectation; for M = 1 it is an unbiased estimate of the
    ELBO.
    """
    values = torch.as_tensor(log_p, dtype=torch.float64)
    return (values.logsumexp(0) - math.log(len(values))).item()


def _losses(
    reader: Reader, row: Canvas, mask: Bool[Tensor, "S L"], scored: Bool[Tensor, "S L"], mask_id: int
) -> Float[Tensor, "N"]:
    """−log p at the scored places of S readings of the row, each with its mask."""
    hidden = mask | (row.corruptible & ~row.supervised)
    rows = row.repeat(len(mask))
    return reader.losses(apply_mask(rows.ids, hidden, mask_id), rows, scored)
