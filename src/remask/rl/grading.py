"""Answers graded by reward functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from remask.choices import OnBadReward
from remask.rl.completions import Completion
from remask.rl.prompts import Prompt
from remask.rl.rewards import Reward, Scores, score
from remask.sampling.engine import Answer


@dataclass(frozen=True)
class Grader:
    """A grader holds the reward functions of a run.

    columns: what they are given of a prompt's further fields, by name. prefill: the words that every answer begins
    with.
    """

    rewards: Sequence[Reward]
    on_bad: OnBadReward
    columns: Sequence[str]
    prefill: str = ""

    def score(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> Scores:
        """Return the rewards of one answer to each prompt. Raises UserError as `on_bad` says."""
        completions = [
            Completion(p.text, self.prefill + a.text, a.tokens, a.row.ended, p.columns, p.task, p.problem)
            for p, a in zip(prompts, answers, strict=True)
        ]
        return score(self.rewards, completions, on_bad=self.on_bad, columns=list(self.columns))
