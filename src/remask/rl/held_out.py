"""The fixed held-out problems that a policy is measured on while it learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from accelerate import PartialState
from accelerate.utils import gather_object

from remask.rl.grading import Grader
from remask.rl.prompts import Prompt
from remask.rl.ranks import agreed
from remask.rl.rollout import row_seed
from remask.sampling.engine import Engine, Request
from remask.sampling.schedule import Decoding


@dataclass
class HeldOut:
    """Held-out problems, with how they are answered (on the same random numbers every time), and how they are
    graded.
    """

    engine: Engine
    grader: Grader
    prompts: Sequence[Prompt]
    decoding: Decoding

    def measure(self) -> dict[str, float]:
        """Return `reward` (mean), and of each task `<task>_accuracy` and `<task>_score`, over all processes."""
        state = PartialState()
        own = range(len(self.prompts))[state.process_index :: state.num_processes]
        found = gather_object(agreed(lambda: self._measured(own), when="in the evaluation, "))
        rewards = [reward for _, reward, _, _ in found if reward == reward]
        shown = {"reward": sum(rewards) / len(rewards)} if rewards else {}
        for task in dict.fromkeys(p.task.name for p in self.prompts if p.task):
            graded = [(correct, dense) for name, _, correct, dense in found if name == task]
            shown[f"{task}_accuracy"] = sum(correct for correct, _ in graded) / len(graded)
            shown[f"{task}_score"] = sum(dense for _, dense in graded) / len(graded)
        return shown

    def _measured(self, own: Sequence[int]) -> list[tuple[str | None, float, bool, float]]:
        """(task, reward, correct, score) of this process's problems."""
        prompts = [self.prompts[i] for i in own]
        if not prompts:
            return []
        requests = [Request(self.prompts[i].ids, row_seed(0, 0, i)) for i in own]
        scores = self.grader.score(prompts, self.engine.answer(requests, self.decoding))
        return [
            (p.task.name, reward, grade.correct, grade.score) if p.task and grade else (None, reward, False, 0.0)
            for p, reward, grade in zip(prompts, scores.total, scores.batch.grades, strict=True)
        ]
