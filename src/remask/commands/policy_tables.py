"""The tables of `remask estimators --policy`, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from remask.commands.estimator_tables import as_table, interval, number
from remask.commands.policy_estimators import SAMPLERS_OWN


def tables(record: dict[str, Any]) -> Iterator[tuple[str, Table, str]]:
    """Yield (title, table, note) of what was measured."""
    settings, found = record["settings"], record["policy"]
    yield (
        f"Policy gradients: {settings['rollouts']} rollouts of {found['answers']} answers, reveal "
        f"{settings['reveal']}, mean reward {found['reward']:.3f}",
        as_table(
            ["objective", "forwards", "s", "cosine", "noise", "compute", "one rollout"],
            [_row(measured) for measured in found["objectives"]],
        ),
        "forwards: of a row, for one answer's gradient (with its backward pass one counts as 3). s: for a rollout's. "
        "cosine: of the objective's mean with the sampler's own mean, both without their noise. noise: variance over "
        "norm² of a rollout's gradient. compute: forwards for a gradient as exact as one of the sampler's own, of its. "
        "one rollout: the cosine of one rollout's gradient with the sampler's own mean. Brackets: 95 %, over rollouts. "
        f"–: lost in noise. {_target(settings)}",
    )
    if "gains" in found:
        yield (
            f"Reward gained by a step of length {settings['step']:g} along each mean gradient",
            as_table(
                ["objective", "expected", "measured"],
                [
                    [g["name"], f"{g['expected']:+.4f}", f"{g['measured']:+.4f}{interval(g['low'], g['high'], 4)}"]
                    for g in found["gains"]
                ],
            ),
            f"expected: to first order. measured: on {settings['rollouts'] * settings['prompts']} fresh problems, "
            f"{settings['completions']} answers to each, with the same seeds before and after. 95 % over problems.",
        )


def _row(measured: dict[str, Any]) -> list[str]:
    cosine, compute = _figure(measured["cosine"]), _figure(measured["compute"])
    if measured["name"] == SAMPLERS_OWN:
        cosine = compute = "1"
    took = [f"{measured['forwards']:.0f}", f"{measured['seconds']:.2f}"]
    noise = _figure(measured["relative"], spread=False)
    return [measured["name"], *took, cosine, noise, compute, _figure(measured["one_rollout"])]


def _target(settings: dict[str, Any]) -> str:
    reveal, moved = settings["reveal"], ""
    if settings["moved"]:
        moved = f"Weights moved by {settings['moved']:g} after they wrote the answers, but for the first row. "
    if reveal in ("random", "left_to_right"):
        return f"{moved}Under reveal {reveal} the sampler's own is an unbiased estimate of ∇ of the expected reward."
    return f"{moved}Under reveal {reveal} the sampler's own lacks the part through the choice of places (theory, 12)."


def _figure(figure: dict[str, Any], *, spread: bool = True) -> str:
    digits = 2 if figure["value"] is None or abs(figure["value"]) < 10 else 1
    return number(figure["value"], digits) + (interval(figure["low"], figure["high"], digits) if spread else "")
