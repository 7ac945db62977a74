"""Does a likelihood know which of a prompt's answers is the better one?

Answers are sampled, graded and scored; answers to the same prompt are compared in pairs of unlike reward. The share of
pairs in which the better answer has the higher value is ½ where the value knows nothing (a within-prompt AUC).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from remask.analysis.estimators import chosen, draw_noise
from remask.choices import PromptStyle
from remask.data.canvas import Row
from remask.data.collate import lay_out
from remask.diffusion.blocks import attention_of, in_blocks
from remask.diffusion.corruption import Canvas
from remask.diffusion.likelihood import elbo_coupled, mean_field
from remask.diffusion.reader import reader_of
from remask.models.facts import Facts
from remask.sampling.engine import LocalEngine, Request
from remask.sampling.generate import encode_prompts
from remask.sampling.schedule import Decoding
from remask.tasks.base import Problem, Task


@dataclass(frozen=True)
class Answers:
    """Sampled answers [P prompts, G]: their rewards, and each value's reading of them (nats)."""

    rewards: list[list[float]]
    values: dict[str, list[list[float]]]


def sample_answers(
    model: Any,
    tokenizer: Any,
    task: Task,
    problems: Sequence[Problem],
    known: Facts,
    decoding: Decoding,
    *,
    completions: int,
    draws: int,
    style: PromptStyle,
    seed: int = 0,
    batch_size: int = 64,
    on_done: Callable[[int], None] | None = None,
) -> Answers:
    """Sample `completions` answers a problem, graded by the task's dense reward, with the coupled ELBO of `draws` draws
    and the mean-field value of the whole canvas.
    """
    prompts = encode_prompts(model, tokenizer, [task.prompt(problem, style) for problem in problems], decoding)
    encoded = [ids for ids in prompts for _ in range(completions)]
    requests = [Request(ids, seed * 1_000_003 + row) for row, ids in enumerate(encoded)]
    answers = LocalEngine(tokenizer, batch_size, model=model, on_done=on_done).answer(requests, decoding)
    asked = [problem for problem in problems for _ in range(completions)]
    rewards = [grade.score for grade in task.grade_all(asked, [answer.text for answer in answers])]
    rows = [Row(ids, answer.row.token_ids, "") for ids, answer in zip(encoded, answers, strict=True)]
    ids, attended, response = lay_out(rows, [len(row.response) for row in rows], known.eos_ids[0])
    batch = Canvas(*(x.to(model.device) for x in (ids, attended, response, response)))
    batch = in_blocks(batch, attention_of(model))
    generator = torch.Generator().manual_seed(seed)
    values: dict[str, list[Tensor]] = {"ELBO": [], "mean field": []}
    reader = reader_of(model)
    with torch.no_grad():
        for part in torch.arange(len(rows)).split(batch_size):
            own = chosen(batch, part.to(model.device))
            noise = draw_noise(
                len(part), ids.shape[1], draws, stratified=True, generator=generator, device=model.device
            )
            values["ELBO"].append(elbo_coupled(reader, own, noise, known.mask_id).sequence.cpu())
            values["mean field"].append(mean_field(reader, own, noise[:1], known.mask_id).sequence.cpu())
    by_prompt = {name: torch.cat(parts).reshape(len(problems), completions).tolist() for name, parts in values.items()}
    return Answers(torch.tensor(rewards, dtype=torch.float64).reshape(len(problems), completions).tolist(), by_prompt)


def concordance(rewards: Sequence[float], values: Sequence[float]) -> float | None:
    """Return the share of one prompt's pairs of unlike reward that the values order rightly, ties counting half; None
    where all rewards are the same.
    """
    right = pairs = 0.0
    for i, (reward, value) in enumerate(zip(rewards, values, strict=True)):
        for other, compared in zip(rewards[:i], values[:i], strict=True):
            if reward != other:
                pairs += 1
                agrees = (value - compared) * (reward - other)
                right += 1.0 if agrees > 0 else 0.5 if agrees == 0 else 0.0
    return right / pairs if pairs else None
