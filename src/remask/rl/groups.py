"""A rollout's groups of answers: what is logged of them, and which are written down.

Shapes: P prompts, G completions of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from remask.rl.advantage import informative
from remask.rl.prompts import Prompt
from remask.sampling.engine import Answer


@dataclass(frozen=True)
class Group:
    """A group holds the answers to one prompt, with what they were worth (NaN: no reward) and what each
    function gave.
    """

    prompt: int
    answers: list[Answer]
    total: list[float]
    by_function: dict[str, list[float]]


@dataclass(frozen=True)
class Timing:
    """A timing holds the seconds one process spent writing, and waiting for grades; and what went wrong in rewards that
    were skipped.
    """

    sampling: float
    grading: float
    faults: list[str] = field(default_factory=list)


def described(
    groups: Sequence[Group], reward: Float[Tensor, "P G"], advantage: Float[Tensor, "P G"], timings: Sequence[Timing]
) -> dict[str, float]:
    """Return rewards, their spread, lengths, and seconds, by name. What is not a number is left out."""
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
        "ended": sum(a.row.ended for a in answers) / len(answers),
    }
    if len(groups[0].by_function) > 1:
        for name in groups[0].by_function:
            values = torch.tensor([value for group in groups for value in group.by_function[name]])
            known[f"reward_{name}"] = values.nanmean().item()
    slowest = max(timing.sampling for timing in timings)
    known["rollout_tokens_per_second"] = sum(a.tokens for a in answers) / max(slowest, 1e-9)
    known["seconds_sampling"] = slowest
    known["seconds_grading"] = max(timing.grading for timing in timings)
    return {name: value for name, value in known.items() if value == value}


def of_all(rollouts: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return what is logged of a step's rollouts, of which there may be several where they are made ahead: means, and
    the seconds of all.
    """
    names = dict.fromkeys(name for rollout in rollouts for name in rollout)
    found = {name: [rollout[name] for rollout in rollouts if name in rollout] for name in names}
    return {
        name: sum(values) if name.startswith("seconds_") else sum(values) / len(values)
        for name, values in found.items()
    }


def kept_groups(
    number: int,
    groups: Sequence[Group],
    advantage: Float[Tensor, "P G"],
    prompts: Sequence[Prompt],
    *,
    keep: int,
    prefill: str,
) -> list[dict[str, Any]]:
    """Return the first `keep` groups of rollout `number` (all where it is below 0) as completions.jsonl has them: texts
    with the words that every answer begins with.
    """
    kept = []
    for place, group in enumerate(groups if keep < 0 else groups[:keep]):
        prompt = prompts[group.prompt]
        completions = [
            {
                "text": prefill + answer.text,
                "tokens": answer.tokens,
                "ended": answer.row.ended,
                "reward": _or_none(group.total[g]),
                "rewards": {name: _or_none(values[g]) for name, values in group.by_function.items()},
                "advantage": round(advantage[place, g].item(), 6),
            }
            for g, answer in enumerate(group.answers)
        ]
        kept.append(
            {
                "rollout": number,
                "task": prompt.task.name if prompt.task else None,
                "problem": prompt.key,
                "prompt": prompt.text,
                "completions": completions,
            }
        )
    return kept


def _or_none(value: float) -> float | None:
    return round(value, 6) if value == value else None
