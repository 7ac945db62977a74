"""What a model's forward gives: logits, or only what is wanted of chosen tokens.

Shapes: N chosen positions, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from transformers.modeling_outputs import MaskedLMOutput

from remask.diffusion.head import Look, look_at, two_pass_cross_entropy, weighted_cross_entropy
from remask.models.sharded_head import head_of
from remask.models.streams import CleanRows


@dataclass
class Prediction(MaskedLMOutput):
    """A prediction holds what a forward pass was asked for. logits: given where neither targets nor a function `look`
    were given. token_loss [N]: −log p of each target in nats. loss: their weighted sum, where weights were given; it
    then has the gradient, and they have none. seen: what `look` gave for the positions. kept: the clean rows of a
    block model, read alone.
    """

    token_loss: Tensor | None = None
    seen: tuple[Tensor, ...] | None = None
    kept: CleanRows | None = None


def predicted(
    head: nn.Module,
    hidden: Tensor,
    targets: Tensor | None = None,
    weights: Tensor | None = None,
    look: Look | None = None,
) -> Prediction:
    """Return the head's prediction at hidden states [..., D]; with targets [N] or a function `look`, at [N, D], no
    logits are kept.
    """
    if look is not None:
        return Prediction(seen=look_at(head_of(head), hidden, look))
    if targets is not None and weights is not None:
        loss, token_loss = weighted_cross_entropy(head_of(head), hidden, targets, weights)
        return Prediction(loss=loss, token_loss=token_loss)
    if targets is not None:
        return Prediction(token_loss=two_pass_cross_entropy(head_of(head), hidden, targets))
    return Prediction(logits=head(hidden))
