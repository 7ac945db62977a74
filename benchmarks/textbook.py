"""Training and sampling written out plainly: what Remask's speed is a ratio of.

It is what published code did in its first versions; some projects do less today (docs/speed.md says which). Written
from the papers' and repositories' descriptions: logits of every position and of the whole vocabulary,
right-padding to the longest row, two full forwards for GIFT, a sampler that takes float64 probabilities of the whole
canvas at every step and adds float64 Gumbel noise to all of it. The model is the same object that Remask runs.

Shapes: B batch, L length, P prompt, C canvas, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

LossForm = Literal["masked rows", "B V L"]


def pad_rows(rows: Sequence[tuple[list[int], list[int]]], pad: int) -> tuple[Tensor, Tensor]:
    """(ids, response) [B, L] of (prompt, answer) rows."""
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), width), pad)
    response = torch.zeros(ids.shape, dtype=torch.bool)
    for b, (prompt, answer) in enumerate(rows):
        ids[b, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        response[b, len(prompt) : len(prompt) + len(answer)] = True
    return ids, response


def full_logits(model: Any, ids: Tensor, pad: int) -> Tensor:
    """[B, L, V]."""
    return model(input_ids=ids, attention_mask=(ids != pad).long()).logits


def sft_loss(model: Any, ids: Tensor, response: Tensor, rate: Tensor, u: Tensor, form: LossForm, pad: int) -> Tensor:
    """Σ ce/p over the masked tokens, per response token.

    "masked rows" takes the logits of masked places out of the full tensor (LLaDA's guidelines); "B V L" turns the full
    tensor round, takes the loss of every position and multiplies by the mask.
    """
    mask = (u < rate) & response
    logits = full_logits(model, ids.masked_fill(mask, model.config.mask_token_id), pad)
    if form == "masked rows":
        loss = (cross_entropy(logits[mask].float(), ids[mask], reduction="none") / rate[mask]).sum()
    else:
        every = cross_entropy(logits.transpose(1, 2).float(), ids, reduction="none")
        loss = (every * mask / rate.clamp(min=1e-3)).sum()
    return loss / response.sum()


@torch.no_grad()
def gift_rate(model: Any, ids: Tensor, response: Tensor, t: Tensor, pad: int) -> Tensor:
    """p_i from the entropy of every position, all of the response masked: the first of two full forwards."""
    logits = full_logits(model, ids.masked_fill(response, model.config.mask_token_id), pad).float()
    p = logits.softmax(-1)
    beta = (-(p * logits.log_softmax(-1)).sum(-1)).clamp(min=0).sqrt() * response
    mean = beta.sum(-1, keepdim=True) / response.sum(-1, keepdim=True)
    return (1 - (1 - t[:, None]) ** (beta / mean)).clamp(1e-3, 1.0)


@torch.no_grad()
def generate(
    model: Any, prompt: Tensor, *, length: int, steps: int, block: int, temperature: float, generator: torch.Generator
) -> Tensor:
    """The canvas [B, C]: low-confidence remasking, semi-autoregressive blocks, as many tokens a step in every row.

    In float64 what LLaDA's generate.py has in float64: the noise, and the probabilities that say how sure a token is.
    """
    mask_id, P = model.config.mask_token_id, prompt.shape[1]
    x = torch.cat([prompt, prompt.new_full((len(prompt), length), mask_id)], dim=1)
    for start in range(P, P + length, block):
        end = start + block
        of_block = steps // (length // block)
        for step in range(of_block):
            masked = x == mask_id
            left = masked[:, start:end].sum(-1)
            logits = model(input_ids=x).logits
            choice = gumbel_argmax(logits, temperature, generator)
            confidence = logits.double().softmax(-1).gather(-1, choice[..., None])[..., 0]
            confidence = confidence.masked_fill(~masked, -torch.inf)
            confidence[:, end:] = -torch.inf
            for b in range(len(x)):
                count = -(-int(left[b]) // (of_block - step))
                places = confidence[b].topk(count).indices
                x[b, places] = choice[b, places]
    return x[:, P:]


def gumbel_argmax(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """[B, L]: argmax of e^logits / (−log U)^temperature in float64, U over the whole tensor."""
    if temperature == 0:
        return logits.argmax(-1)
    wide = logits.double()
    u = torch.rand(wide.shape, dtype=torch.float64, generator=generator, device=wide.device)
    return (wide.exp() / (-u.log()) ** temperature).argmax(-1)


def coupled_elbo(model: Any, ids: Tensor, response: Tensor, masks: Sequence[Tensor], pad: int) -> Tensor:
    """[B]: each draw's mask and complement in one batch of 2B rows, losses of every position, the mean over draws."""
    n = response.sum(-1)
    total = torch.zeros(len(ids), device=ids.device)
    for mask in masks:
        halves = torch.cat([mask, response & ~mask])
        both = torch.cat([ids, ids])
        logits = full_logits(model, both.masked_fill(halves, model.config.mask_token_id), pad)
        ce = cross_entropy(logits.transpose(1, 2).float(), both, reduction="none") * halves
        weight = (n + 1).repeat(2) / halves.sum(-1).clamp(min=1) / 2
        first, second = (-ce.sum(-1) * weight).chunk(2)
        total += first + second
    return total / len(masks)


def espo_loss(value: Tensor, old: Tensor, reference: Tensor, n: Tensor, advantage: Tensor) -> Tensor:
    """The clipped ratio of whole answers, normalised by their length, and the quadratic KL, from ELBOs [B]."""
    ratio = ((value - old) / n).exp()
    clipped = ratio.clamp(0.8, 1.2)
    kl = (value - reference).square() / 2 / n
    return (0.01 * kl - torch.minimum(ratio * advantage, clipped * advantage)).mean()
