"""Classifier-free guidance: away from what the model would write without the prompt (LLaDA's rule).

Shapes: b rows, N chosen positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from remask.diffusion.head import Look, look_at


@torch.no_grad()
def guided(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    look: Look,
    *,
    prompt: Bool[Tensor, "b L"],
    mask_id: int,
    guidance: float,
) -> tuple[Tensor, ...]:
    """Return what `look` says of u + (w+1)(c − u): c with the prompt, u with every prompt token masked, in one forward
    of both. `inputs` are the model's, `input_ids` among them.
    """
    both = {name: torch.cat([given, given]) for name, given in inputs.items()}
    both["input_ids"][len(prompt) :].masked_fill_(prompt, mask_id)
    logits = model(**both).logits
    conditional, unconditional = logits.chunk(2)
    return look_at(nn.Identity(), unconditional + (guidance + 1) * (conditional - unconditional), look)
