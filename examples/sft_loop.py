"""GIFT in one flat loop: the whole method without a trainer, on the embedded model.

    python examples/sft_loop.py

Every step is a function of `remask.diffusion`; change one to try another method.
"""

from __future__ import annotations

import torch

import remask
from remask.data.canvas import Fill, build_rows
from remask.data.collate import Collator, RowDataset, VisitSampler
from remask.diffusion.corruption import Canvas
from remask.diffusion.importance import probe_signal
from remask.diffusion.noise import Noise
from remask.diffusion.objective import corrupt, denominator, sft_terms
from remask.diffusion.reader import ModelReader
from remask.models.facts import facts
from remask.sft.presets import resolve
from remask.tasks.generated import generated_examples

STEPS, BATCH = 30, 16

model, tokenizer = remask.load("tiny")
known = facts(model, tokenizer)
objective = resolve("gift")

examples = generated_examples("generated:sudoku+countdown:480", split="train", prompt_style=known.prompt_style)
rows = build_rows(examples, tokenizer, max_length=160, over_long="error").rows
batches = torch.utils.data.DataLoader(
    RowDataset(rows),
    batch_size=BATCH,
    sampler=VisitSampler(len(rows), seed=0),
    collate_fn=Collator(Fill.parse(known.fill), known.eos_ids[0], max_length=160, seed=0),
)
reader = ModelReader(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.0)

model.train()
for step, batch in zip(range(STEPS), batches, strict=False):
    canvas, noise = Canvas.of(batch), Noise.of(batch)
    signal = probe_signal(reader, canvas, known.mask_id, objective.signal)  # entropy, all of the response masked
    corrupted = corrupt(objective, canvas, noise, known.mask_id, signal=signal)  # p_i = 1 − (1 − t)^(β_i/β_ref)
    loss = sft_terms(objective, reader, canvas, corrupted).loss / denominator(
        objective, canvas, corrupted
    )  # Σ w·ce / N
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if step % 5 == 0:
        print(f"step {step:3d}  loss {loss.item():.3f}  gradient norm {norm.item():.2f}")
