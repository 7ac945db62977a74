"""ESPO in one flat loop: the whole method without a trainer, on the embedded model.

    python examples/rl_loop.py

Every step is a function of `remask.diffusion`, `remask.sampling` or `remask.rl`; change one to try another method. One
update a rollout, so the old likelihood is the current one.
"""

from __future__ import annotations

import torch

import remask
from remask.diffusion.corruption import Canvas
from remask.diffusion.likelihood import Likelihood, elbo_coupled
from remask.diffusion.noise import collate_noise, row_noise
from remask.models.facts import facts
from remask.rl.advantage import advantages
from remask.rl.policy_loss import policy_terms
from remask.rl.presets import resolve
from remask.tasks import Countdown
from remask.training.model import frozen_copy

STEPS, PROMPTS, GROUP, CANVAS = 5, 4, 8, 80

model, tokenizer = remask.load("tiny")
known, task, objective = facts(model, tokenizer), Countdown(), resolve("espo")
reference = frozen_copy(model)
problems = task.generate(STEPS * PROMPTS, split="train", seed=0)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)


def canvas_of(prompts: list[str], answers: list[list[int]]) -> Canvas:
    """Prompts and the answers sampled from them, left-padded; the whole canvas is scored."""
    encoded = [
        tokenizer.apply_chat_template([{"role": "user", "content": p}], add_generation_prompt=True)["input_ids"]
        for p in prompts
    ]
    width = max(map(len, encoded)) + CANVAS
    rows = [[known.mask_id] * (width - CANVAS - len(p)) + p + a for p, a in zip(encoded, answers, strict=True)]
    attended = torch.tensor([[i >= width - CANVAS - len(p) for i in range(width)] for p in encoded])
    response = (torch.arange(width) >= width - CANVAS).expand_as(attended)
    return Canvas(torch.tensor(rows), attended, response, response)


for step in range(STEPS):
    asked = [p for p in problems[step * PROMPTS : (step + 1) * PROMPTS] for _ in range(GROUP)]
    prompts = [task.prompt(problem, "compact") for problem in asked]
    seeds = [step * len(asked) + row for row in range(len(asked))]
    out = remask.generate(model, tokenizer, prompts, temperature=1.0, row_seeds=seeds)
    rewards = torch.tensor(task.reward(asked, out.texts)).view(PROMPTS, GROUP)
    advantage = advantages(objective.advantage, rewards).flatten()  # r − mean of the others

    canvas = canvas_of(prompts, out.token_ids)
    width = canvas.ids.shape[1]
    noise = [
        collate_noise(
            [row_noise(0, k, s, (step * objective.draws + k) * len(asked) + i, CANVAS) for i, s in enumerate(seeds)],
            [width - CANVAS] * len(asked),
            width,
        )
        for k in range(objective.draws)
    ]
    with torch.no_grad():
        before: Likelihood = elbo_coupled(reference, canvas, noise, known.mask_id)
    current = elbo_coupled(model, canvas, noise, known.mask_id)  # the same noise for both
    terms = policy_terms(objective, advantage, current, None, before, canvas.supervised)
    terms.row.mean().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.2)
    optimizer.step()
    optimizer.zero_grad()
    elbo = (current.sequence / current.scored).mean().item()
    print(
        f"step {step}  reward {rewards.mean().item():.3f}  KL {terms.kl.mean().item():.5f}  ELBO per token {elbo:.3f}"
    )
