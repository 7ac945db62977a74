"""The updates of an ESPO rollout: old and reference likelihoods, then μ optimiser steps, against the published form."""

from __future__ import annotations

import tempfile
from types import SimpleNamespace
from typing import Any

import textbook
import torch
from likelihood_speed import masks_of
from measure import Figure, in_turns, peak_memory, ratio
from sft_speed import adamw, mixed, with_adapters
from shapes import LAPTOP, Shape, build, gsm8k_like, print_figures
from transformers import TrainingArguments

from remask.rl.batches import Plan, PolicyBatch
from remask.rl.presets import resolve
from remask.rl.reference import Reference
from remask.rl.rollout import Rollout
from remask.rl.trainer import PolicyTrainer

ROWS, CANVAS, PASSES = 2, 128, 2


def rollout(shape: Shape, pad: int, rows: int = ROWS) -> Rollout:
    """Answers of random tokens to left-padded prompts, half of them good and half bad."""
    prompts = [row.prompt for row in gsm8k_like(rows, shape)]
    width = max(map(len, prompts)) + CANVAS
    generator = torch.Generator().manual_seed(0)
    ids = torch.full((rows, width), pad)
    ids[:, -CANVAS:] = torch.randint(shape.vocabulary - 3, (rows, CANVAS), generator=generator)
    for b, prompt in enumerate(prompts):
        ids[b, width - CANVAS - len(prompt) : width - CANVAS] = torch.tensor(prompt)
    response = torch.zeros(ids.shape, dtype=torch.bool)
    response[:, -CANVAS:] = True
    return Rollout(
        number=0,
        ids=ids,
        attended=ids != pad,
        response=response,
        scored=response,
        advantage=torch.tensor([1.0, -1.0]).repeat(rows // 2),
        counted=torch.ones(rows, dtype=torch.bool),
        statistics={},
        kept=[],
        faults=[],
    )


class Ours:
    """What `remask rl` does between two rollouts."""

    def __init__(self, model: Any, made: Rollout, folder: str, *, whole: bool = False) -> None:
        arguments = TrainingArguments(folder, use_cpu=not torch.cuda.is_available(), report_to=[], disable_tqdm=True)
        sampler: Any = SimpleNamespace(seed=0, completions=2)  # the rollout is there
        self.trainer = PolicyTrainer(
            model,
            arguments,
            objective=resolve("espo"),
            sampler=sampler,
            plan=Plan(rows=len(made.ids), passes=PASSES, minibatches=1, batch_size=len(made.ids)),
            mask_id=model.config.mask_token_id,
            reference=Reference(model),
            whole_backward=whole,
        )
        self.rollout, self.optimizer = made, adamw(model)

    def scored(self) -> list[PolicyBatch]:
        with mixed(self.trainer.model):
            return self.trainer.scored(self.rollout)

    def loss(self, batch: PolicyBatch) -> torch.Tensor:
        with mixed(self.trainer.model):
            rows = len(batch.advantage)
            return self.trainer.compute_loss(self.trainer.model, {"batch": batch}, num_items_in_batch=rows)

    def __call__(self) -> None:
        for batch in self.scored():
            self.loss(batch).backward()
            updated(self.trainer.model, self.optimizer)
        self.trainer._micro.clear()


class Plain:
    """The same by the textbook: each reading two full forwards a draw, all draws' graphs kept for one backward."""

    def __init__(self, model: Any, batches: list[PolicyBatch], optimizer: torch.optim.Optimizer) -> None:
        self.model, self.batches, self.optimizer = model, batches, optimizer
        self.masks = [masks_of(batch.noise, batch.canvas.corruptible) for batch in batches]
        self.pad = model.config.pad_token_id

    def elbo(self, number: int) -> torch.Tensor:
        canvas = self.batches[number].canvas
        return textbook.coupled_elbo(self.model, canvas.ids, canvas.corruptible, self.masks[number], self.pad)

    @torch.no_grad()
    def scored(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(old, reference) of each pass."""
        read = []
        with mixed(self.model):
            for number in range(len(self.batches)):
                old = self.elbo(number)
                with self.model.disable_adapter():
                    read.append((old, self.elbo(number)))
        return read

    def loss(self, number: int, old: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        batch = self.batches[number]
        with mixed(self.model):
            value, n = self.elbo(number), batch.canvas.corruptible.sum(-1)
            return textbook.espo_loss(value, old, reference, n, batch.advantage)

    def __call__(self) -> None:
        for number, (old, reference) in enumerate(self.scored()):
            self.loss(number, old, reference).backward()
            updated(self.model, self.optimizer)


def updated(model: Any, optimizer: torch.optim.Optimizer) -> None:
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.2)
    optimizer.step()
    optimizer.zero_grad()


def part_of(shape: Shape) -> str:
    return f"ESPO's updates, LoRA: {shape.name}, {ROWS} answers of {CANVAS}, K = 2, {PASSES} passes"


def measure(rounds: int, shape: Shape = LAPTOP, device: str = "cpu") -> list[Figure]:
    part = part_of(shape)
    model = with_adapters(build(shape, device=device))
    made = rollout(shape, model.config.pad_token_id)
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(model, made, folder)
        plain = Plain(model, ours.scored(), ours.optimizer)
        memory = {name: peak_memory(run) for name, run in {"ours": ours, "plain": plain}.items()}  # and warms up
        times = in_turns({"ours": ours, "plain": plain}, rounds=max(1, rounds - 1), warm_up=0)
    share = memory["ours"] / memory["plain"]
    detail = f"{memory['ours'] / 2**20:,.0f} of {memory['plain'] / 2**20:,.0f} MiB above weights and optimiser"
    return [
        Figure(part, "against the published form", *ratio(times["plain"], times["ours"])),
        Figure(part, "peak memory", share, more_is_better=False, detail=detail),
        gradient_apart(shape if device == "cpu" else LAPTOP, device),
    ]


def gradient_apart(shape: Shape = LAPTOP, device: str = "cpu") -> Figure:
    """In float32, of the second pass, after the policy has moved. (Losses are differences of nearly equal numbers.)"""
    model = with_adapters(build(shape, torch.float32, device))
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(model, rollout(shape, model.config.pad_token_id), folder)
    for group in ours.optimizer.param_groups:
        group["lr"] = 1e-3
    batches = ours.scored()
    plain = Plain(model, batches, ours.optimizer)
    read = plain.scored()
    ours.loss(batches[0]).backward()
    updated(model, ours.optimizer)
    mine = gradient(model, ours.loss(batches[1]))
    theirs = gradient(model, plain.loss(1, *read[1]))
    what = "gradient of the second pass, relative difference from the textbook's in float32"
    apart = ((mine - theirs).norm() / theirs.norm()).item()
    return Figure(f"ESPO's gradient: {shape.name}", what, apart, bar=1e-5, more_is_better=False, unit="relative")


def gradient(model: Any, loss: torch.Tensor) -> torch.Tensor:
    loss.backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found


def variants(rounds: int, shape: Shape, device: str) -> list[Figure]:
    """The gradient draw by draw against that of all draws at once."""
    part = part_of(shape)
    model = with_adapters(build(shape, device=device))
    made = rollout(shape, model.config.pad_token_id)
    with tempfile.TemporaryDirectory() as folder:
        ways = {name: Ours(model, made, folder, whole=name == "whole") for name in ("draw", "whole")}
        memory = {name: peak_memory(run) for name, run in ways.items()}
        times = in_turns(ways, rounds=rounds, warm_up=0)
    return [
        Figure(part, "all draws at once, against draw by draw", *ratio(times["draw"], times["whole"])),
        Figure(part, "memory of that", memory["whole"] / memory["draw"], more_is_better=False),
    ]


if __name__ == "__main__":
    print_figures(__doc__, 5, measure, variants)
