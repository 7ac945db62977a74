"""How the mathematics asks a model: for losses at chosen positions, or for a look at its logits there.

Shapes: B batch, L length, N chosen positions in row-major order, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from remask.diffusion.corruption import Canvas
from remask.diffusion.head import Look, with_gradient_of
from remask.diffusion.token_loss import TokenReading, read_tokens, token_cross_entropy


@runtime_checkable
class Reader(Protocol):
    """A reader is whatever reads noised rows. `noised` are the rows of `canvas` with some of their tokens masked."""

    def losses(
        self,
        noised: Int[Tensor, "B L"],
        canvas: Canvas,
        positions: Bool[Tensor, "B L"],
        weights: Float[Tensor, "N"] | None = None,
    ) -> Float[Tensor, "N"]:
        """Return ce_i = −log p(x_i | noised) of the canvas's tokens at the positions, in nats, with gradient.

        weights: what the caller's loss weighs each ce_i with, up to a common factor, where the caller can say so. Then
        logits are computed once, and a loss that weighs them otherwise is an error in the backward pass.
        """

    def weighted_loss(
        self,
        noised: Int[Tensor, "B L"],
        canvas: Canvas,
        positions: Bool[Tensor, "B L"],
        weights: Float[Tensor, "N"],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "N"]]:
        """Return (Σ_i w_i·ce_i with its gradient, ce_i without); logits are computed once
        (`weighted_cross_entropy`).
        """

    def look(
        self, noised: Int[Tensor, "B L"], canvas: Canvas, positions: Bool[Tensor, "B L"], look: Look
    ) -> tuple[Tensor, ...]:
        """Return what the function `look` gives for the logits at the positions, which it gets part by part, without
        gradient.
        """


@dataclass(frozen=True)
class ModelReader:
    """A model of Remask's as a reader. It never keeps the logits of all positions.

    Each call is made under `context`: a trainer's mixed precision.
    """

    model: Callable[..., Any]
    context: Callable[[], AbstractContextManager[Any]] = nullcontext

    def losses(self, noised: Tensor, canvas: Canvas, positions: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the losses that the model's prediction gives."""
        if weights is not None and torch.is_grad_enabled():
            loss, ce = self.weighted_loss(noised, canvas, positions, weights)
            return with_gradient_of(loss, ce, weights)
        said: Tensor = self.call(noised, canvas, positions, targets=canvas.ids[positions]).token_loss
        return said

    def weighted_loss(
        self, noised: Tensor, canvas: Canvas, positions: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted loss and the losses that the model's prediction gives."""
        said = self.call(noised, canvas, positions, targets=canvas.ids[positions], weights=weights)
        return said.loss, said.token_loss

    def look(self, noised: Tensor, canvas: Canvas, positions: Tensor, look: Look) -> tuple[Tensor, ...]:
        """Return what `look` gives for the model's logits."""
        seen: tuple[Tensor, ...] = self.call(noised, canvas, positions, look=look).seen
        return seen

    def call(self, noised: Tensor, canvas: Canvas, positions: Tensor, **wanted: Any) -> Any:
        """Return the model's prediction at the positions. A block model reads the clean rows beside the noised ones."""
        with self.context():
            return self.model(
                input_ids=noised,
                attention_mask=canvas.attended.long(),
                positions=positions,
                clean=canvas.ids,
                answer=canvas.corruptible,
                **wanted,
            )

    def under(self, further: Callable[[], AbstractContextManager[Any]]) -> ModelReader:
        """Return the same model, called under a further context."""

        @contextmanager
        def both() -> Iterator[None]:
            with self.context(), further():
                yield

        return ModelReader(self.model, both)

    def read_only(self) -> ModelReader:
        """Return the same module, called in evaluation mode and without gradient."""
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


@dataclass(frozen=True)
class LogitsReader:
    """A function (noised ids [B, L], attended [B, L], positions [B, L]) → logits [N, V], used as a reader."""

    function: Callable[[Tensor, Tensor, Tensor], Tensor]

    def losses(self, noised: Tensor, canvas: Canvas, positions: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the cross-entropies of the function's logits."""
        return token_cross_entropy(self.function(noised, canvas.attended, positions), canvas.ids[positions])

    def weighted_loss(
        self, noised: Tensor, canvas: Canvas, positions: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted sum of the function's cross-entropies, and the cross-entropies."""
        ce = self.losses(noised, canvas, positions)
        return (ce * weights.detach()).sum(), ce.detach()

    @torch.no_grad()
    def look(self, noised: Tensor, canvas: Canvas, positions: Tensor, look: Look) -> tuple[Tensor, ...]:
        """Return what `look` gives for the function's logits, all at once."""
        logits = self.function(noised, canvas.attended, positions)
        return look(logits, slice(0, len(logits)))


def reader_of(model: nn.Module | Reader) -> Reader:
    """Return a model as a reader, or a reader unchanged."""
    return ModelReader(model) if isinstance(model, nn.Module) else model


@torch.no_grad()
def token_reading(
    reader: Reader, noised: Int[Tensor, "B L"], canvas: Canvas, positions: Bool[Tensor, "B L"]
) -> TokenReading:
    """Return the entropy and −log p(x_i | noised) of the canvas's tokens at the positions, without gradient."""
    gold = canvas.ids[positions]
    return TokenReading(*reader.look(noised, canvas, positions, lambda logits, part: read_tokens(logits, gold[part])))
