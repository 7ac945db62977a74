"""ESPO in one flat loop: the whole method without a trainer, on the embedded model.

    python examples/rl_loop.py

Every step is a function of `remask.diffusion`, `remask.sampling` or `remask.rl`; change one to try another method. One
update a rollout, so the old likelihood is the current one.
"""

from __future__ import annotations

import torch

import remask
from remask.data.chat import encode_prompt
from remask.diffusion.likelihood import estimate
from remask.diffusion.noise import collate_noise, row_noise
from remask.models.facts import facts
from remask.rl.advantage import advantages
from remask.rl.policy_loss import policy_terms
from remask.rl.presets import resolve
from remask.rl.rollout_rows import Layout
from remask.sampling.engine import LocalEngine, Request
from remask.sampling.generate import decoding_for
from remask.tasks import Countdown
from remask.training.model import frozen_copy

STEPS, PROMPTS, GROUP = 5, 4, 8

model, tokenizer = remask.load("tiny")
known, task, objective = facts(model, tokenizer), Countdown(), resolve("espo")
engine, decoding = LocalEngine(tokenizer, 32, model=model), decoding_for(model, temperature=1.0)
layout = Layout(known.mask_id, known.stop_ids, objective.scope)
reference = frozen_copy(model)
problems = task.generate(STEPS * PROMPTS, split="train", seed=0)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)

for step in range(STEPS):
    asked = [p for p in problems[step * PROMPTS : (step + 1) * PROMPTS] for _ in range(GROUP)]
    prompts = [encode_prompt(tokenizer, [{"role": "user", "content": task.prompt(p, "compact")}]) for p in asked]
    seeds = [step * len(asked) + row for row in range(len(asked))]
    answers = engine.answer([Request(ids, seed) for ids, seed in zip(prompts, seeds, strict=True)], decoding)
    rewards = torch.tensor(task.reward(asked, [answer.text for answer in answers])).view(PROMPTS, GROUP)
    advantage = advantages(objective.advantage, rewards).view(-1, 1)  # r − mean of the others, of each token

    canvas = layout.canvas(prompts, [answer.row for answer in answers])
    width = canvas.ids.shape[1]
    rows, starts = range(len(asked)), [width - decoding.max_new_tokens] * len(asked)
    noise = [
        collate_noise(
            [row_noise(0, k, seeds[i], seeds[i] * objective.draws + k, decoding.max_new_tokens) for i in rows],
            starts,
            width,
        )
        for k in range(objective.draws)
    ]
    draws = objective.estimator.draws(canvas, noise, known.mask_id)  # the same for both models
    with torch.no_grad():
        before = estimate(reference, canvas, draws)
    current = estimate(model, canvas, draws)
    terms = policy_terms(objective, advantage, current, None, before, canvas.supervised)
    terms.row.mean().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.2)
    optimizer.step()
    optimizer.zero_grad()
    elbo = (current.sequence / current.scored).mean().item()
    print(
        f"step {step}  reward {rewards.mean().item():.3f}  KL {terms.kl.mean().item():.5f}  ELBO per token {elbo:.3f}"
    )
