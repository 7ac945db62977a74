"""Which of a run's kept completions the page shows: a few problems, from the first rollout to the last."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from remask.report.rollouts import Completion, PromptGroup
from remask.report.runs import Run
from remask.report.words import signed

MOMENTS, PROBLEMS = 4, 2
"""The number of rollouts of a run that are shown, and of groups of each; the page says how many there are."""

COMPLETIONS = 12
"""The most completions of one group; the best and the worst are shown, the others unfold on a click."""

LINES, CHARACTERS = 10, 420
"""The lines and characters after which a longer text is cut; the rest unfolds on a click..."""

LONGEST = 6000
"""The most characters of a text that unfold on a click."""


def samples(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return what the template needs for each run that kept completions."""
    return [_of_run(run) for run in runs if run.rollouts]


def _of_run(run: Run) -> dict[str, Any]:
    shown, same = choose(run.rollouts)
    moments: dict[int, list[PromptGroup]] = {}
    for group in shown:
        moments.setdefault(group.rollout, []).append(group)
    return {
        "name": run.name,
        "method": run.method,
        "seed": run.seed,
        "shown": len(shown),
        "groups": len(run.rollouts),
        "rollouts": len({group.rollout for group in run.rollouts}),
        "same": same,
        "moments": [
            {"rollout": rollout, "step": groups[0].step, "groups": [_card(group) for group in groups]}
            for rollout, groups in moments.items()
        ],
    }


def choose(groups: Sequence[PromptGroup]) -> tuple[list[PromptGroup], bool]:
    """Return the groups to show in the order of their rollouts, and whether they are the same problems over time.

    They are where problems came back often enough to be followed; else the first groups of each rollout shown.
    """
    by_rollout: dict[int, list[PromptGroup]] = {}
    by_problem: dict[tuple[str | None, str], dict[int, PromptGroup]] = {}
    for group in sorted(groups, key=lambda group: group.rollout):
        by_rollout.setdefault(group.rollout, []).append(group)
        by_problem.setdefault((group.task, group.problem), {}).setdefault(group.rollout, group)
    enough = min(3, len(by_rollout))
    back = [found for found in by_problem.values() if len(found) >= enough > 1]
    if not back:
        return [group for rollout in spaced(list(by_rollout)) for group in by_rollout[rollout][:PROBLEMS]], False
    followed = sorted(back, key=len, reverse=True)[:PROBLEMS]
    shown = [found[rollout] for found in followed for rollout in spaced(list(found))]
    return sorted(shown, key=lambda group: group.rollout), True


def spaced(rollouts: Sequence[int]) -> list[int]:
    """Return at most MOMENTS of the rollouts, evenly spaced, the first and the last among them."""
    if len(rollouts) <= MOMENTS:
        return list(rollouts)
    return [rollouts[round(i * (len(rollouts) - 1) / (MOMENTS - 1))] for i in range(MOMENTS)]


def best_and_worst_first(completions: Sequence[Completion]) -> list[tuple[str, Completion]]:
    """Return (`best`, `worst` or nothing, completion); the others in falling order of reward, those without
    one last.

    Where all rewards are equal none is best, and the order is the file's.
    """
    rewarded = sorted(((c.reward, c) for c in completions if c.reward is not None), key=lambda pair: -pair[0])
    if not rewarded or rewarded[0][0] == rewarded[-1][0]:
        return [("", completion) for completion in completions]
    ranked = [completion for _, completion in rewarded]
    without = [completion for completion in completions if completion.reward is None]
    return [("best", ranked[0]), ("worst", ranked[-1]), *(("", c) for c in [*ranked[1:-1], *without])]


def _card(group: PromptGroup) -> dict[str, Any]:
    ordered = best_and_worst_first(group.completions)
    rewards = {completion.reward for completion in group.completions}
    return {
        "task": group.task,
        "problem": group.problem,
        "prompt": cut(group.prompt),
        "equal": len(rewards) == 1 and None not in rewards and len(group.completions) > 1,
        "completions": [_completion(mark, completion) for mark, completion in ordered[:COMPLETIONS]],
        "count": len(ordered),
    }


def _completion(mark: str, completion: Completion) -> dict[str, Any]:
    parts = completion.rewards if len(completion.rewards) > 1 else {}
    return {
        "mark": mark,
        "text": cut(completion.text),
        "reward": _value(completion.reward),
        "advantage": "–" if completion.advantage is None else signed(completion.advantage, 2),
        "parts": [(name, _value(value)) for name, value in parts.items()],
        "tokens": completion.tokens,
        "ended": completion.ended,
    }


def _value(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".replace("-", "−")


def cut(text: str) -> dict[str, Any]:
    """Return the text's head, the rest to unfold, and how many characters are left out altogether."""
    lines = text.splitlines(keepends=True)
    head = "".join(lines[:LINES])[:CHARACTERS]
    rest = text[len(head) :]
    if len(rest) < CHARACTERS // 4 and rest.count("\n") < LINES // 2:
        return {"head": text, "rest": "", "more": 0, "left_out": 0}
    if len(head) == CHARACTERS and any(character.isspace() for character in head):
        # Not in the middle of a word.
        head = re.sub(r"\S+\Z", "", head)
    rest = text[len(head) :]
    return {"head": head, "rest": rest[:LONGEST], "more": len(rest), "left_out": len(rest[LONGEST:])}
