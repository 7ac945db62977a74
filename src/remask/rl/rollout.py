"""Making rollouts: groups of answers to prompts, graded while the next ones are written.

A rollout is the same on any number of processes: an answer's random numbers follow from (seed, rollout, place), every
process asks for its share of the groups, and all then hold the whole. An `Engine` answers, a `Grader` grades,
`rollout_rows` lays out what is trained on, and `groups` sums up what is logged.

Shapes: P prompts, G completions of each, N = P·G rows, W width (left-padded prompts and the canvas).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from jaxtyping import Bool, Float
from torch import Tensor

from remask.choices import AdvantageName
from remask.diffusion.corruption import Canvas
from remask.progress import LINE_SECONDS
from remask.rl.advantage import advantages
from remask.rl.grading import Grader
from remask.rl.groups import Group, Timing, described, kept_groups
from remask.rl.prompts import Prompt, PromptOrder
from remask.rl.ranks import agreed
from remask.rl.rewards import Scores
from remask.rl.rollout_rows import Layout
from remask.sampling.engine import Answer, Engine, Request
from remask.sampling.schedule import Decoding


@dataclass(frozen=True)
class Rollout:
    """A rollout holds rows of scored answers, N = P·G of them, group after group.

    canvas: the rows; `supervised` are the positions that likelihoods are taken over. advantage: that of each token, 0
    outside the response. counted: rows that have a reward. version: that of the weights that wrote the answers (the
    oldest of them). statistics are what is logged of the whole, kept the groups to write down, faults what went wrong
    in rewards.
    """

    number: int
    canvas: Canvas
    advantage: Float[Tensor, "N W"]
    counted: Bool[Tensor, "N"]
    version: int
    statistics: dict[str, float]
    kept: list[dict[str, Any]]
    faults: list[str]


Own: TypeAlias = tuple[list[tuple[int, Group]], Timing]
"""One process's share of a rollout: groups with their places, and the seconds they took."""


@dataclass
class RolloutMaker:
    """A maker makes rollouts. Everything but the engine's weights is fixed.

    completions: answers to a prompt. batch_size: answers asked for at once. keep: groups of a rollout to write down
    (−1: all).
    """

    engine: Engine
    grader: Grader
    layout: Layout
    prompts: Sequence[Prompt]
    order: PromptOrder
    completions: int
    decoding: Decoding
    advantage: AdvantageName
    seed: int
    batch_size: int
    keep: int = 8
    on_progress: Callable[[str], None] = lambda doing: None
    """A function that is called now and then with what the maker is doing."""
    on_failure: Callable[[], None] = lambda: None
    """A function that is called where a rollout is given up while a thread grades: it ends what that may be waiting
    for."""

    def make(self, number: int) -> Rollout:
        """Make rollout `number`, from the engine's weights as they are."""
        return self.laid_out(number, *self.answered(number))

    def answered(self, number: int) -> tuple[list[Group], list[Timing]]:
        """Return the graded groups of rollout `number`, and what each process took for its own."""
        return self.gathered(number, lambda: self.own(number))

    def own(self, number: int) -> Own:
        """Return this process's share of rollout `number`: its graded groups with their places, and what it took.
        Processes do not wait for one another.
        """
        asked = self.order.of(number)
        state = PartialState()
        places = range(len(asked))[state.process_index :: state.num_processes]
        return self._sample(number, [(place, asked[place]) for place in places])

    def gathered(self, number: int, own: Callable[[], Own]) -> tuple[list[Group], list[Timing]]:
        """Return the groups of all processes, of which `own` returns one's, in their order, and what each took."""
        groups, timing = agreed(own, when=f"in rollout {number}, ")
        everything: list[tuple[int, Group]] = gather_object(groups)
        timings: list[Timing] = gather_object([timing])
        ordered = [group for _, group in sorted(everything, key=lambda item: item[0])]
        return ordered, timings

    def _sample(self, number: int, asked: Sequence[tuple[int, int]]) -> Own:
        """Whole groups at a time: while the next ones are written, a thread grades those that are there."""
        per_batch = max(1, self.batch_size // self.completions)
        sampling = 0.0
        pending: list[tuple[list[tuple[int, int]], list[Answer], Future[Scores]]] = []
        with ThreadPoolExecutor(1, thread_name_prefix="grading") as grader:
            try:
                for start in range(0, len(asked), per_batch):
                    batch = list(asked[start : start + per_batch])
                    began = time.perf_counter()
                    answers = self._answers(number, batch)
                    sampling += time.perf_counter() - began
                    problems = [self.prompts[prompt] for _, prompt in batch for _ in range(self.completions)]
                    pending.append((batch, answers, grader.submit(self.grader.score, problems, answers)))
                    written = (start + len(batch)) * self.completions
                    self.on_progress(f"sampling {written}/{len(asked) * self.completions}")
                began = time.perf_counter()
                graded = [(batch, answers, self._graded(future)) for batch, answers, future in pending]
                timing = Timing(sampling, time.perf_counter() - began, [f for _, _, s in graded for f in s.faults])
            except BaseException:
                self.on_failure()
                grader.shutdown(wait=False, cancel_futures=True)
                raise
        groups = [
            (place, self._group(prompt, answers, scores, i * self.completions))
            for batch, answers, scores in graded
            for i, (place, prompt) in enumerate(batch)
        ]
        return groups, timing

    def _graded(self, future: Future[Scores]) -> Scores:
        while not wait([future], LINE_SECONDS).done:
            self.on_progress("grading")
        return future.result()

    def _answers(self, number: int, batch: Sequence[tuple[int, int]]) -> list[Answer]:
        requests = [
            Request(self.prompts[prompt].ids, row_seed(self.seed, number, place * self.completions + g))
            for place, prompt in batch
            for g in range(self.completions)
        ]
        return self.engine.answer(requests, self.decoding)

    def _group(self, prompt: int, answers: Sequence[Answer], scores: Scores, start: int) -> Group:
        own = slice(start, start + self.completions)
        by_function = {name: values[own] for name, values in scores.by_function.items()}
        return Group(prompt, list(answers[own]), scores.total[own], by_function)

    def laid_out(self, number: int, groups: Sequence[Group], timings: Sequence[Timing]) -> Rollout:
        """Return the rollout of these groups, with the maker's layout and advantage."""
        reward = torch.tensor([group.total for group in groups])
        advantage = advantages(self.advantage, reward)
        answers = [answer for group in groups for answer in group.answers]
        prompts = [self.prompts[group.prompt].ids for group in groups for _ in group.answers]
        canvas = self.layout.canvas(prompts, [answer.row for answer in answers])
        faults = [fault for timing in timings for fault in timing.faults]
        if not reward.isfinite().any():
            faults.append("no answer has a reward: nothing is learned from it")
        return Rollout(
            number,
            canvas,
            torch.where(canvas.corruptible, advantage.flatten()[:, None], 0.0),
            reward.isfinite().flatten(),
            min(answer.version for answer in answers),
            described(groups, reward, advantage, timings),
            kept_groups(number, groups, advantage, self.prompts, keep=self.keep, prefill=self.grader.prefill),
            faults,
        )


def row_seed(seed: int, rollout: int, row: int) -> int:
    """Return the seed of an answer's random draws: another for every answer of a group and every rollout."""
    digest = hashlib.blake2b(f"rollout/{seed}/{rollout}/{row}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")
