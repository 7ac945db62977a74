"""Where a fine-tuning step's time and memory go: real steps of the real trainer, by part.

The parts are timed through what `SftTrainer` and transformers make public: methods that a trainer may override, and
callbacks. At any moment one part is at work and a part that begins within another one stops its clock, so the parts of
a step add up to its wall time. Memory is looked at in a step of its own, whose time counts for nothing.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from remask.analysis.plan import Meter
from remask.config import ProfileConfig
from remask.diffusion.reader import ModelReader
from remask.environment import hardware, versions
from remask.errors import UserError
from remask.models.load import quiet_transformers
from remask.sft.presets import resolve
from remask.sft.probe import frozen_probe
from remask.sft.run import build, check_numbers
from remask.sft.trainer import Prepared, SftTrainer
from remask.training.rows import EpochCallback

PARTS: dict[str, str] = {
    "data": "waiting for the next batch: reading rows, laying them on canvases, noise",
    "probe": "forward passes without gradient: entropies, LIFT's scores, a reference model's losses",
    "corruption": "masking rates and masks, and what is logged of them",
    "forward": "the model and its losses, with gradient; where the head is linear its gradient is formed here too",
    "backward": "the gradients",
    "optimiser": "clipping, the update, the schedule",
    "other": "all else: counting tokens, callbacks, logging",
}
"""The parts of a step, in the order they come."""

WARM_UP = 2
"""The steps before the first one that is timed: kernels are chosen, optimiser states made."""


@dataclass
class Step:
    """The figures of one step: seconds from its begin to the next one's, seconds and peak bytes of each part, tokens
    without fill.
    """

    began: float
    seconds: float = 0.0
    parts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    peak: dict[str, int] = field(default_factory=dict)
    tokens: int = 0


class Clock:
    """A clock measures which part of a step is at work, and how long each was. On a GPU it waits for what was begun in
    a part.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.steps: list[Step] = []
        self.part = "other"
        self._since = 0.0
        self._running = False
        self._gauge: Gauge | None = None

    def begin(self, *, weigh: bool = False) -> None:
        """Begin a step, which ends the one before it; `weigh` says that its memory is measured."""
        self.end()
        self._running, self.part = True, "other"
        self._since = self._now()
        self.steps.append(Step(self._since))
        if weigh:
            self._gauge = Gauge(self.device)

    def end(self) -> None:
        """End the step that is under way."""
        if self._running:
            self.switch("other")
            self.steps[-1].seconds = self._since - self.steps[-1].began
            self._running = False
        if self._gauge is not None:
            self._gauge.close()
            self._gauge = None

    def switch(self, part: str) -> str:
        """Take this part as the one at work from now on. Return the one that was."""
        before, self.part = self.part, part
        if self._running:
            now = self._now()
            self.steps[-1].parts[before] += now - self._since
            self._since = now
            if self._gauge is not None:
                peak = self.steps[-1].peak
                peak[before] = max(peak.get(before, 0), self._gauge.highest())
        return before

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """Take this part as the one at work for a while."""
        before = self.switch(part)
        try:
            yield
        finally:
            self.switch(before)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class Gauge:
    """A gauge measures the bytes of tensors made since it was opened, at the highest since it was last read: of a GPU's
    allocator, or else of the tensors this process makes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.meter = device, None if device.type == "cuda" else Meter()
        if self.meter is not None:
            self.meter.__enter__()
        else:
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)

    def highest(self) -> int:
        """Return the highest bytes since the last reading."""
        if self.meter is not None:
            peak, self.meter.peak = self.meter.peak, self.meter.now
            return peak
        peak = torch.cuda.max_memory_allocated(self.device) - self.before
        torch.cuda.reset_peak_memory_stats(self.device)
        return max(0, peak)

    def close(self) -> None:
        """Stop measuring, and count no further bytes."""
        if self.meter is not None:
            self.meter.__exit__(None, None, None)


class ProfiledTrainer(SftTrainer):
    """A trainer of `remask sft` whose parts tell a clock when they are at work. The memory of the last step is
    measured.
    """

    def __init__(self, model: Any, args: Any, **keywords: Any) -> None:
        self.clock = Clock(args.device)
        super().__init__(model, args, **keywords)
        self.add_callback(_Ticks(self))
        self.lasting: dict[str, int] = {}

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        self.clock.begin(weigh=len(self.clock.steps) + 1 == self.args.max_steps)
        return super().get_batch_samples(self._waited(epoch_iterator), num_batches, device)

    def _waited(self, batches: Iterator) -> Iterator:
        while True:
            with self.clock.during("data"):
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                self.clock.steps[-1].tokens += sum(len(self.rows[n]) for n in batch["index"].tolist())
            yield batch

    def prepare(self, *arguments: Any, **keywords: Any) -> Prepared:
        with self.clock.during("corruption"):
            return super().prepare(*arguments, **keywords)

    def reader(self, model: Any) -> ModelReader:
        """Return the model as a reader; its forward passes for a corruption count as the probe's."""
        part = "probe" if self.clock.part == "corruption" else self.clock.part
        return super().reader(model).under(lambda: self.clock.during(part))

    def compute_loss(self, *arguments: Any, **keywords: Any) -> Tensor:
        with self.clock.during("forward"):
            return super().compute_loss(*arguments, **keywords)

    def backward(self, loss: Tensor) -> None:
        with self.clock.during("backward"):
            super().backward(loss)

    def training_step(self, *arguments: Any, **keywords: Any) -> Tensor:
        """Take a micro-batch's loss and gradient; after the last one of a step comes the optimiser."""
        with self.clock.during("backward"):
            loss = super().training_step(*arguments, **keywords)
        if self.accelerator.sync_gradients:
            self.clock.switch("optimiser")
        return loss


class _Ticks(TrainerCallback):
    """Notes the end of the optimiser's part, and what lasts from step to step."""

    def __init__(self, trainer: ProfiledTrainer) -> None:
        self.trainer = trainer

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self.trainer.lasting:
            with self.trainer.clock.during("other"):
                self.trainer.lasting = _lasting(self.trainer)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.clock.switch("other")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.clock.end()


def _lasting(trainer: SftTrainer) -> dict[str, int]:
    """Bytes of what is there throughout, or from a backward pass to its update."""
    weights = list(trainer.model.parameters())
    states = [v for state in trainer.optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    found = {
        "weights": sum(p.nbytes for p in weights),
        "gradients": sum(p.grad.nbytes for p in weights if p.grad is not None),
        "optimiser states": sum(v.nbytes for v in states),
    }
    if trainer.reference is not None:
        found["reference model"] = sum(p.nbytes for p in trainer.reference.parameters())
    return found


def profile(config: ProfileConfig) -> dict[str, Any]:
    """Carry out the steps and say where their time and memory went, ready for JSON. Nothing else is kept.

    Raises UserError for settings that cannot be, and in a run of several processes.
    """
    if config.steps < 1:
        raise UserError(f"steps = {config.steps}", mend="give 1 or more")
    with tempfile.TemporaryDirectory(prefix="remask-profile-") as folder:
        cache = config.probe.cache
        config = replace(
            config,
            output_dir=folder,
            eval_data=None,
            resume=None,
            max_steps=WARM_UP + config.steps + 1,
            # A cache is read where there is one; it is not written.
            probe=replace(config.probe, every=0, cache=cache if cache and Path(cache).exists() else None),
            trainer=replace(config.trainer, eval_steps=0, save_steps=0, report_to=("none",)),
        )
        check_numbers(config)
        objective = resolve(config.objective, **config.choices.given())
        trainer, tokenizer, _ = build(config, Path(folder), objective, ProfiledTrainer)
        if trainer.args.world_size > 1:
            raise UserError("a profile is of one process, and several were started", mend="start it without a launcher")
        trainer.remove_callback(PrinterCallback)
        with quiet_transformers():
            if (probe := frozen_probe(config, trainer, tokenizer, Path(folder), None, quiet=True)) is not None:
                probe.begin()
                trainer.add_callback(probe)
            trainer.add_callback(EpochCallback(trainer.sampler))
            trainer.train()
    *timed, weighed = trainer.clock.steps[WARM_UP:]
    engine = config.trainer
    return {
        "kind": "remask.profile",
        "model": config.model,
        "objective": config.objective,
        "data": config.data,
        "rows_per_step": engine.per_device_train_batch_size * engine.gradient_accumulation_steps,
        "warm_up": WARM_UP,
        **summary(timed),
        "bytes": trainer.lasting,
        "peak_bytes": weighed.peak,
        "versions": versions(),
        "hardware": hardware(str(trainer.args.device)),
    }


def summary(steps: Sequence[Step]) -> dict[str, Any]:
    """Return the median seconds of a step and of its parts, their shares of all the time, and tokens without fill a
    second.
    """
    total = sum(step.seconds for step in steps)
    return {
        "seconds": statistics.median(step.seconds for step in steps),
        "tokens_per_second": sum(step.tokens for step in steps) / total,
        "parts": [
            {
                "name": name,
                "about": about,
                "seconds": statistics.median(step.parts[name] for step in steps),
                "share": sum(step.parts[name] for step in steps) / total,
            }
            for name, about in PARTS.items()
        ],
        "steps": [{"seconds": step.seconds, "tokens": step.tokens, "parts": step.parts} for step in steps],
    }
