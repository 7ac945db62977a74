"""What an RL run keeps in each checkpoint: what is left of the rollout, and a reference that follows the policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from remask.diffusion.corruption import Canvas
from remask.diffusion.noise import Noise
from remask.errors import UserError
from remask.files import from_json
from remask.rl.batches import PolicyBatch, shared_anew
from remask.training.reference import Reference

if TYPE_CHECKING:
    from remask.rl.trainer import PolicyTrainer


class ReferenceSync(TrainerCallback):
    """A callback that makes the reference a copy of the policy every N steps, and keeps it in checkpoints."""

    def __init__(self, trainer: PolicyTrainer, reference: Reference) -> None:
        self.trainer, self.reference = trainer, reference

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.reference.sync_every and state.global_step % self.reference.sync_every == 0:
            self.reference.sync(self.trainer)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.reference.save(self.trainer, Path(args.output_dir) / f"checkpoint-{state.global_step}")


class ShareOfSteps(TrainerCallback):
    """A callback that sets `epoch` to the share of the run's steps that are done, as rollouts have no epochs. The
    engine would begin it again where a run goes on.
    """

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        state.epoch = state.global_step / state.max_steps


class RolloutState(TrainerCallback):
    """A callback that writes what is left of the rollout into each checkpoint: a resumed run uses every rollout exactly
    once.
    """

    def __init__(self, trainer: PolicyTrainer) -> None:
        self.trainer = trainer

    def _file(self, folder: Path) -> Path:
        plan = self.trainer.plan
        return folder / f"rollout-{plan.rank}-of-{plan.world}.safetensors"

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        loader = self.trainer.loader
        self.trainer.settle()
        tensors = {
            f"{i}.{name}": value.to("cpu", copy=True).contiguous()  # passes on the same noise share their tensors
            for i, batch in enumerate(loader.buffer)
            for name, value in _tensors(batch).items()
        }
        tensors["empty"] = torch.zeros(1)  # a file holds a tensor or more
        told = self.trainer.of_rollouts  # not logged yet
        facts = {"number": loader.number, "left": len(loader.buffer), **({"statistics": told} if told else {})}
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        save_file(tensors, self._file(folder), metadata={name: json.dumps(value) for name, value in facts.items()})

    def restore(self, checkpoint: Path) -> None:
        """Read what all processes wrote and share it out anew, as there may be another number of them now. Raises
        UserError where not all of it is there.
        """
        files = sorted(checkpoint.glob("rollout-*-of-*.safetensors"), key=lambda path: int(path.name.split("-")[1]))
        wrote = files[0].stem.rpartition("-")[2] if files else "1"
        if len(files) != int(wrote):
            raise UserError(
                f"the checkpoint holds the rollouts of {len(files)} processes; {wrote} wrote it",
                where=str(checkpoint),
                mend="resume from another checkpoint, or --overwrite starts anew",
            )
        trainer = self.trainer
        left, facts = zip(*(read_rollout(file, int(checkpoint.name.rpartition("-")[2])) for file in files), strict=True)
        trainer.loader.number = facts[0]["number"]
        trainer.of_rollouts.extend(facts[0].get("statistics", ()))
        trainer.loader.buffer.extend(batch.to(trainer.args.device) for batch in shared_anew(left, trainer.plan))


def read_rollout(file: Path, step: int) -> tuple[list[PolicyBatch], dict[str, Any]]:
    """Return what one process had left of its rollout at a step: its micro-batches, and the facts stored
    beside them.
    """
    with safe_open(file, "pt") as stored:
        names, facts = list(stored.keys()), {name: from_json(text) for name, text in stored.metadata().items()}
        batches = [
            _batch(
                {name.partition(".")[2]: stored.get_tensor(name) for name in names if name.startswith(f"{i}.")}, step
            )
            for i in range(facts["left"])
        ]
    return batches, facts


def _tensors(batch: PolicyBatch) -> dict[str, Tensor]:
    named = {
        **batch.canvas.tensors(),
        "advantage": batch.advantage,
        "counted": batch.counted,
        "version": torch.tensor(batch.version),
        "reference": batch.reference,
        "place": batch.place,
        **{f"old{k}": value for k, value in enumerate(batch.old or [])},
    }
    noise = {f"{name}{k}": value for k, draw in enumerate(batch.noise) for name, value in draw.tensors().items()}
    return {name: value for name, value in {**named, **noise}.items() if value is not None}


def _batch(own: dict[str, Tensor], step: int) -> PolicyBatch:
    """A batch from its tensors, also from those of a checkpoint of 0.1: an advantage for each row, one old likelihood,
    and whether the policy had moved.
    """
    draws = sum(name.startswith("u") for name in own)
    canvas, advantage = Canvas.of(own), own["advantage"]
    if advantage.dim() == 1:
        advantage = torch.where(canvas.corruptible, advantage[:, None], 0.0)
    count = sum(name.startswith("old") for name in own)
    old = [own[name] for name in ("old", *(f"old{k}" for k in range(count))) if name in own]
    wrote = step if own.get("on_policy", True) else -1
    return PolicyBatch(
        canvas,
        [_noise(own, k) for k in range(draws)],
        advantage,
        own["counted"],
        int(own.get("version", wrote)),
        old or None,
        own.get("reference"),
        own.get("place"),
    )


def _noise(own: dict[str, Tensor], k: int) -> Noise:
    """Draw k. Checkpoints of 0.1 hold a time for each row in its place."""
    if f"tau{k}" in own:
        return Noise(own[f"tau{k}"], own[f"u{k}"])
    return Noise.at(own[f"t{k}"], own[f"u{k}"])
