"""β: how much a token matters, read from the model's own predictions (docs/theory.md §3).

A *signal* (entropy or negative log-likelihood, in nats) is read from a probe forward with the whole response masked; a
*transform* turns it into β; β_ref is its mean. Only β_i/β_ref enters an objective.

Shapes: B batch, L length, N chosen positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from remask.choices import ReferenceName, SignalName, TransformName
from remask.diffusion.corruption import Canvas, apply_mask
from remask.diffusion.reader import Reader, token_reading
from remask.diffusion.token_loss import TokenReading

TRANSFORMS: dict[TransformName, Callable[[Tensor], Tensor]] = {
    "sqrt": torch.sqrt,
    "identity": lambda signal: signal,
    "log1p": torch.log1p,
    "cbrt": lambda signal: (signal.double() ** (1 / 3)).float(),  # float32 pow differs in the last bit along a row
}


@dataclass(frozen=True)
class Importance:
    """Importance holds β [B, L] (0 outside R) and β_i/β_ref [B, L] (1 where β_ref is 0, so that p falls back to t)."""

    beta: Float[Tensor, "B L"]
    ratio: Float[Tensor, "B L"]


def probe(reader: Reader, canvas: Canvas, mask_id: int) -> TokenReading:
    """Read entropy and gold nll of every response token, all of them masked, in one forward without gradient."""
    hidden = apply_mask(canvas.ids, canvas.corruptible, mask_id)
    return token_reading(reader, hidden, canvas, canvas.corruptible)


def probe_signal(reader: Reader, canvas: Canvas, mask_id: int, signal: SignalName) -> Float[Tensor, "B L"]:
    """Return the named signal over R, 0 elsewhere. The signal `permuted_entropy` is read as entropy and shuffled in
    `importance`.
    """
    out = torch.zeros(canvas.ids.shape, dtype=torch.float32, device=canvas.ids.device)
    if signal == "constant":
        return out.masked_fill(canvas.corruptible, 1.0)
    reading = probe(reader, canvas, mask_id)
    out[canvas.corruptible] = reading.nll if signal == "nll" else reading.entropy
    return out


def importance(
    signal: Float[Tensor, "B L"],
    corruptible: Bool[Tensor, "B L"],
    transform: TransformName,
    reference: ReferenceName = "sequence",
    shuffle: Float[Tensor, "B L"] | None = None,
) -> Importance:
    """Return β_i = transform(signal_i) and β_i/β_ref, where β_ref is the mean of β over each response (or over the
    batch's).

    `shuffle` (uniform numbers) permutes β inside each response: the same rates on the wrong tokens. Means are taken in
    float64, so a constant β has the ratio 1 exactly.
    """
    beta = TRANSFORMS[transform](signal.float().clamp(min=0)) * corruptible
    if shuffle is not None:
        beta = permute_within(beta, shuffle, corruptible)
    total, count = beta.double().sum(-1), corruptible.sum(-1)
    if reference == "batch":
        total, count = total.sum().expand_as(total), count.sum().expand_as(count)
    mean = (total / count.clamp(min=1)).float()[:, None]
    ratio = torch.where(mean > 0, beta / torch.where(mean > 0, mean, 1.0), 1.0)
    return Importance(beta, ratio)


def permute_within(
    values: Float[Tensor, "B L"], shuffle: Float[Tensor, "B L"], among: Bool[Tensor, "B L"]
) -> Float[Tensor, "B L"]:
    """Permute `values` inside the chosen positions of each row by the order of `shuffle`; the rest stay put."""
    outside = (~among).float()
    places = outside.argsort(dim=-1, stable=True)
    order = (shuffle.masked_fill(~among, 2.0)).argsort(dim=-1, stable=True)
    return torch.empty_like(values).scatter_(1, places, values.gather(1, order))
