"""What happens around the training loop, through transformers' public callbacks."""

from __future__ import annotations

import os
import signal
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from remask.errors import UserError
from remask.progress import Tracker, progress
from remask.training.checkpoints import seal
from remask.training.lines import Lines


class FiniteGradientCallback(TrainerCallback):
    """A callback that stops before a step that would write NaN into the weights."""

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if gradients and not torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
            raise UserError(
                f"the gradient is not finite at step {state.global_step + 1}",
                where=args.output_dir,
                mend="start anew with a lower trainer.learning_rate; checkpoints, if any, are whole",
            )


class SealCallback(TrainerCallback):
    """A callback that writes each checkpoint's manifest, the last file of a whole checkpoint."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        PartialState().wait_for_everyone()  # every rank writes its own generator's state
        if state.is_world_process_zero:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")


FINISHING = (b"\nfinishing this step\n", b"\nfinishing this step; press Ctrl-C once more to stop at once\n")


class StopCallback(TrainerCallback, AbstractContextManager):
    """A callback that stops a run on SIGTERM or Ctrl-C: it finishes the step, saves a checkpoint and leaves. `stopped`
    then holds the signal. A second Ctrl-C leaves at once, by KeyboardInterrupt; a second SIGTERM, and a third Ctrl-C,
    end the process.

    Processes that train together leave after the same step, whichever of them had the signal first.
    """

    def __init__(self) -> None:
        self.stopped: signal.Signals | None = None
        self._received: signal.Signals | None = None
        self._twice = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopCallback:
        for name in (signal.SIGTERM, signal.SIGINT):
            self._before[name] = signal.signal(name, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._received is None:
            self._received = signal.Signals(number)
            if os.environ.get("RANK", "0") == "0":
                with suppress(OSError):  # print may be in the middle of a line
                    os.write(2, FINISHING[number == signal.SIGINT])
        elif number == signal.SIGINT and not self._twice:
            self._twice = True
            raise KeyboardInterrupt
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        received = int(self._received or 0)
        if args.world_size > 1:
            among_all = torch.tensor(received, device=args.device)
            torch.distributed.all_reduce(among_all, torch.distributed.ReduceOp.MAX)
            received = int(among_all)
        if received:
            self.stopped = signal.Signals(received)
            control.should_save = True
            control.should_training_stop = True


class ProgressCallback(TrainerCallback):
    """A callback that shows the steps done, the time left and the last loss."""

    def __init__(self, label: str, *, enabled: bool = True) -> None:
        self.label, self.enabled, self.note = label, enabled, ""
        self._context: AbstractContextManager[Tracker] | None = None
        self._tick: Tracker | None = None
        self._first = self._done = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._first = state.global_step
        enabled = self.enabled and state.is_world_process_zero
        self._context = progress(self.label, state.max_steps - self._first, enabled=enabled)
        self._tick = self._context.__enter__()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        assert self._tick is not None
        self._done = state.global_step - self._first
        self._tick(self._done, self.note)

    def within(self, doing: str) -> None:
        """Show what a long step is doing."""
        if self._tick is not None:
            self._tick(self._done, f"{self.note}; {doing}" if self.note else doing)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs and "loss" in logs:
            self.note = f"loss {logs['loss']:.3f}"
            if "reward_mean" in logs:
                self.note += f", reward {logs['reward_mean']:.3f}"

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        """End the line of progress."""
        if self._context is not None:
            self._context.__exit__(None, None, None)
            self._context = None


class MetricsCallback(TrainerCallback):
    """A callback that appends every logged metric to `metrics.jsonl`."""

    def __init__(self, lines: Lines) -> None:
        self.lines = lines

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if state.is_world_process_zero and logs:
            self.lines.append([{"step": state.global_step, **logs}])
