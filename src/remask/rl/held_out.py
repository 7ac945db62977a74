"""The fixed held-out problems that a policy is measured on while it learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from remask.choices import OnBadReward
from remask.models.facts import stop_token_ids
from remask.rl.completions import Completion
from remask.rl.prompts import Prompt, columns_of
from remask.rl.ranks import agreed
from remask.rl.rewards import Reward, score
from remask.rl.rollout import row_seed
from remask.sampling.generate import generate_from_ids, length_of
from remask.sampling.schedule import Decoding


@dataclass
class HeldOut:
    """Problems, how they are answered (on the same random numbers every time), and the rewards they are measured by."""

    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[Prompt]
    decoding: Decoding
    rewards: Sequence[Reward]
    on_bad: OnBadReward
    batch_size: int
    prefill: str = ""

    def measure(self, model: Any) -> dict[str, float]:
        """`reward` (mean), and of each task `<task>_accuracy` and `<task>_score`, over all processes."""
        state = PartialState()
        own = range(len(self.prompts))[state.process_index :: state.num_processes]
        found = gather_object(agreed(lambda: self._measured(model, own), when="in the evaluation, "))
        rewards = [reward for _, reward, _, _ in found if reward == reward]
        shown = {"reward": sum(rewards) / len(rewards)} if rewards else {}
        for task in dict.fromkeys(p.task.name for p in self.prompts if p.task):
            graded = [(correct, dense) for name, _, correct, dense in found if name == task]
            shown[f"{task}_accuracy"] = sum(correct for correct, _ in graded) / len(graded)
            shown[f"{task}_score"] = sum(dense for _, dense in graded) / len(graded)
        return shown

    def _measured(self, model: Any, own: Sequence[int]) -> list[tuple[str | None, float, bool, float]]:
        """(task, reward, correct, score) of this process's problems."""
        prompts = [self.prompts[i] for i in own]
        if not prompts:
            return []
        generated = generate_from_ids(
            model,
            self.tokenizer,
            [prompt.ids for prompt in prompts],
            self.decoding,
            batch_size=self.batch_size,
            row_seeds=[row_seed(0, 0, i) for i in own],
        )
        stops = set(stop_token_ids(model.config))
        texts = [self.prefill + text for text in generated.texts]
        completions = [
            Completion(p.text, text, length_of(ids, stops), row.ended, p.columns, p.task, p.problem)
            for p, text, ids, row in zip(prompts, texts, generated.token_ids, generated.history, strict=True)
        ]
        scores = score(self.rewards, completions, on_bad=self.on_bad, columns=columns_of(self.prompts))
        return [
            (p.task.name, reward, grade.correct, grade.score) if p.task and grade else (None, reward, False, 0.0)
            for p, reward, grade in zip(prompts, scores.total, scores.batch.grades, strict=True)
        ]
