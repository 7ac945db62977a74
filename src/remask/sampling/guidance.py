"""Classifier-free guidance: away from what the model would write without the prompt (LLaDA's rule).

Shapes: b rows, N chosen positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from remask.diffusion.head import Look, look_at


@torch.no_grad()
def guided(
    model: nn.Module,
    ids: Int[Tensor, "b L"],
    attended: Int[Tensor, "b L"],
    positions: Bool[Tensor, "b L"],
    look: Look,
    *,
    prompt_length: int,
    mask_id: int,
    guidance: float,
) -> tuple[Tensor, ...]:
    """What `look` says of u + (w+1)(c − u): c with the prompt, u with every prompt token masked, in one forward of
    both.
    """
    blank: Any = ids.clone()
    blank[:, :prompt_length] = mask_id
    both = torch.cat([ids, blank])
    logits = model(input_ids=both, attention_mask=attended.repeat(2, 1), positions=positions.repeat(2, 1)).logits
    conditional, unconditional = logits.chunk(2)
    return look_at(nn.Identity(), unconditional + (guidance + 1) * (conditional - unconditional), look)
