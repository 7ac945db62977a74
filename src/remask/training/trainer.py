"""The base of all three trainers: what fine-tuning, preference and reinforcement learning have in common.

Each builds on transformers' Trainer through its public hooks only, and differs in four places: how a step's
micro-batches are prepared and counted (`prepare`), what their loss is (`compute_loss`), what is logged of them
(`describe`), and what is measured on held-out problems (`held_out`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerControl

from remask.diffusion.reader import ModelReader
from remask.training.rows import backward
from remask.training.window import WindowTrainer

Prepared = tuple[list[dict[str, Any]], Tensor]
"""The inputs of a step's micro-batches, and N counted over them on this process."""


class DiffusionTrainer(WindowTrainer):
    """A trainer of a diffusion language model. A subclass gives `prepare`, `compute_loss`, `describe` and
    `held_out`.
    """

    loss_is_scaled_for_ga = True

    _step_started = 0.0

    def prepare(self, batches: list[Any], device: torch.device) -> Prepared:
        """Return the inputs of `compute_loss` for each micro-batch of an optimiser step, and this process's
        part of N.
        """
        raise NotImplementedError

    def describe(self, seconds: float) -> dict[str, float]:
        """Return the numbers to log of the step that was just taken and took so long."""
        raise NotImplementedError

    def held_out(self) -> dict[str, float]:
        """Return what is measured on held-out data, over all processes; empty where there is none."""
        raise NotImplementedError

    def take(self, epoch_iterator: Iterator, count: int, device: torch.device) -> list[Any]:
        """Return the next micro-batches, as the data loader has them."""
        return super().get_batch_samples(epoch_iterator, count, device)[0]

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Return the micro-batches of one optimiser step, and N counted over all of them and all processes.

        None where a run goes on from its very end: the engine would take one step more.
        """
        if 0 < self.state.max_steps <= self.state.global_step:
            return [], None
        self._step_started = time.perf_counter()
        inputs, count = self.prepare(self.take(epoch_iterator, num_batches, device), device)
        if self.args.world_size > 1:
            count = self.accelerator.gather(count.reshape(1)).sum()
        return inputs, count

    def reader(self, model: Any) -> ModelReader:
        """Return the model as a reader under the run's mixed precision."""
        return ModelReader(model, self.compute_loss_context_manager)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a part of a micro-batch's loss to the weights'."""
        backward(self, loss)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Put the model in evaluation mode, and afterwards back as it was."""
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Measure `held_out`, and log it."""
        found = self.held_out()
        if not found:
            return {}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def of_step(self, logs: dict[str, float]) -> dict[str, float]:
        """Return the engine's numbers, what the step itself says, and its seconds. What happens between steps
        (evaluation, checkpoints) is not counted.
        """
        seconds = time.perf_counter() - self._step_started
        return {**logs, **self.describe(seconds), "seconds": seconds}
