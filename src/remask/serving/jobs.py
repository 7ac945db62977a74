"""A request's rows on their way through the server: what is to be written, how far it is, and how it ended.

Shapes: C places of an answer.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from remask.models.facts import stop_token_ids
from remask.sampling.generate import Row, length_of
from remask.sampling.record import Step
from remask.sampling.schedule import Decoding
from remask.sampling.writing import Writing


@dataclass(frozen=True)
class Progress:
    """A row after a step, in plain numbers. number: of the step, from 0. tokens: the canvas, with the mask token where
    nothing is written. written: places that are not masked. new, replaced, masked_again: places of this step.
    confidence: probability of each token when it was written (None where none is). block: first place and end of the
    block at work. settled: tokens from the beginning on that no later step can change.
    """

    number: int
    tokens: list[int]
    written: list[bool]
    new: list[int]
    replaced: list[int]
    masked_again: list[int]
    confidence: list[float | None]
    block: tuple[int, int]
    settled: int


@dataclass(frozen=True)
class Finished:
    """A row that is written: its canvas and history, the number of tokens of its text (the one that ends it included),
    the version of the weights, forwards, and the seconds that it waited and was written.
    """

    row: Row
    tokens: int
    version: int
    forwards: int
    waited: float
    seconds: float


class Watcher(Protocol):
    """Is told of a job, in the scheduler's thread: what it does must be quick, and must not raise."""

    wants_steps: bool
    """Whether `step` is to be called. A row of which nobody sees the steps is written with less work."""

    def step(self, progress: Progress) -> bool:
        """A step was taken. Returns whether that is enough: the row then ends as it is."""

    def done(self, finished: Finished) -> None:
        """The row is written. Nothing more is told."""

    def failed(self, error: BaseException) -> None:
        """The row was given up. Nothing more is told."""


@dataclass(eq=False)
class Job:
    """One row to write. prompt: token ids. model: the name it asks for. row_seed: which of the rows with the same
    settings it is. canvas: a text with gaps, or None. client: who asks, for fair turns. deadline: on the clock of
    `time.monotonic`. cancelled: nobody waits for it any more. submitted: when it was asked for, on the same clock.
    """

    prompt: list[int]
    decoding: Decoding
    watcher: Watcher
    model: str
    row_seed: int = 0
    canvas: list[int] | None = None
    client: str = ""
    deadline: float = float("inf")
    cancelled: bool = False
    submitted: float = field(default_factory=time.monotonic)

    @property
    def tokens(self) -> int:
        """Return how many tokens a forward of it may read."""
        rows = 2 if self.decoding.guidance else 1
        return rows * (len(self.prompt) + self.decoding.max_new_tokens)


class CancelledError(Exception):
    """Nobody waits for the job any more."""


class TooLateError(Exception):
    """The job's deadline has passed."""


class AtWork:
    """A job that is being written."""

    def __init__(self, job: Job, model: Any, version: int) -> None:
        self.job, self.version = job, version
        self.stops = set(stop_token_ids(model.config))
        self.began = time.monotonic()
        device = model.device
        ids = torch.tensor([job.prompt], dtype=torch.long, device=device)
        canvas = None if job.canvas is None else torch.tensor([job.canvas], dtype=torch.long, device=device)
        self.writing = Writing(model, ids, None, job.decoding, [job.row_seed], canvas)

    @property
    def is_done(self) -> bool:
        """Return whether nothing is left to write."""
        return not len(self.writing.active)

    def progress(self, step: Step) -> Progress:
        """Return the row after a step."""
        writing, first = self.writing, torch.zeros(1, dtype=torch.long, device=self.writing.ids.device)
        masked = writing.layout.of_answer(writing.masked, first)[0]
        confidence = writing.layout.of_answer(writing.confidence, first)[0]
        written = (~masked).tolist()
        at_work = [] if step.at_work is None else step.at_work[0].nonzero()[:, 0].tolist()
        block = (at_work[0], at_work[-1] + 1) if at_work else (0, 0)

        def places(where: torch.Tensor | None) -> list[int]:
            return [] if where is None else where[0].nonzero()[:, 0].tolist()

        return Progress(
            step.number,
            step.canvas[0].tolist(),
            written,
            places(step.revealed),
            places(step.replaced),
            places(step.masked_again),
            [None if math.isnan(p) else round(p, 4) for p in confidence.tolist()],
            block,
            self._settled(written, block[0]),
        )

    def _settled(self, written: list[bool], block_begins: int) -> int:
        """Everything before the first mask; where written tokens may be replaced, what is before the block at work."""
        before = next((place for place, there in enumerate(written) if not there), len(written))
        decoding = self.writing.decoding
        may_change = decoding.edit_threshold is not None or decoding.rule is not None
        return min(before, block_begins) if may_change else before

    def finished(self) -> Finished:
        """Return what was written, as `remask.generate` returns it."""
        now = time.monotonic()
        done = self.writing.result(now - self.began)
        ids = done.ids[0].tolist()
        row = Row(
            ids,
            done.revealed_at[0].tolist(),
            done.confidence[0].tolist(),
            any(token in self.stops for token in ids),
            done.block[0].tolist(),
            done.earlier[0],
        )
        waited = self.began - self.job.submitted
        return Finished(row, length_of(ids, self.stops), self.version, done.forwards, waited, now - self.began)
