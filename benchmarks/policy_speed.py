"""The updates of an ESPO rollout: old and reference likelihoods, then μ optimiser steps, against ESPO's own trainer
(`peers.py`).
"""

from __future__ import annotations

import tempfile
from types import SimpleNamespace
from typing import Any

import peers
import torch
from likelihood_speed import ESPO, masks_of
from measure import Figure, in_turns, peak_memory, ratio
from sft_speed import adamw, mixed, with_adapters, with_gradient
from shapes import LAPTOP, Shape, answers, build, print_figures
from transformers import TrainingArguments

from remask.diffusion.corruption import Canvas
from remask.rl.batches import Plan, PolicyBatch
from remask.rl.presets import resolve
from remask.rl.rollout import Rollout
from remask.rl.trainer import PolicyTrainer
from remask.training.reference import Reference

ROWS, CANVAS, PASSES = 2, 128, 2


def rollout(shape: Shape, rows: int = ROWS) -> Rollout:
    """Answers to one prompt, half of them good and half bad."""
    ids, response = answers(rows, shape, CANVAS)
    return Rollout(
        number=0,
        canvas=Canvas(ids, torch.ones_like(response), response, response),
        advantage=torch.tensor([1.0, -1.0]).repeat(rows // 2)[:, None] * response,
        counted=torch.ones(rows, dtype=torch.bool),
        version=0,
        statistics={},
        kept=[],
        faults=[],
    )


class Ours:
    """What `remask rl` does between two rollouts."""

    def __init__(self, model: Any, made: Rollout, folder: str, *, whole: bool = False) -> None:
        arguments = TrainingArguments(folder, use_cpu=not torch.cuda.is_available(), report_to=[], disable_tqdm=True)
        maker: Any = SimpleNamespace(seed=0, completions=2, engine=None)  # the rollout is there
        self.trainer = PolicyTrainer(
            model,
            arguments,
            objective=resolve("espo"),
            maker=maker,
            plan=Plan(rows=len(made.counted), passes=PASSES, minibatches=1, batch_size=len(made.counted)),
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
        for step, batch in enumerate(self.scored()):
            self.trainer.state.global_step = step
            self.loss(batch).backward()
            updated(self.trainer.model, self.optimizer)
        self.trainer._micro.clear()


class Espo:
    """What ESPO's trainer does, on the same masks."""

    def __init__(self, model: Any, batches: list[PolicyBatch], optimizer: torch.optim.Optimizer) -> None:
        self.model, self.batches, self.optimizer = model, batches, optimizer
        self.masks = [masks_of(batch.noise, batch.canvas.corruptible) for batch in batches]

    def elbo(self, number: int) -> torch.Tensor:
        return peers.espo_elbo(self.model, self.batches[number].canvas.ids, self.masks[number])

    @torch.no_grad()
    def scored(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(old, reference) of each pass."""
        read = []
        for number in range(len(self.batches)):
            old = self.elbo(number)
            with self.model.disable_adapter():
                read.append((old, self.elbo(number)))
        return read

    def loss(self, number: int, old: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        return peers.espo_loss(self.elbo(number), old, reference, CANVAS, self.batches[number].advantage[:, -1])

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
    made = rollout(shape)
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(model, made, folder)
        espo = Espo(model, ours.scored(), ours.optimizer)
        memory = {name: peak_memory(run) for name, run in {"ours": ours, "espo": espo}.items()}  # and warms up
        times = in_turns({"ours": ours, "espo": espo}, rounds=max(1, rounds - 1), warm_up=0)
    share = memory["ours"] / memory["espo"]
    detail = f"{memory['ours'] / 2**20:,.0f} of {memory['espo'] / 2**20:,.0f} MiB above weights and optimiser"
    return [
        Figure(part, f"against {ESPO}", *ratio(times["espo"], times["ours"]), bar=1.0),
        Figure(part, f"peak memory, against {ESPO}", share, bar=1.0, more_is_better=False, detail=detail),
        gradient_apart(shape if device == "cpu" else LAPTOP, device),
    ]


def gradient_apart(shape: Shape = LAPTOP, device: str = "cpu") -> Figure:
    """In float32, of the second pass, after the policy has moved. (Losses are differences of nearly equal numbers.)"""
    model = with_adapters(build(shape, torch.float32, device))
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(model, rollout(shape), folder)
    for group in ours.optimizer.param_groups:
        group["lr"] = 1e-3
    batches = ours.scored()
    espo = Espo(model, batches, ours.optimizer)
    read = espo.scored()
    ours.loss(batches[0]).backward()
    updated(model, ours.optimizer)
    ours.trainer.state.global_step = 1
    _, mine = with_gradient(model, ours.loss(batches[1]))
    _, theirs = with_gradient(model, espo.loss(1, *read[1]))
    what = f"gradient of the second pass, relative difference from {ESPO}"
    apart = ((mine - theirs).norm() / theirs.norm()).item()
    return Figure(
        f"ESPO's gradient in float32: {shape.name}", what, apart, bar=1e-4, more_is_better=False, unit="relative"
    )


def variants(rounds: int, shape: Shape, device: str) -> list[Figure]:
    """The gradient draw by draw against that of all draws at once."""
    part = part_of(shape)
    model = with_adapters(build(shape, device=device))
    made = rollout(shape)
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
