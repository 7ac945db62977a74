"""Micro-batches without end, from rollouts that are made when they are needed; and what is told of silent ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from remask.errors import UserError
from remask.rl.batches import PolicyBatch
from remask.rl.rollout import Rollout


class Silence:
    """A counter of rollouts in a row whose groups all have equal rewards: from those, no policy gradient follows."""

    FIRST = 5

    def __init__(self) -> None:
        self.rollouts = self.seen = 0
        self._next = self.FIRST

    def saw(self, rollout: Rollout) -> str | None:
        """Return what there is to tell after this rollout, or None: after five in a row, and whenever there are twice
        as many.
        """
        self.seen += 1
        self.rollouts = self.rollouts + 1 if rollout.statistics["zero_spread"] == 1 else 0
        if self.rollouts < self._next:
            self._next = self.FIRST if not self.rollouts else self._next
            return None
        self._next *= 2
        return self.warning()

    def warning(self) -> str:
        """Return a message that says that nothing is learned, and what to do about it."""
        return (
            f"no group of the last {self.rollouts} rollouts had rewards that differ: nothing is learned from them; see "
            "completions.jsonl, and give a denser reward (--rewards.functions), easier problems, more answers to each "
            "(--rollout.completions) or a higher temperature (--rollout.decoding.temperature)"
        )


def refuse_older(rollout: Rollout, version: int) -> None:
    """Raises UserError where an answer was written by older weights than the engine was given for it."""
    if rollout.version < version:
        raise UserError(
            f"rollout {rollout.number} has answers of version {rollout.version}; the engine was given {version}",
            mend="let its `update` or `install` return when answers are of the new weights; rollout.max_lag makes "
            "rollouts older on purpose",
        )


class RolloutLoader:
    """A loader gives micro-batches without end. `buffer` holds what is left of the rollouts made, `begun` what ends
    those that are being sampled, in their order; `number` is the next rollout's.

    begin: begins a rollout and returns what waits for its micro-batches. max_lag: rollouts begun ahead of the one in
    use. 0 begins each when the one before it is used up. When a rollout is begun follows from how many micro-batches
    were taken, never from how long anything took.
    """

    def __init__(
        self, begin: Callable[[int], Callable[[], Sequence[PolicyBatch]]], *, max_lag: int = 0, per_rollout: int = 1
    ) -> None:
        self.begin, self.number, self.per_rollout = begin, 0, per_rollout
        self.most_waiting = max_lag * per_rollout
        self.buffer: deque[PolicyBatch] = deque()
        self.begun: deque[Callable[[], Sequence[PolicyBatch]]] = deque()

    def __iter__(self) -> Iterator[PolicyBatch]:
        while True:
            while len(self.buffer) + len(self.begun) * self.per_rollout <= self.most_waiting:
                self.begun.append(self.begin(self.number))
                self.number += 1
            if not self.buffer:
                self.buffer.extend(self.begun.popleft()())
            yield self.buffer.popleft()

    def settle(self) -> None:
        """Wait for the rollouts that are being sampled; `buffer` then holds all there is."""
        while self.begun:
            self.buffer.extend(self.begun.popleft()())
