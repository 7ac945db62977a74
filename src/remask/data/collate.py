"""Batches: rows on one canvas, with their noise. Order and noise depend on (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from remask.data.canvas import Fill, Row
from remask.diffusion.corruption import Canvas
from remask.diffusion.noise import collate_noise, row_noise, stream

R = TypeVar("R")


@dataclass(frozen=True)
class Visit:
    """A visit is one use of a row: which row, in which epoch, as which sample since the start of training.

    A visit that is not `counted` only evens out the ranks' batches: nothing of it is masked or carries loss.
    """

    index: int
    epoch: int
    visit: int
    counted: bool = True


class VisitSampler(Sampler[Visit]):
    """A sampler of the rows of an epoch in an order drawn from (seed, epoch), or as they stand.

    The epoch is filled up to a `multiple` of visits (rows of a step over all ranks) with visits that do not count, so
    that no rank has to take a row twice.
    """

    def __init__(self, size: int, *, seed: int, shuffle: bool = True, multiple: int = 1) -> None:
        self.size, self.seed, self.shuffle, self.multiple, self.epoch = size, seed, shuffle, multiple, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is drawn."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.size // self.multiple) * self.multiple

    def __iter__(self) -> Iterator[Visit]:
        epoch = self.epoch
        order = np.arange(self.size)
        if self.shuffle:
            order = stream("rows", self.seed, epoch).permutation(self.size)
        for place, index in enumerate(order.tolist()):
            yield Visit(index, epoch, epoch * self.size + place)
        for place in range(len(self) - self.size):
            yield Visit(int(order[place % self.size]), epoch, epoch * self.size + place, counted=False)


class RowDataset(Dataset, Generic[R]):
    """A data set of rows (or pairs of them), indexed by visit."""

    def __init__(self, rows: Sequence[R]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, visit: Visit) -> tuple[R, Visit]:
        return self.rows[visit.index], visit


def lay_out(rows: Sequence[Row], canvases: Sequence[int], eos_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return (ids, attended, response) [B, L]: each row's prompt, then its answer extended with EOS to `canvases`
    tokens.

    Rows are right-padded to the longest; padding is neither attended nor response.
    """
    width = max(len(row.prompt) + canvas for row, canvas in zip(rows, canvases, strict=True))
    ids = torch.full((len(rows), width), eos_id)
    attended = torch.zeros(ids.shape, dtype=torch.bool)
    response = torch.zeros(ids.shape, dtype=torch.bool)
    for b, (row, canvas) in enumerate(zip(rows, canvases, strict=True)):
        start = len(row.prompt)
        ids[b, : len(row)] = torch.tensor(row.prompt + row.response)
        attended[b, : start + canvas] = True
        response[b, start : start + canvas] = True
    return ids, attended, response


@dataclass(frozen=True)
class Collator:
    """A collator turns rows and visits into tensors: ids, the three facts of the canvas, noise, and each
    row's index.

    Padding is none of the three. `seed` seeds the noise.
    """

    fill: Fill
    eos_id: int
    max_length: int
    seed: int

    def __call__(self, items: Sequence[tuple[Row, Visit]]) -> dict[str, Tensor]:
        longest = max(len(row) for row, _ in items)
        canvases = [
            self.fill.length(len(row.prompt), len(row.response), longest_row=longest, max_length=self.max_length)
            for row, _ in items
        ]
        ids, attended, response = lay_out([row for row, _ in items], canvases, self.eos_id)
        response &= torch.tensor([visit.counted for _, visit in items])[:, None]
        noises = [
            row_noise(self.seed, visit.epoch, visit.index, visit.visit, canvas)
            for (_, visit), canvas in zip(items, canvases, strict=True)
        ]
        noise = collate_noise(noises, [len(row.prompt) for row, _ in items], ids.shape[1])
        return {
            **Canvas(ids, attended, response, response.clone()).tensors(),
            **noise.tensors(),
            "index": torch.tensor([visit.index for _, visit in items]),
        }


def by_length(batch: dict[str, Tensor], *, most: int, least: int, waste: float = 0.1) -> list[dict[str, Tensor]]:
    """Cut a batch into parts of rows of about the same length, longest first, each as wide as its longest row.

    A part has at most `most` tokens, padding included (but one row at least). It ends where the next row would leave
    more than `waste` of the row's width empty and it has `least` tokens already: below that, a separate forward pass
    costs more than the padding.
    """
    lengths = batch["attended"].sum(-1)
    order = lengths.argsort(descending=True, stable=True)
    parts: list[list[int]] = []
    for row in order.tolist():
        if parts:
            width, count = int(lengths[parts[-1][0]]), len(parts[-1])
            full = (count + 1) * width > most
            if not full and (lengths[row] >= (1 - waste) * width or count * width < least):
                parts[-1].append(row)
                continue
        parts.append([row])
    if len(parts) == 1:
        return [batch]
    return [
        {
            name: value[part, : int(lengths[part[0]])] if value.dim() == 2 else value[part]
            for name, value in batch.items()
        }
        for part in parts
    ]
