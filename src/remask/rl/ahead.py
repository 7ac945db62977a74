"""Sampling rollouts in a thread while the model is trained, where the engine answers with a copy of the weights.

Rollouts are begun by the training thread, in order, at steps that follow from their numbers alone. The thread takes
them one after another: each gives the engine the weights it was begun with, then samples and grades. So which weights
write which rollout does not depend on how long anything takes.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any

from remask.progress import LINE_SECONDS
from remask.rl.rollout import Own, Rollout, RolloutMaker
from remask.sampling.engine import OutsideEngine
from remask.training.reference import Reference


@dataclass(frozen=True)
class Begun:
    """A rollout that is being sampled. version: the optimiser steps behind the weights that write it. policy: a copy of
    those weights here, with which the old likelihood is read. reference: the reference as it was then.
    """

    number: int
    version: int
    policy: Reference
    reference: Reference | None
    own: Future[Own]


class Ahead:
    """Samples rollouts of a maker whose engine is outside, one after another, beside what the process does."""

    def __init__(self, maker: RolloutMaker, engine: OutsideEngine) -> None:
        self.maker, self.engine = maker, engine
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollouts")

    def begin(self, number: int, weights: Any) -> Future[Own]:
        """Begin rollout `number`, to be sampled with these weights (a snapshot of the engine's)."""
        return self._thread.submit(self._sampled, number, weights)

    def _sampled(self, number: int, weights: Any) -> Own:
        self.engine.install(weights)
        return replace(self.maker, on_progress=lambda doing: None).own(number)

    def finished(self, number: int, own: Future[Own]) -> Rollout:
        """Wait for a rollout, on all processes. `seconds_waiting` of its statistics is for how long."""
        began = time.perf_counter()
        rollout = self.maker.laid_out(number, *self.maker.gathered(number, lambda: self._waited(own)))
        del rollout.statistics["seconds_grading"]  # it goes on beside the training
        rollout.statistics["seconds_waiting"] = time.perf_counter() - began
        return rollout

    def _waited(self, own: Future[Own]) -> Own:
        while not wait([own], LINE_SECONDS).done:
            self.maker.on_progress("waiting for answers")
        return own.result()

    def end(self) -> None:
        """Begin no further rollout. The one that is being sampled comes to its end."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def ahead_of(maker: RolloutMaker, max_lag: int) -> Ahead | None:
    """Return what samples a maker's rollouts ahead, or None where they are sampled when they are due: on policy, or by
    an engine that answers with the live model.
    """
    engine = maker.engine
    return Ahead(maker, engine) if max_lag and isinstance(engine, OutsideEngine) else None
