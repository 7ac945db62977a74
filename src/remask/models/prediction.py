"""What a model's forward gives: logits, or only the losses or entropies of chosen tokens.

Shapes: N chosen positions, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from transformers.modeling_outputs import MaskedLMOutput

from remask.diffusion.head import head_losses, head_reading


@dataclass
class Prediction(MaskedLMOutput):
    """Without targets: logits. With targets: token_loss [N], −log p of each in nats; read: entropy [N] too."""

    token_loss: Tensor | None = None
    entropy: Tensor | None = None


def predicted(
    head: nn.Module,
    hidden: Tensor,
    targets: Tensor | None = None,
    expected: Tensor | None = None,
    read: bool = False,
) -> Prediction:
    """The head's prediction at hidden states [..., D]; with targets [N] and hidden states [N, D] no logits are kept."""
    if targets is None:
        return Prediction(logits=head(hidden))
    if read:
        reading = head_reading(head, hidden, targets)
        return Prediction(token_loss=reading.nll, entropy=reading.entropy)
    return Prediction(token_loss=head_losses(head, hidden, targets, expected))
