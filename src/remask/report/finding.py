"""What a comparison found, in a sentence that says it whichever way it is."""

from __future__ import annotations

from remask.evaluation.statistics import Difference
from remask.report.words import plural

LEVEL = 0.05


def finding(candidate: str, baseline: str, d: Difference, p: float, *, seeds: int, things: str) -> str:
    """Return one sentence, such as `GIFT answers 9 of 100 more puzzles than SFT (95 % interval 6 to 14, 3 seeds).`, on
    a difference.

    `d` is candidate − baseline as shares of `things`; `p` decides whether a difference is found at all (at 5 %).
    """
    interval = f"95 % interval {_count(d.low)} to {_count(d.high)}, {plural(seeds, 'seed')}"
    if p >= LEVEL:
        return (
            f"No difference between {candidate} and {baseline} was found: of 100 {things}, "
            f"{candidate} answers {_count(abs(d.mean))} {'more' if d.mean >= 0 else 'fewer'} ({interval})."
        )
    way = "more" if d.mean > 0 else "fewer"
    return f"{candidate} answers {_count(abs(d.mean))} of 100 {way} {things} than {baseline} ({interval})."


def _count(share: float) -> str:
    """A share of a hundred: whole numbers, and tenths below one."""
    value = 100 * share
    text = f"{value:.0f}" if abs(value) >= 1 or round(value, 1) == 0 else f"{value:.1f}"
    return text.replace("-", "−") if text not in ("-0", "−0") else "0"
