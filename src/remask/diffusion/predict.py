"""How the mathematics calls a model: logits, losses or entropies at chosen positions.

Shapes: B batch, L length, N chosen positions in row-major order, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from remask.diffusion.token_loss import TokenReading, read_tokens, token_cross_entropy

Predict = Callable[[Int[Tensor, "B L"], Bool[Tensor, "B L"], Bool[Tensor, "B L"]], Float[Tensor, "N V"]]
"""(ids, attended, positions) → logits at the true positions."""


@dataclass(frozen=True)
class Network:
    """A model of Remask's as a `Predict` that can also give losses and readings without keeping logits.

    Each call is made under `context`: a trainer's mixed precision.
    """

    model: Callable[..., Any]
    context: Callable[[], AbstractContextManager[Any]] = nullcontext

    def __call__(self, ids: Tensor, attended: Tensor, positions: Tensor) -> Tensor:
        return self.call(ids, attended, positions).logits

    def call(self, ids: Tensor, attended: Tensor, positions: Tensor, **wanted: Any) -> Any:
        with self.context():
            return self.model(input_ids=ids, attention_mask=attended.long(), positions=positions, **wanted)

    def under(self, further: Callable[[], AbstractContextManager[Any]]) -> Network:
        """The same model, called under a further context."""

        @contextmanager
        def both() -> Iterator[None]:
            with self.context(), further():
                yield

        return Network(self.model, both)

    def read_only(self) -> Network:
        """The same module, called in evaluation mode and without gradient."""
        module: Any = self.model

        @contextmanager
        def reading() -> Iterator[None]:
            was_training = module.training
            module.eval()
            try:
                with torch.no_grad():
                    yield
            finally:
                module.train(was_training)

        return self.under(reading)


def token_losses(
    predict: Predict,
    ids: Int[Tensor, "B L"],
    attended: Bool[Tensor, "B L"],
    positions: Bool[Tensor, "B L"],
    clean: Int[Tensor, "B L"],
    expected: Float[Tensor, "N"] | None = None,
) -> Float[Tensor, "N"]:
    """ce_i = −log p(clean_i | ids) at the positions, in nats; carries gradient.

    expected: what the loss will weigh each ce_i with, up to a common factor, where that is known (`head_losses`).
    """
    if isinstance(predict, Network):
        ce: Tensor = predict.call(ids, attended, positions, targets=clean[positions], expected=expected).token_loss
        return ce
    return token_cross_entropy(predict(ids, attended, positions), clean[positions])


@torch.no_grad()
def token_reading(
    predict: Predict,
    ids: Int[Tensor, "B L"],
    attended: Bool[Tensor, "B L"],
    positions: Bool[Tensor, "B L"],
    clean: Int[Tensor, "B L"],
) -> TokenReading:
    """Entropy and −log p(clean_i | ids) at the positions, without gradient."""
    if isinstance(predict, Network):
        gold = clean[positions]
        return TokenReading(
            *predict.call(ids, attended, positions, look=lambda logits, part: read_tokens(logits, gold[part])).seen
        )
    return read_tokens(predict(ids, attended, positions), clean[positions])
