"""A loss that is no cross-entropy: fine-tuning towards a teacher's distributions.

    REMASK_TEACHER=runs/teacher remask sft --objective examples/extend/distillation.py:Distilled --output-dir runs/small

At each masked token the loss is KL(teacher ‖ student) over the vocabulary at a temperature, both reading the same
noised row (arXiv 1503.02531). The noise, the weights 1/p_i and what the loss is divided by are SFT's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

import remask
from remask.diffusion.corruption import Canvas, Corrupted
from remask.diffusion.objective import Objective
from remask.diffusion.reader import ModelReader


@cache
def teacher() -> ModelReader:
    model, _ = remask.load(os.environ.get("REMASK_TEACHER", "tiny"))
    return ModelReader(model.requires_grad_(False).eval())


@dataclass(frozen=True)
class Distilled(Objective):
    temperature: float = 1.0

    def token_losses(self, reader: Any, canvas: Canvas, corrupted: Corrupted, where: torch.Tensor) -> torch.Tensor:
        """KL at each scored token [N], in nats; times temperature², so that its gradient keeps its size."""
        student = reader.call(corrupted.ids, canvas, where).logits.float() / self.temperature
        with torch.no_grad():
            target = teacher().call(corrupted.ids, canvas, where).logits.float() / self.temperature
        each = torch.nn.functional.kl_div(
            student.log_softmax(-1), target.log_softmax(-1), reduction="none", log_target=True
        )
        return each.sum(-1) * self.temperature**2
