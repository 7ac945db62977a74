"""How the mathematics asks a model: for losses at chosen positions, or for a look at its logits there.

Shapes: B batch, L length, N chosen positions in row-major order, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from remask.diffusion.attention import Full
from remask.diffusion.blocks import attention_of
from remask.diffusion.corruption import Canvas
from remask.diffusion.head import Look, with_gradient_of
from remask.diffusion.token_loss import TokenReading, read_tokens, token_cross_entropy


@runtime_checkable
class Kept(Protocol):
    """Keys and values are kept of a block model's clean rows, which depend on no noise."""

    def tensors(self) -> list[Tensor]:
        """Return the keys and values."""

    def apart(self) -> Kept:
        """Return the same values, in which a gradient ends (`.grad` of `tensors()`)."""


@runtime_checkable
class Reader(Protocol):
    """A reader is whatever reads noised rows. `noised` are the rows of `canvas` with some of their tokens masked, or
    K versions of them, all rows of one version after all of another [K·B, L]; so are the positions.
    """

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
    kept: Kept | None = None

    def losses(self, noised: Tensor, canvas: Canvas, positions: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the losses that the model's prediction gives."""
        if weights is not None and torch.is_grad_enabled():
            loss, ce = self.weighted_loss(noised, canvas, positions, weights)
            return with_gradient_of(loss, ce, weights)
        said: Tensor = self.call(noised, canvas, positions, targets=targets(noised, canvas, positions)).token_loss
        return said

    def weighted_loss(
        self, noised: Tensor, canvas: Canvas, positions: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted loss and the losses that the model's prediction gives."""
        said = self.call(noised, canvas, positions, targets=targets(noised, canvas, positions), weights=weights)
        return said.loss, said.token_loss

    def look(self, noised: Tensor, canvas: Canvas, positions: Tensor, look: Look) -> tuple[Tensor, ...]:
        """Return what `look` gives for the model's logits."""
        seen: tuple[Tensor, ...] = self.call(noised, canvas, positions, look=look).seen
        return seen

    def call(self, noised: Tensor, canvas: Canvas, positions: Tensor, **wanted: Any) -> Any:
        """Return the model's prediction at the positions. A block model reads the clean rows beside the noised ones:
        once for all their versions.
        """
        if isinstance(attention_of(self.model), Full):
            canvas = canvas.repeat(len(noised) // len(canvas.ids))
        elif self.kept is not None:
            wanted["kept"] = self.kept
        with self.context():
            return self.model(
                input_ids=noised,
                attention_mask=canvas.attended.long(),
                positions=positions,
                clean=canvas.ids,
                answer=canvas.corruptible,
                **wanted,
            )

    def having_read(self, canvas: Canvas) -> ModelReader:
        """Return a reader of noised versions of this canvas, which has read the clean rows where a block model can
        do so apart. What it keeps has the gradient.
        """
        if isinstance(attention_of(self.model), Full):
            return self
        with self.context():
            read = self.model(
                clean=canvas.ids, attention_mask=canvas.attended.long(), answer=canvas.corruptible, keep=True
            )
        return replace(self, kept=read.kept)

    def under(self, further: Callable[[], AbstractContextManager[Any]]) -> ModelReader:
        """Return the same model, called under a further context."""

        @contextmanager
        def both() -> Iterator[None]:
            with self.context(), further():
                yield

        return replace(self, context=both)

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
        attended = canvas.attended.repeat(len(noised) // len(canvas.ids), 1)
        return token_cross_entropy(self.function(noised, attended, positions), targets(noised, canvas, positions))

    def weighted_loss(
        self, noised: Tensor, canvas: Canvas, positions: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted sum of the function's cross-entropies, and the cross-entropies."""
        ce = self.losses(noised, canvas, positions)
        return (ce * weights.detach()).sum(), ce.detach()

    @torch.no_grad()
    def look(self, noised: Tensor, canvas: Canvas, positions: Tensor, look: Look) -> tuple[Tensor, ...]:
        """Return what `look` gives for the function's logits, all at once."""
        attended = canvas.attended.repeat(len(noised) // len(canvas.ids), 1)
        logits = self.function(noised, attended, positions)
        return look(logits, slice(0, len(logits)))


def having_read(reader: Reader, canvas: Canvas) -> Reader:
    """Return a reader of noised versions of this canvas that has read the clean rows, where that can be done apart
    (`ModelReader.having_read`); any other reader unchanged.
    """
    return reader.having_read(canvas) if isinstance(reader, ModelReader) else reader


def targets(noised: Int[Tensor, "R L"], canvas: Canvas, positions: Bool[Tensor, "R L"]) -> Int[Tensor, "N"]:
    """Return the canvas's tokens at the positions of its noised versions."""
    copies = len(noised) // len(canvas.ids)
    return canvas.ids.repeat(copies, 1)[positions] if copies > 1 else canvas.ids[positions]


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
