"""Classifier-free guidance: away from what the model would write without the prompt (LLaDA's rule).

Shapes: b rows, N chosen positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


def guided_logits(
    model: nn.Module,
    ids: Int[Tensor, "b L"],
    attended: Int[Tensor, "b L"],
    positions: Bool[Tensor, "b L"],
    *,
    prompt_length: int,
    mask_id: int,
    guidance: float,
) -> Float[Tensor, "N V"]:
    """u + (w+1)(c − u): c with the prompt, u with every prompt token masked, in one forward of both."""
    blank: Any = ids.clone()
    blank[:, :prompt_length] = mask_id
    both = torch.cat([ids, blank])
    logits = model(input_ids=both, attention_mask=attended.repeat(2, 1), positions=positions.repeat(2, 1)).logits
    conditional, unconditional = logits.chunk(2)
    return unconditional + (guidance + 1) * (conditional - unconditional)
