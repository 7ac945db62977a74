"""The completions a reinforcement-learning run kept of its rollouts, read and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remask.errors import UserError
from remask.report.lines import json_lines


@dataclass(frozen=True)
class Completion:
    """A completion as the run kept it. `rewards` holds the reward of each function; `ended` says whether the text ended
    before the canvas did.
    """

    text: str
    tokens: int
    ended: bool
    reward: float | None
    rewards: dict[str, float | None]
    advantage: float | None


@dataclass(frozen=True)
class PromptGroup:
    """A group holds the completions of one prompt in one rollout; `step` is the optimiser step that they were sampled
    at.
    """

    rollout: int
    step: int
    task: str | None
    problem: str
    prompt: str
    completions: tuple[Completion, ...]


def read_rollouts(path: Path) -> list[PromptGroup]:
    """Return the groups in the order kept; none where there is no file. Raises UserError naming file and line."""
    groups = []
    for number, row in json_lines(path):
        try:
            groups.append(_group(row))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"is not a group of completions ({error!r})",
                where=f"{path}, line {number}",
                mend="remove the line or the file",
            ) from error
    return groups


def _group(row: Mapping[str, Any]) -> PromptGroup:
    task = row.get("task")
    completions = tuple(_completion(completion) for completion in _of(list, row["completions"]))
    if not completions:
        raise ValueError("no completions")
    return PromptGroup(
        rollout=_of(int, row["rollout"]),
        step=_of(int, row["step"]),
        task=None if task is None else _of(str, task),
        problem=str(row["problem"]),
        prompt=_of(str, row["prompt"]),
        completions=completions,
    )


def _completion(row: Any) -> Completion:
    row = _of(dict, row)
    return Completion(
        text=_of(str, row["text"]),
        tokens=_of(int, row["tokens"]),
        ended=_of(bool, row["ended"]),
        reward=_number(row["reward"]),
        rewards={str(name): _number(value) for name, value in _of(dict, row.get("rewards") or {}).items()},
        advantage=_number(row["advantage"]),
    )


def _of(kind: type, value: Any) -> Any:
    # True is an int to Python, but not to a reader of the file.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{value!r:.40} is not of type {kind.__name__}")
    return value


def _number(value: Any) -> float | None:
    """NaN, which JSON's writers in Python let through, is no number here."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r:.40} is not a number")
    return float(value) if math.isfinite(value) else None
