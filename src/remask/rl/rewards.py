"""Reward functions by name, and their weighted sum.

A function of one's own has the usual signature, `reward(prompts, completions, **columns) -> list[float | None]`: every
argument is a list with an entry a completion, and None says that the function does not apply to it. Numbers only: no
torch, no state, and a batch may be scored in any thread.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from remask.choices import OnBadReward
from remask.errors import UserError, first_line
from remask.rl import own_rewards
from remask.rl.completions import Batch, Completion
from remask.rl.faults import said_of
from remask.rl.own_rewards import OwnFunction
from remask.tasks import form

NAMES = "task, correct, format, length, length:<n>, share:<text>, module:function, file.py:function"
LARGEST = 1e15
"""The largest size of a reward times its weight: squares of larger ones overflow where they are averaged."""
FAULTS_TOLD = 5
EXCERPT = 60

Function = Callable[[Batch], Any]
"""A function from a batch to a list with a number or None for each completion."""


@dataclass(frozen=True)
class Reward:
    """A reward is a function, its name and its weight. own: the user's function that `function` calls, where
    it is one.
    """

    name: str
    weight: float
    function: Function
    own: OwnFunction | None = None


@dataclass(frozen=True)
class Scores:
    """The scores of completions.

    total: Σ weight·value over the functions that gave a value, NaN where none did or one failed. by_function:
    unweighted, NaN where there is no value. none: how many None each function gave. faults: what went wrong with on_bad
    = skip, the first few in full.
    """

    total: list[float]
    by_function: dict[str, list[float]]
    none: dict[str, int]
    faults: list[str]
    batch: Batch


@dataclass(frozen=True)
class Fault:
    """A fault stands in place of a value, and says what a function did instead."""

    what: str
    cause: BaseException | None = None


# ---- the built-in functions ----------------------------------------------------------------------------------------


def task_score(batch: Batch) -> list[float | None]:
    """Return the task's dense score."""
    return [None if grade is None else grade.score for grade in batch.grades]


def correct(batch: Batch) -> list[float | None]:
    """Return 1 where the answer is correct, else 0; None where a row belongs to no task."""
    return [None if grade is None else float(grade.correct) for grade in batch.grades]


def kept_form(batch: Batch) -> list[float]:
    """Return how well the answer keeps its task's form; without a task, that of a tagged answer."""
    return [
        form.share(form.tagged(one.text))
        if one.task is None or one.problem is None
        else one.task.format(one.problem, one.text)
        for one in batch.completions
    ]


def shortness(batch: Batch, *, free: int, canvas: int) -> list[float]:
    """Return 1 up to `free` tokens; beyond them the reward falls linearly to 0 at the canvas's length."""
    return [min(1.0, max(0.0, (canvas - one.tokens) / (canvas - free))) for one in batch.completions]


def share_of(batch: Batch, *, text: str) -> list[float]:
    """Return the share of the answer's characters that are this text: the reward to try a set-up with."""
    return [len(text) * one.text.count(text) / max(1, len(one.text)) for one in batch.completions]


BUILT_IN: dict[str, Function] = {"task": task_score, "correct": correct, "format": kept_form}
OF_TASKS = ("task", "correct")
"""The functions that give None where a row belongs to no task."""


# ---- from names to functions ---------------------------------------------------------------------------------------


def parse_rewards(names: Sequence[str], weights: Sequence[float] | None, *, canvas: int) -> list[Reward]:
    """Return the functions named, those of users imported, each with its weight (1 without `weights`). `canvas` is its
    length in tokens. Raises UserError for whatever is wrong with names or weights.
    """
    if not names:
        raise UserError("no reward function", where="rewards.functions", mend=f"name one or more of {NAMES}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"{', '.join(twice)} is named twice", where="rewards.functions", mend="name it once, with a weight"
        )
    if weights is None:
        weights = [1.0] * len(names)
    if len(weights) != len(names):
        raise UserError(
            f"{len(weights)} weights for {len(names)} functions",
            where="rewards.weights",
            mend="give one for each function, in their order, or none at all",
        )
    for name, weight in zip(names, weights, strict=True):
        if not math.isfinite(weight):
            raise UserError(f"the weight of {name} is {weight}", where="rewards.weights", mend="give a finite number")
    if not any(weights):
        raise UserError("every weight is 0", where="rewards.weights", mend="give one function a weight other than 0")
    return [_reward(name, float(weight), canvas) for name, weight in zip(names, weights, strict=True)]


def refuse_missing_columns(rewards: Sequence[Reward], columns: Sequence[str], *, row: str) -> None:
    """Raises UserError for a column that a user's function needs and no prompt has. `row`: what a prompt is called."""
    given = Batch((), tuple(columns)).columns()
    for reward in rewards:
        if reward.own is not None:
            reward.own.refuse_missing(given, row=row)


def _reward(name: str, weight: float, canvas: int) -> Reward:
    kind, colon, rest = name.partition(":")
    if name in BUILT_IN:
        return Reward(name, weight, BUILT_IN[name])
    if kind == "length":
        free = rest if colon else "0"
        if not free.isdecimal() or int(free) >= canvas:
            raise UserError(
                f"{free!r} is not a number of tokens below the canvas' {canvas}",
                where=name,
                mend="write length:<n>, or length for none that are free",
            )
        return Reward(name, weight, partial(shortness, free=int(free), canvas=canvas))
    if kind == "share":
        if not rest:
            raise UserError("no text to find", where=name, mend="write share:<text>")
        return Reward(name, weight, partial(share_of, text=rest))
    close = difflib.get_close_matches(kind, [*BUILT_IN, "length", "share"], n=1, cutoff=0.75)
    hint = f"did you mean {close[0]!r}? " if close else ""
    if not colon:
        raise UserError(f"unknown reward function {name!r}", mend=f"{hint}there are {NAMES}")
    own = own_rewards.load(name, hint)
    return Reward(name, weight, lambda batch: own(batch.columns()), own)


# ---- scoring -------------------------------------------------------------------------------------------------------


def score(
    rewards: Sequence[Reward], completions: Sequence[Completion], *, on_bad: OnBadReward, columns: Sequence[str] = ()
) -> Scores:
    """Return what completions are worth. `columns` are names that functions are given even where no completion has them
    (as None); those that any has are given in any case.

    A function fails a completion where it raises, or returns a value that is not a finite number. With on_bad = error
    that is a UserError; with skip the completion's total is NaN and `faults` says so. A UserError from within a
    function, and a return value that is not a list of the right length, are errors in any case.
    """
    names = dict.fromkeys([*columns, *(name for one in completions for name in one.columns)])
    batch = Batch(completions, tuple(names))
    faults: list[str] = []
    failed: set[int] = set()
    values: dict[str, list[float | None]] = {}
    for reward in rewards:
        own = values[reward.name] = []
        for place, value in enumerate(_values(reward, batch, on_bad, faults)):
            if isinstance(value, Fault):
                what = f"{value.what} for {_excerpt(completions[place])}"
                if on_bad == "error":
                    raise _error(reward, what) from value.cause
                faults.append(f"{reward.name}: {what}")
                failed.add(place)
                value = math.nan
            own.append(value)
    total = [
        math.nan if place in failed else _total([(reward.weight, values[reward.name][place]) for reward in rewards])
        for place in range(len(completions))
    ]
    if len(faults) > FAULTS_TOLD:
        faults[FAULTS_TOLD:] = [f"and {len(faults) - FAULTS_TOLD} more"]
    return Scores(
        total,
        {name: [math.nan if value is None else value for value in own] for name, own in values.items()},
        {name: own.count(None) for name, own in values.items()},
        faults,
        batch,
    )


def _total(weighted: Sequence[tuple[float, float | None]]) -> float:
    given = [weight * value for weight, value in weighted if value is not None]
    return sum(given) if given else math.nan


def _values(reward: Reward, batch: Batch, on_bad: OnBadReward, faults: list[str]) -> Iterator[float | Fault | None]:
    """A function's values in turn. Where it raises for many completions together, it is asked again for one after the
    other: that shows which it fails, and leaves it the rest.
    """
    if not batch.completions:
        return
    try:
        returned = reward.function(batch)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if len(batch.completions) == 1:
            yield Fault(said_of(error), error)
            return
        some = False
        for one in batch.one_by_one():
            for value in _values(reward, one, on_bad, faults):
                some |= isinstance(value, Fault)
                yield value
        if not some:
            what = f"{said_of(error)} for {len(batch.completions)} completions together, and for none of them alone"
            if on_bad == "error":
                raise _error(reward, what) from error
            faults.append(f"{reward.name}: {what}")
        return
    if not isinstance(returned, list) or len(returned) != len(batch.completions):
        length = f" of {len(returned)}" if isinstance(returned, list) else ""
        raise UserError(
            f"it returned a {type(returned).__name__}{length} for {len(batch.completions)} completions",
            where=reward.name,
            mend="return a list with one number or None for each completion",
        )
    for value in returned:
        yield _number(value, reward.weight)


def _number(value: Any, weight: float) -> float | Fault | None:
    if value is None:
        return None
    try:
        if isinstance(value, str) or not hasattr(value, "__float__") or getattr(value, "shape", ()) != ():
            return Fault(f"gave a {type(value).__name__}, which is neither a number nor None,")
        number = float(value)
    except Exception as error:
        return Fault(f"gave a {type(value).__name__} that is no number ({first_line(error)})", error)
    if math.isfinite(number) and abs(number * weight) > LARGEST:
        return Fault(f"gave {number:g}, which is beyond ±{LARGEST:g} with its weight,")
    return number if math.isfinite(number) else Fault(f"gave {number}")


def _error(reward: Reward, what: str) -> UserError:
    mend = "mend the function, or leave such completions out with --rewards.on-bad skip"
    return UserError(f"the reward function {what}", where=reward.name, mend=mend)


def _excerpt(one: Completion) -> str:
    """How an answer and its prompt begin."""
    text, prompt = (repr(t if len(t) <= EXCERPT else t[:EXCERPT] + "…") for t in (one.text, one.prompt))
    return f"the completion {text} of the prompt {prompt}"
