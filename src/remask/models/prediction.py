"""What a model's forward gives: logits, or only what is wanted of chosen tokens.

Shapes: N chosen positions, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from transformers.modeling_outputs import MaskedLMOutput

from remask.diffusion.head import Look, head_losses, look_at


@dataclass
class Prediction(MaskedLMOutput):
    """logits, where neither targets nor a look were given. token_loss [N], −log p of each target in nats. seen: what
    the look said of the positions.
    """

    token_loss: Tensor | None = None
    seen: tuple[Tensor, ...] | None = None


def predicted(
    head: nn.Module,
    hidden: Tensor,
    targets: Tensor | None = None,
    expected: Tensor | None = None,
    look: Look | None = None,
) -> Prediction:
    """The head's prediction at hidden states [..., D]; with targets [N] or a look, at [N, D], no logits are kept."""
    if look is not None:
        return Prediction(seen=look_at(head, hidden, look))
    if targets is not None:
        return Prediction(token_loss=head_losses(head, hidden, targets, expected))
    return Prediction(logits=head(hidden))
