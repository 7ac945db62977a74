"""Sampling a rollout: a group of answers to each prompt, graded while the next ones are written.

A rollout is the same on any number of processes: an answer's random numbers follow from (seed, rollout, place), every
process samples its share of the groups, and all then hold the whole.

Shapes: P prompts, G completions of each, N = P·G rows, W width (left-padded prompts and the canvas).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from remask.choices import AdvantageName, OnBadReward, ScopeName
from remask.models.facts import stop_token_ids
from remask.progress import LINE_SECONDS
from remask.rl.advantage import advantages, informative
from remask.rl.completions import Completion
from remask.rl.prompts import Prompt, PromptOrder, columns_of
from remask.rl.ranks import agreed
from remask.rl.rewards import Reward, Scores, score
from remask.sampling.generate import generate_from_ids, length_of
from remask.sampling.schedule import Decoding


@dataclass(frozen=True)
class Answer:
    """One completion as sampled: canvas ids [C], its text, how many tokens that is, whether it ended."""

    ids: list[int]
    text: str
    tokens: int
    ended: bool


@dataclass(frozen=True)
class Group:
    """The answers to one prompt, with what they were worth (NaN: no reward) and what each function gave."""

    prompt: int
    answers: list[Answer]
    total: list[float]
    by_function: dict[str, list[float]]


@dataclass(frozen=True)
class Rollout:
    """Rows of scored answers, N = P·G of them, group after group. `scored` are the positions that likelihoods are taken
    over; `counted` rows have a reward; statistics are what is logged of the whole, kept the groups to write down,
    faults what went wrong in rewards.
    """

    number: int
    ids: Int[Tensor, "N W"]
    attended: Bool[Tensor, "N W"]
    response: Bool[Tensor, "N W"]
    scored: Bool[Tensor, "N W"]
    advantage: Float[Tensor, "N"]
    counted: Bool[Tensor, "N"]
    statistics: dict[str, float]
    kept: list[dict[str, Any]]
    faults: list[str]


@dataclass
class Sampler:
    """Makes rollouts with the live model. Everything but the model's weights is fixed."""

    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[Prompt]
    order: PromptOrder
    completions: int
    decoding: Decoding
    rewards: Sequence[Reward]
    on_bad: OnBadReward
    advantage: AdvantageName
    scope: ScopeName
    seed: int
    batch_size: int
    prefill: str = ""
    keep: int = 8
    on_progress: Callable[[str], None] = lambda doing: None
    """Called now and then with what it is doing."""
    on_failure: Callable[[], None] = lambda: None
    """Called where a rollout is given up while a thread grades: ends what that may be waiting for."""

    @cached_property
    def columns(self) -> list[str]:
        return columns_of(self.prompts)

    def make(self, model: Any, number: int) -> Rollout:
        """Rollout `number`, from the model as it is."""
        asked = self.order.of(number)
        state = PartialState()
        own = range(len(asked))[state.process_index :: state.num_processes]
        timing = _Timing()
        groups = agreed(
            lambda: self._sample(model, number, [(place, asked[place]) for place in own], timing),
            when=f"in rollout {number}, ",
        )
        everything: list[tuple[int, Group]] = gather_object(groups)
        seconds: list[_Timing] = gather_object([timing])
        ordered = [group for _, group in sorted(everything, key=lambda item: item[0])]
        return self._laid(model, number, ordered, seconds)

    def _sample(
        self, model: Any, number: int, asked: Sequence[tuple[int, int]], timing: _Timing
    ) -> list[tuple[int, Group]]:
        """Whole groups at a time: while the next ones are written, a thread grades those that are there."""
        per_batch = max(1, self.batch_size // self.completions)
        pending: list[tuple[list[tuple[int, int]], list[Answer], Future[Scores]]] = []
        with ThreadPoolExecutor(1, thread_name_prefix="grading") as grader:
            try:
                for start in range(0, len(asked), per_batch):
                    batch = list(asked[start : start + per_batch])
                    began = time.perf_counter()
                    answers = self._answers(model, number, batch)
                    timing.sampling += time.perf_counter() - began
                    pending.append((batch, answers, grader.submit(self._score, batch, answers)))
                    written = (start + len(batch)) * self.completions
                    self.on_progress(f"sampling {written}/{len(asked) * self.completions}")
                began = time.perf_counter()
                graded = [(batch, answers, self._graded(future)) for batch, answers, future in pending]
                timing.grading += time.perf_counter() - began
            except BaseException:
                self.on_failure()
                grader.shutdown(wait=False, cancel_futures=True)
                raise
        timing.faults = [fault for _, _, scores in graded for fault in scores.faults]
        return [
            (place, self._group(prompt, answers, scores, i * self.completions))
            for batch, answers, scores in graded
            for i, (place, prompt) in enumerate(batch)
        ]

    def _graded(self, future: Future[Scores]) -> Scores:
        while not wait([future], LINE_SECONDS).done:
            self.on_progress("grading")
        return future.result()

    def _answers(self, model: Any, number: int, batch: Sequence[tuple[int, int]]) -> list[Answer]:
        rows = [(prompt, place * self.completions + g) for place, prompt in batch for g in range(self.completions)]
        generated = generate_from_ids(
            model,
            self.tokenizer,
            [self.prompts[prompt].ids for prompt, _ in rows],
            self.decoding,
            batch_size=self.batch_size,
            row_seeds=[row_seed(self.seed, number, row) for _, row in rows],
        )
        stops = set(stop_token_ids(model.config))
        return [
            Answer(ids, self.prefill + text, length_of(ids, stops), row.ended)
            for ids, text, row in zip(generated.token_ids, generated.texts, generated.history, strict=True)
        ]

    def _score(self, batch: Sequence[tuple[int, int]], answers: Sequence[Answer]) -> Scores:
        asked = [self.prompts[prompt] for _, prompt in batch for _ in range(self.completions)]
        completions = [
            Completion(p.text, a.text, a.tokens, a.ended, p.columns, p.task, p.problem)
            for p, a in zip(asked, answers, strict=True)
        ]
        return score(self.rewards, completions, on_bad=self.on_bad, columns=self.columns)

    def _group(self, prompt: int, answers: Sequence[Answer], scores: Scores, start: int) -> Group:
        own = slice(start, start + self.completions)
        by_function = {name: values[own] for name, values in scores.by_function.items()}
        return Group(prompt, list(answers[own]), scores.total[own], by_function)

    def _laid(self, model: Any, number: int, groups: Sequence[Group], timings: Sequence[_Timing]) -> Rollout:
        """The groups as rows, prompts left-padded exactly as they were when sampled."""
        C, mask_id = self.decoding.max_new_tokens, model.config.mask_token_id
        stops = torch.tensor(stop_token_ids(model.config))
        prompts = [self.prompts[group.prompt].ids for group in groups for _ in group.answers]
        width = max(map(len, prompts)) + C
        ids = torch.full((len(prompts), width), mask_id)
        attended = torch.zeros(ids.shape, dtype=torch.bool)
        for row, (prompt, answer) in enumerate(
            zip(prompts, (a for group in groups for a in group.answers), strict=True)
        ):
            ids[row, width - C - len(prompt) :] = torch.tensor(prompt + answer.ids)
            attended[row, width - C - len(prompt) :] = True
        response = torch.zeros_like(attended)
        response[:, width - C :] = True
        reward = torch.tensor([group.total for group in groups])
        advantage = advantages(self.advantage, reward)
        faults = [fault for timing in timings for fault in timing.faults]
        if not reward.isfinite().any():
            faults.append("no answer has a reward: nothing is learned from it")
        return Rollout(
            number,
            ids,
            attended,
            response,
            response if self.scope == "canvas" else until_end(ids, response, stops),
            advantage.flatten(),
            reward.isfinite().flatten(),
            self._statistics(groups, reward, advantage, timings),
            self._kept(number, groups, advantage),
            faults,
        )

    def _statistics(
        self, groups: Sequence[Group], reward: Tensor, advantage: Tensor, timings: Sequence[_Timing]
    ) -> dict[str, float]:
        answers = [answer for group in groups for answer in group.answers]
        there = reward[reward.isfinite()]
        known: dict[str, float] = {
            "reward_mean": there.mean().item() if len(there) else float("nan"),
            "reward_std": there.std(unbiased=False).item() if len(there) else float("nan"),
            "missing": 1 - len(there) / reward.numel(),
            "zero_spread": 1 - informative(reward).float().mean().item(),
            "diversity": sum(len({a.text for a in g.answers}) / len(g.answers) for g in groups) / len(groups),
            "advantage_std": advantage.std(unbiased=False).item(),
            "completion_tokens": sum(a.tokens for a in answers) / len(answers),
            "ended": sum(a.ended for a in answers) / len(answers),
        }
        if len(self.rewards) > 1:
            for name in groups[0].by_function:
                values = torch.tensor([value for group in groups for value in group.by_function[name]])
                known[f"reward_{name}"] = values.nanmean().item()
        slowest = max(timing.sampling for timing in timings)
        known["rollout_tokens_per_second"] = sum(a.tokens for a in answers) / max(slowest, 1e-9)
        known["seconds_sampling"] = slowest
        known["seconds_grading"] = max(timing.grading for timing in timings)
        return {name: value for name, value in known.items() if value == value}

    def _kept(self, number: int, groups: Sequence[Group], advantage: Tensor) -> list[dict[str, Any]]:
        kept = []
        for place, group in enumerate(groups if self.keep < 0 else groups[: self.keep]):
            prompt = self.prompts[group.prompt]
            completions = [
                {
                    "text": answer.text,
                    "tokens": answer.tokens,
                    "ended": answer.ended,
                    "reward": _or_none(group.total[g]),
                    "rewards": {name: _or_none(values[g]) for name, values in group.by_function.items()},
                    "advantage": round(advantage[place, g].item(), 6),
                }
                for g, answer in enumerate(group.answers)
            ]
            task = prompt.task.name if prompt.task else None
            kept.append(
                {
                    "rollout": number,
                    "task": task,
                    "problem": prompt.key,
                    "prompt": prompt.text,
                    "completions": completions,
                }
            )
        return kept


@dataclass
class _Timing:
    """Seconds this process spent writing, and waiting for grades; what went wrong in rewards that were skipped."""

    sampling: float = 0.0
    grading: float = 0.0
    faults: list[str] = field(default_factory=list)


def row_seed(seed: int, rollout: int, row: int) -> int:
    """The number that an answer's random draws follow from: another for every answer of a group and every rollout."""
    digest = hashlib.blake2b(f"rollout/{seed}/{rollout}/{row}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def until_end(ids: Int[Tensor, "N W"], response: Bool[Tensor, "N W"], stops: Int[Tensor, "S"]) -> Bool[Tensor, "N W"]:
    """The response up to its first token that ends a text, that one included."""
    end = torch.isin(ids, stops) & response
    return response & ((end.cumsum(-1) - end.long()) == 0)


def _or_none(value: float) -> float | None:
    return round(value, 6) if value == value else None
