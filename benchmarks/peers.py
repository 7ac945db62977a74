"""What other projects compute, one function for each project and operation: what Remask's speed is a ratio of.

Each is written in this project's own words from the public code that its docstring names: shapes, precisions, positions
and number of forward passes are that code's; the model is the object that Remask runs, with Remask's own layers. So a
ratio compares what is computed around the model, not models. Two things are better here than as published: rows are as
long as the batch's longest (d1 and LIFT pad them to 4,096 tokens), and nothing is logged.

The projects' code was read in November 2026; a commit is that of the file. d1's SFT and Fast-dLLM's v1 were read in
forks, as no copy of the projects' own files was at hand.

Shapes: B rows, P prompt, C canvas, L = P + C, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

IGNORED = -100
"""The label of a position without loss in PyTorch's cross-entropy. Its logits take part in the softmax all the same."""


def trainer_logits(model: Any, ids: Tensor, *, autocast: bool) -> Tensor:
    """Logits [B, L, V] of a model under transformers' Trainer with `bf16=True`, without an attention mask.

    Under accelerate (1.15, `Accelerator.prepare_model`) the forward pass is autocast to bfloat16 and all of the logits
    are turned to float32. DeepSpeed does neither: they stay in the model's precision.
    """
    if not autocast:
        return model(input_ids=ids).logits
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=half(model)):
        logits = model(input_ids=ids).logits
    return logits.float()


def half(model: Any) -> bool:
    """Whether its weights are in half precision; a model in float32 serves to compare results, not times."""
    return next(model.parameters()).dtype in (torch.bfloat16, torch.float16)


# Fine-tuning: ids and response [B, L], the EOS that fills rows included; time t [B]; u [B, L] draws the mask.


def dllm_sft_loss(model: Any, ids: Tensor, response: Tensor, t: Tensor, u: Tensor) -> Tensor:
    """dllm (ZHZisZZ/dllm), dllm/core/trainers/mdlm.py at 0900026, as examples/llada/sft.py runs it.

    Losses of every position from logits turned round to [B, V, L], in float32 by accelerate; times 1/t and the mask,
    divided by the number of response tokens. The EOS that fills rows is learned, and attended to.
    """
    mask = (u < t[:, None]) & response
    logits = trainer_logits(model, ids.masked_fill(mask, model.config.mask_token_id), autocast=True)
    losses = cross_entropy(logits.transpose(1, 2), ids, reduction="none")
    return (losses * (1 / t[:, None]) * mask / response.sum()).sum()


def d1_sft_loss(model: Any, ids: Tensor, response: Tensor, t: Tensor, u: Tensor, *, autocast: bool) -> Tensor:
    """d1 (dllm-reasoning/d1), SFT/sft_trainer.py as in adeerkhan/d1 at 44e3187, and LIFT (divelab/LIFT),
    SFT/sft_trainer.py at b2cacc0 (`vanilla_sft_loss_old`), which compute the same.

    Losses from logits flattened to [B·L, V], of all positions but for their labels; divided by t and by the number of
    response tokens, the EOS that fills rows included. Both are launched under DeepSpeed's ZeRO-2
    (SFT/ddp_config.yaml), without `autocast`; a plain start of the script has it.
    """
    mask = (u < t[:, None]) & response
    logits = trainer_logits(model, ids.masked_fill(mask, model.config.mask_token_id), autocast=autocast)
    return (labelled_losses(logits, ids, mask) / t[:, None]).sum() / response.sum()


def lift_gift_loss(
    model: Any, ids: Tensor, response: Tensor, t: Tensor, u: Tensor, *, autocast: bool = False
) -> Tensor:
    """GIFT in LIFT (divelab/LIFT), SFT/sft_trainer.py at b2cacc0 (`gift_loss`).

    Two passes. The first, without gradient and with the whole answer masked: entropies of all positions from full
    logits in their own precision, and rates 1 − (1 − t)^(√H/mean) that no floor holds, the mean over the batch's answer
    tokens. Here the EOS that fills rows is attended to and not learned. Then losses of all positions over these rates,
    divided by the number of masked tokens.
    """
    config = model.config
    answer = response & (ids != config.pad_token_id)
    with torch.no_grad():
        log_p = trainer_logits(model, ids.masked_fill(answer, config.mask_token_id), autocast=autocast).log_softmax(-1)
        beta = (log_p.exp() * log_p).sum(-1).neg().clamp(min=0).sqrt()
        rate = 1 - (1 - t[:, None]).pow(beta / beta[answer].mean())
    mask = (u < rate) & answer
    logits = trainer_logits(model, ids.masked_fill(mask, config.mask_token_id), autocast=autocast)
    return (labelled_losses(logits, ids, mask) / rate).sum() / mask.sum()


def labelled_losses(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """[B, L]: the losses where masked, in the logits' precision, and 0 elsewhere."""
    labels = ids.masked_fill(~mask, IGNORED)
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(ids.shape)


# Sampling: an answer of `length` tokens to each row of prompt [B, P], in blocks of `block`, in `steps` for all blocks.


def even_counts(masks: int, steps: int) -> list[int]:
    """How many of a block's masks each of its steps writes: the first ones take what is left over."""
    return [masks // steps + (step < masks % steps) for step in range(steps)]


def noisy(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """What the token is the argmax of, in all three samplers: at temperature 0 the logits, else e^logits over
    (−log U)^temperature, in float64, for the whole tensor.
    """
    if temperature == 0:
        return logits
    wide = logits.double()
    u = torch.rand(wide.shape, dtype=torch.float64, generator=generator, device=wide.device)
    return wide.exp() / (-u.log()) ** temperature


@torch.no_grad()
def llada_generate(
    model: Any, prompt: Tensor, *, length: int, steps: int, block: int, temperature: float, generator: torch.Generator
) -> Tensor:
    """LLaDA (ML-GSAI/LLaDA), generate.py since f51cb17 (June 2025), read in generate_optimized.py at e5ff6fd, whose
    original path it is; and dllm (ZHZisZZ/dllm), dllm/core/samplers/mdlm.py at 13ba372, which computes the same for
    prompts of one length.

    At every step the logits of the whole canvas and prompt, an argmax over all of them, a softmax of all of them in the
    logits' own precision, and each row's most probable tokens of the block are written. Returns the canvas [B, C].
    """
    mask_id, P = model.config.mask_token_id, prompt.shape[1]
    x = torch.cat([prompt, prompt.new_full((len(prompt), length), mask_id)], dim=1)
    for start in range(P, P + length, block):
        end = start + block
        for count in even_counts(block, steps // (length // block)):
            logits = model(input_ids=x).logits
            token = noisy(logits, temperature, generator).argmax(-1)
            confidence = logits.softmax(-1).gather(-1, token[..., None])[..., 0]
            confidence[:, end:] = -torch.inf
            masked = x == mask_id
            confidence = torch.where(masked, confidence, -torch.inf)
            chosen = torch.zeros_like(masked)
            for b in range(len(x)):
                chosen[b, confidence[b].topk(count).indices] = True
            x[chosen] = token[chosen]
    return x[:, P:]


@torch.no_grad()
def fast_dllm_generate(
    model: Any,
    prompt: Tensor,
    *,
    length: int,
    steps: int,
    block: int,
    temperature: float,
    generator: torch.Generator,
    cache: Literal["none", "prefix", "dual"] = "none",
) -> Tensor:
    """Fast-dLLM (NVlabs/Fast-dLLM), v1/llada/generate.py as in kookhh0827/Fast-dLLM at 1da6c13: `generate`,
    `generate_with_prefix_cache` and `generate_with_dual_cache`, a fixed number of tokens a step.

    Probabilities in float64 of all positions that were computed, whose order is sorted. Those are: without a cache, the
    prompt and all of the canvas; with one, the same at a block's first step, and from then on all from the block on
    (`prefix`, which computes the noise and its argmax twice) or the block alone (`dual`). Returns the canvas [B, C].
    """
    mask_id, P = model.config.mask_token_id, prompt.shape[1]
    x = torch.cat([prompt, prompt.new_full((len(prompt), length), mask_id)], dim=1)
    for start in range(P, P + length, block):
        end, kept = start + block, Kept()
        for step, count in enumerate(even_counts(block, steps // (length // block))):
            part = slice(0, None) if step == 0 or cache == "none" else slice(start, end if cache == "dual" else None)
            logits = model(**({"input_ids": x} if cache == "none" else kept.inputs(x, part))).logits
            if cache == "prefix" and step > 0:
                noisy(logits, temperature, generator).argmax(-1)
            token = noisy(logits, temperature, generator).argmax(-1)
            confidence = logits.double().softmax(-1).gather(-1, token[..., None])[..., 0]
            here = x == mask_id
            here[:, end:] = False
            here = here[:, part]
            order = torch.where(here, confidence, torch.finfo(torch.float64).min).sort(dim=1, descending=True).indices
            first = (torch.arange(order.shape[1], device=x.device) < count).expand(order.shape)
            chosen = torch.zeros_like(here).scatter(1, order, first) & here
            x[:, part] = torch.where(chosen, token, x[:, part])
    return x[:, P:]


@torch.no_grad()
def sdar_generate(model: Any, prompt: Tensor, *, length: int, steps: int, block: int) -> Tensor:
    """SDAR (JetAstra/SDAR), generate.py at 59549b1: `block_diffusion_generate`, a fixed number of tokens a step, which
    are the likeliest; the draw of each token, for which it has no temperature 0, is the likeliest one.

    Blocks are counted from the prompt's first token. Of each block all logits are turned into probabilities, in the
    model's precision; a finished block is read once more, for its keys and values. Returns the answer [1, length].
    """
    mask_id, P = model.config.mask_token_id, prompt.shape[1]
    x = torch.cat([prompt, prompt.new_full((1, -(P + length) % block + length), mask_id)], dim=1)
    kept, begun = Stored(block), P // block * block
    if begun:
        model(**kept.inputs(x, 0, begun, store=True))
    for start in range(begun, x.shape[1], block):
        end, before = start + block, int((x[:, start : start + block] != mask_id).sum())
        counts = even_counts(block, steps * block // length)
        for count in counts:
            here = x[:, start:end] == mask_id
            if not here.any():
                break
            probability = model(**kept.inputs(x, start, end)).logits.softmax(-1)
            token = probability.argmax(-1, keepdim=True)
            confidence = torch.where(here, probability.gather(-1, token)[..., 0], -torch.inf)
            chosen = torch.zeros_like(here).scatter(1, confidence.topk(min(count, block - before)).indices, True) & here
            x[:, start:end] = torch.where(chosen, token[..., 0], x[:, start:end])
        model(**kept.inputs(x, start, end, store=True))
    return x[:, P : P + length]


class Stored:
    """Keys and values [B, H, k, d] of finished blocks, as a growing cache of transformers holds them."""

    def __init__(self, block: int) -> None:
        self.block, self.store = block, False
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def inputs(self, x: Tensor, start: int, end: int, *, store: bool = False) -> dict[str, Any]:
        """What the model is given to compute these columns of the rows [B, L] behind those that are stored."""
        self.store = store
        places = torch.arange(end, device=x.device)
        mask = places[None, :] // self.block <= places[start:, None] // self.block
        return {
            "input_ids": x[:, start:end],
            "position_ids": places[start:].expand(len(x), -1),
            "attention_mask": mask.expand(len(x), 1, -1, -1),
            "past_key_values": self,
        }

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        found = key, value
        if layer_idx in self.layers:
            keys, values = self.layers[layer_idx]
            found = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
        if self.store:
            self.layers[layer_idx] = found
        return found


class Kept:
    """Keys and values [B, H, L, d] of each layer, of the last pass that computed them: attention's cache. Passes
    have the same mask, true everywhere, as those of Remask's cache.
    """

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []
        self.part = slice(0, None)

    def inputs(self, x: Tensor, part: slice) -> dict[str, Any]:
        """What the model is given to compute this part of the rows [B, L]."""
        self.part = part
        B, L = x.shape
        places = torch.arange(L, device=x.device)[part].expand(B, -1)
        return {
            "input_ids": x[:, part],
            "position_ids": places,
            "attention_mask": torch.ones(B, 1, places.shape[1], L, dtype=torch.bool, device=x.device),
            "past_key_values": self,
        }

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if layer_idx == len(self.layers):
            self.layers.append((key, value))
        else:
            for kept, new in zip(self.layers[layer_idx], (key, value), strict=True):
                kept[:, :, self.part] = new
        return self.layers[layer_idx]


# Policy optimisation: ids [B, L] whose last C tokens are the answers; a mask [B, C] a draw.


def espo_elbo(model: Any, ids: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """[B]. ESPO (ML-GSAI/ESPO), espo/espo_trainer.py at fdac97d: `_get_elbo` with `reduce_var` and `_get_elbo_mc`.

    A draw is two forward passes of B rows without an attention mask, one with the mask and one with its complement, on
    CUDA autocast to bfloat16: logits of all positions, then losses of the masked ones in the logits' precision, each
    over k/(C+1) of its pass's k masks, halved. The mean over the draws; their graphs are kept for one backward pass.
    """
    return torch.stack([espo_draw(model, ids, mask) for mask in masks]).mean(0)


def espo_draw(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """[B]: the ELBO by one draw."""
    C = mask.shape[1]
    answer, prompt = ids[:, -C:], ids[:, :-C]
    losses = torch.zeros(mask.shape, device=ids.device)
    share = mask.sum(-1, keepdim=True).expand(mask.shape) / (C + 1)
    for hidden, of_pass in ((mask, share), (~mask, C / (C + 1) - share)):
        noised = torch.cat([prompt, answer.masked_fill(hidden, model.config.mask_token_id)], dim=1)
        with torch.autocast("cuda", torch.bfloat16, enabled=ids.is_cuda and half(model)):
            logits = model(input_ids=noised).logits
        losses[hidden] = cross_entropy(logits[:, -C:][hidden], answer[hidden], reduction="none") / of_pass[hidden]
    return -(losses / 2).sum(-1)


def espo_loss(value: Tensor, old: Tensor, reference: Tensor, length: int, advantage: Tensor) -> Tensor:
    """ESPO (ML-GSAI/ESPO), espo/espo_trainer.py at fdac97d, `compute_loss`: from ELBOs and advantages [B] of answers of
    `length` tokens, the clipped ratio of whole answers (epsilon 0.2) and k2 (beta 0.01, recipes/train.yaml).
    """
    ratio = ((value - old) / length).exp()
    gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    return (-gain + 0.01 * (value - reference).square() / 2 / length).mean()
