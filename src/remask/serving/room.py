"""How many tokens may be at work at once: what a token takes, measured in two forwards, and what memory is free.

Besides the forward, a row with a cache keeps keys and values for each of its tokens.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from remask.diffusion.attention import BlockCausal
from remask.diffusion.blocks import attention_of
from remask.memory import free_bytes
from remask.models.unchanged import weights_unchanged

FEW, MANY = 128, 512
"""Tokens of the two forwards whose difference is measured."""
SHARE = 0.8
"""The share of the free memory that answers may take."""
MOST = 1 << 20
"""The most tokens that are taken at once, whatever there is room for."""
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Room:
    """Room for answers. a_token: bytes that a token at work takes. free: bytes that are free. tokens: that fit."""

    a_token: int
    free: int
    tokens: int


def measured(model: Any) -> Room:
    """Return the room that a loaded model leaves, after two forwards of random tokens."""
    device = model.device
    with weights_unchanged(model, at_once=True):
        _peak_of(model, FEW)  # what is only made once is not counted
        few, many = _peak_of(model, FEW), _peak_of(model, MANY)
        free = free_bytes(device)
    computed = max(0, many - few) // (MANY - FEW) if few and many else 0
    a_token = max(computed, _activations(model)) + _kept(model)
    return Room(a_token, free, max(1, min(MOST, int(SHARE * free) // a_token)))


@torch.no_grad()
def _peak_of(model: Any, tokens: int) -> int:
    """Bytes in use at the height of a forward that is asked for proposals at half of its places; 0 where unknown."""
    device, config = model.device, model.config
    limit = getattr(config, "max_position_embeddings", None) or tokens
    length = min(limit, tokens)
    attention = attention_of(model)
    if isinstance(attention, BlockCausal):
        length = max(1, length // attention.block) * attention.block
    rows = -(-tokens // length)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (rows, length), generator=generator).to(device)
    positions = torch.zeros_like(ids, dtype=torch.bool)
    positions[:, length // 2 :] = True
    _reset_peak(device)
    model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        positions=positions,
        look=lambda logits, part: (logits.argmax(-1),),
    )
    return _peak(device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        RESET.write_text("5")


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError, StopIteration, ValueError):
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return 0


def _activations(model: Any) -> int:
    """What a token takes at the least: a few hidden states, and the feed-forward part of one layer."""
    config, size = model.config, next(model.parameters()).element_size()
    wide = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    return int(size * (6 * config.hidden_size + 2 * wide))


def _kept(model: Any) -> int:
    """Keys and values of a token in all layers."""
    config, size = model.config, next(model.parameters()).element_size()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * size)
