"""The tables of runs, one for each kind of training: a new column is one entry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from remask.report.curves import fitting
from remask.report.runs import Run
from remask.report.words import duration, number, percent

PARTS = ("sampling", "grading", "scoring", "update")
"""The parts of a step of reinforcement learning that take time, in this order."""

Cell = str | list[dict[str, str]]


@dataclass(frozen=True)
class Column:
    """A column of the table of runs. `head` may hold a line break; `css` is the class of its cells."""

    head: str
    cell: Callable[[Run], Cell]
    css: str = ""


def last(run: Run, key: str) -> float | None:
    """Return the last value of a logged quantity, or None."""
    values = run.series(key)[1]
    return values[-1] if values else None


def mean(run: Run, key: str) -> float | None:
    """Return the mean of a logged quantity, or None."""
    values = run.series(key)[1]
    return sum(values) / len(values) if values else None


def largest(run: Run, key: str) -> float | None:
    """Return the largest value of a logged quantity, or None."""
    return max(run.series(key)[1], default=None)


def late(run: Run, key: str) -> float | None:
    """Return the mean over the last tenth of what was logged: one rollout alone says little."""
    values = run.series(key)[1]
    values = values[-max(1, len(values) // 10) :]
    return sum(values) / len(values) if values else None


def in_percent(share: float | None) -> str:
    """Return a share in percent, or a dash for None."""
    return "–" if share is None else f"{percent(share)} %"


def steps(run: Run) -> str:
    """Return the last step that was logged, or a dash."""
    known = [row["step"] for row in run.metrics if isinstance(row.get("step"), int | float)]
    return f"{max(known):.0f}" if known else "–"


def choices(run: Run) -> str:
    """Return the likelihood and the level of a method of reinforcement learning, the choices that distinguish methods
    first.
    """
    objective = run.info.get("objective")
    record = objective if isinstance(objective, dict) else {}
    return ", ".join(str(record[key]) for key in ("likelihood", "level") if record.get(key)) or "–"


def time_shares(run: Run) -> Cell:
    """Return each part's share of all the time, as slices of a bar. Steps without a rollout log no share of its parts:
    0.
    """
    rows = [row for row in run.metrics if any(_is_number(row.get(f"share_{part}")) for part in PARTS)]
    # Runs that were made before steps' seconds were logged count every row alike.
    seconds = [row["seconds"] if _is_number(row.get("seconds")) else 1.0 for row in rows]
    known = []
    for i, part in enumerate(PARTS):
        shares = [row.get(f"share_{part}") for row in rows]
        if any(map(_is_number, shares)):
            spent = sum(s * share for s, share in zip(seconds, shares, strict=True) if _is_number(share))
            known.append((i, part, max(0.0, spent / sum(seconds))))
    # Rounded shares may come to a little more than the whole bar.
    whole = max(1.0, sum(share for *_, share in known))
    return [
        {"index": str(i), "part": part, "width": percent(share / whole, 2), "shown": percent(share, 0)}
        for i, part, share in known
    ] or "–"


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and abs(value) < float("inf")


METHOD = Column("method", lambda run: run.method, "l")
SEED = Column("seed", lambda run: "–" if run.seed is None else str(run.seed))
STEPS = Column("steps", steps)
GRADIENT = Column("gradient norm,\nlargest", lambda run: number(largest(run, "grad_norm_max"), 1))
SPEED = Column("tokens/s,\nmean", lambda run: number(mean(run, "tokens_per_second"), 0))
TIME = Column("time", lambda run: duration(run.info.get("seconds")))
STATUS = Column("status", lambda run: run.status, "l tag")

SFT = (
    METHOD,
    SEED,
    STEPS,
    Column("held-out nll,\nlast", lambda run: number(last(run, "eval_nll"), 3)),
    GRADIENT,
    Column("masked,\nmean", lambda run: in_percent(mean(run, "masked_fraction"))),
    Column("effective\ntokens", lambda run: in_percent(mean(run, "effective_tokens"))),
    SPEED,
    Column("probe's share\nof step time", lambda run: in_percent(mean(run, "share_probe"))),
    TIME,
    STATUS,
)

RL_BEFORE = (
    METHOD,
    SEED,
    STEPS,
    Column("reward,\nlast tenth", lambda run: number(late(run, "reward_mean"), 3)),
)
"""The columns before those of each task's held-out accuracy."""

RL_AFTER = (
    Column("KL, nats,\nlast tenth", lambda run: number(late(run, "kl"), 4)),
    Column("ratio,\nlargest", lambda run: number(largest(run, "ratio_max"), 2)),
    Column("where the time goes, %", time_shares, "l"),
    Column("sampled\ntokens/s", lambda run: number(mean(run, "rollout_tokens_per_second"), 0)),
    SPEED,
    TIME,
    GRADIENT,
    Column("likelihood, level", choices, "l tag"),
    STATUS,
)

PREFERENCE = (
    METHOD,
    SEED,
    STEPS,
    Column("held-out loss,\nlast", lambda run: number(last(run, "eval_loss"), 4)),
    Column("held-out accuracy,\nlast", lambda run: in_percent(last(run, "eval_accuracy"))),
    Column("held-out margin,\nlast", lambda run: number(last(run, "eval_margin"), 3)),
    GRADIENT,
    SPEED,
    TIME,
    STATUS,
)


def rl_columns(runs: Sequence[Run]) -> tuple[Column, ...]:
    """Return the columns of a table of reinforcement learning, with one for each task's held-out accuracy."""
    return (*RL_BEFORE, *(_accuracy(key, task) for key, task in fitting("eval_*_accuracy", runs).items()), *RL_AFTER)


def _accuracy(key: str, task: str) -> Column:
    return Column(f"accuracy, last,\n{task}", lambda run: in_percent(last(run, key)))
