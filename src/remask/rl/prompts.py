"""What a policy is asked: prompts with what their reward functions need, in an order fixed by the seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from remask.data.chat import encode_prompt
from remask.data.columns import CHATS, PROMPTS, Asked, asked_in, has
from remask.data.files import Unreadable, read_rows
from remask.diffusion.noise import stream
from remask.errors import UserError
from remask.tasks import Problem, Task
from remask.tasks.benchmark import Asking, Benchmark


@dataclass(frozen=True)
class Prompt:
    """A prompt is one question. text is the user's turn, ids the whole prompt's tokens, columns what reward functions
    are given.
    """

    key: str
    text: str
    ids: list[int]
    columns: dict[str, Any]
    task: Task | None = None
    problem: Problem | None = None


def task_prompts(benchmark: Benchmark, tokenizer: PreTrainedTokenizerBase, asking: Asking) -> list[Prompt]:
    """Return the problems of a task as prompts; their fields are the columns."""
    prompts = []
    for problem in benchmark.problems:
        text = asking.prompt(benchmark.task, problem)
        turns = asking.turns(benchmark.task, problem)
        ids = encode_prompt(tokenizer, turns, prefill=asking.prefill, where=problem.key)
        prompts.append(Prompt(problem.key, text, ids, dict(problem.fields), benchmark.task, problem))
    return prompts


def data_prompts(source: str, tokenizer: PreTrainedTokenizerBase, asking: Asking) -> list[Prompt]:
    """Return a file's or data set's rows as prompts, with their columns, of any kind, for the reward functions.

    The question stands in a column of `columns.CHATS` or `PROMPTS`: text, or turns that end with the one to be
    answered. `prompt` and the conversations are no columns for reward functions; all other columns are. Raises
    UserError naming the row that has no prompt, or one that cannot be put to the model.
    """
    prompts = []
    for number, (where, row) in enumerate(read_rows(source, split="train")):
        if isinstance(row, Unreadable) or not isinstance(row, dict):
            reason = row.reason if isinstance(row, Unreadable) else "a row is a mapping of columns"
            raise UserError(reason, where=where, mend="correct it there")
        asked = _asked(row, asking, where)
        ids = encode_prompt(tokenizer, asked.messages, prefill=asking.prefill, tools=asked.tools, where=where)
        columns = {name: value for name, value in row.items() if name not in ("prompt", *CHATS)}
        prompts.append(Prompt(f"{number}", asked.messages[-1]["content"], ids, columns))
    if not prompts:
        raise UserError("holds no prompts", where=source, mend="give rows with prompt, question or messages")
    return prompts


def _asked(row: dict[str, Any], asking: Asking, where: str) -> Asked:
    name = next((name for name in (*CHATS, *PROMPTS) if has(row, name)), None)
    asked = None if name is None else asked_in(row, name, where)
    if asked is None or asked.messages[-1]["role"] in ("assistant", "system"):
        raise UserError(
            "the row has no prompt" if asked is None else f"{name} does not end with a turn to be answered",
            where=where,
            mend="give prompt or question (text), or messages that end with the user's turn",
        )
    if asking.system and asked.messages[0]["role"] != "system":
        return replace(asked, messages=[{"role": "system", "content": asking.system}, *asked.messages])
    return asked


def fitting(prompts: Sequence[Prompt], limit: int | None, *, drop: bool, mend: str) -> tuple[list[Prompt], int]:
    """Return (prompts of at most `limit` tokens, how many were dropped). Raises UserError for a longer one unless
    `drop`.
    """
    kept = [prompt for prompt in prompts if limit is None or len(prompt.ids) <= limit]
    dropped = len(prompts) - len(kept)
    if dropped and not drop:
        long = next(prompt for prompt in prompts if limit is not None and len(prompt.ids) > limit)
        raise UserError(
            f"{dropped} of {len(prompts)} prompts are longer than {limit} tokens, the first has {len(long.ids)}",
            where=long.key,
            mend=mend,
        )
    if not kept:
        raise UserError(f"all {len(prompts)} prompts are longer than {limit} tokens", mend=mend)
    return kept, dropped


def columns_of(prompts: Sequence[Prompt]) -> list[str]:
    """Return the names of the columns that any prompt has: reward functions are given all of them in every batch."""
    return list(dict.fromkeys(name for prompt in prompts for name in prompt.columns))


class PromptOrder:
    """An order chooses the prompts of each rollout: all of them in an order drawn from (seed, epoch), epoch after
    epoch.
    """

    def __init__(self, size: int, *, per_rollout: int, seed: int) -> None:
        self.size, self.per_rollout, self.seed = size, per_rollout, seed

    def of(self, rollout: int) -> list[int]:
        """Return the prompts' indices for a rollout: the same for the same rollout, whenever it is asked."""
        places = range(rollout * self.per_rollout, (rollout + 1) * self.per_rollout)
        orders = {epoch: self._order(epoch) for epoch in {place // self.size for place in places}}
        return [orders[place // self.size][place % self.size] for place in places]

    def _order(self, epoch: int) -> list[int]:
        return stream("prompts", self.seed, epoch).permutation(self.size).tolist()
