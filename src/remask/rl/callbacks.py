"""What an RL run keeps beside its metrics: completions, and in each checkpoint what is left of the rollout."""

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
from remask.rl.batches import PolicyBatch
from remask.rl.reference import Reference
from remask.rl.rollout import Rollout
from remask.training.callbacks import cut_lines

if TYPE_CHECKING:
    from remask.rl.trainer import PolicyTrainer


class CompletionsCallback(TrainerCallback):
    """Appends what each rollout keeps to `completions.jsonl`; a resumed run first drops what it will do again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            cut_lines(self.path, state.global_step)

    def add(self, rollout: Rollout, step: int) -> None:
        with self.path.open("a", encoding="utf-8") as handle:
            for group in rollout.kept:
                handle.write(json.dumps({"step": step, **group}, ensure_ascii=False) + "\n")


class ReferenceSync(TrainerCallback):
    """Makes the reference a copy of the policy every N steps, and keeps it in checkpoints."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        if self.reference.sync_every and state.global_step % self.reference.sync_every == 0:
            self.reference.sync(model)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self.reference.save(Path(args.output_dir) / f"checkpoint-{state.global_step}")


class RolloutState(TrainerCallback):
    """Writes what is left of the rollout into each checkpoint, and of the window that metrics are averaged over: a
    resumed run uses every rollout exactly once, and logs what one that was never stopped does.
    """

    def __init__(self, trainer: PolicyTrainer) -> None:
        self.trainer = trainer

    def _file(self, folder: Path) -> Path:
        plan = self.trainer.plan
        return folder / f"rollout-{plan.rank}-of-{plan.world}.safetensors"

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        loader = self.trainer.loader
        tensors = {
            f"{i}.{name}": value.to("cpu", copy=True).contiguous()  # passes on the same noise share their tensors
            for i, batch in enumerate(loader.buffer)
            for name, value in _tensors(batch).items()
        }
        tensors["empty"] = torch.zeros(1)  # a file holds a tensor or more
        facts = {"number": loader.number, "left": len(loader.buffer), "window": self.trainer.window.steps}
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        save_file(tensors, self._file(folder), metadata={name: json.dumps(value) for name, value in facts.items()})

    def restore(self, checkpoint: Path) -> None:
        """Raises UserError where the checkpoint was written by another number of processes."""
        file = self._file(checkpoint)
        if not file.exists():
            raise UserError(
                f"the checkpoint holds no rollout for process {self.trainer.plan.rank} of {self.trainer.plan.world}",
                where=str(checkpoint),
                mend="resume with as many processes as it was written by",
            )
        loader = self.trainer.loader
        with safe_open(file, "pt") as stored:
            names, facts = list(stored.keys()), {name: json.loads(text) for name, text in stored.metadata().items()}
            loader.number, self.trainer.window.steps = facts["number"], facts["window"]
            for i in range(facts["left"]):
                own = {n.partition(".")[2]: stored.get_tensor(n) for n in names if n.startswith(f"{i}.")}
                loader.buffer.append(_batch(own).to(self.trainer.args.device))


def _tensors(batch: PolicyBatch) -> dict[str, Tensor]:
    canvas = batch.canvas
    named = {
        "ids": canvas.ids,
        "attended": canvas.attended,
        "corruptible": canvas.corruptible,
        "supervised": canvas.supervised,
        "advantage": batch.advantage,
        "counted": batch.counted,
        "on_policy": torch.tensor(batch.on_policy),
        "old": batch.old,
        "reference": batch.reference,
    }
    noise = {f"{part}{k}": getattr(draw, part) for k, draw in enumerate(batch.noise) for part in ("t", "u")}
    return {name: value for name, value in {**named, **noise}.items() if value is not None}


def _batch(own: dict[str, Tensor]) -> PolicyBatch:
    draws = sum(name.startswith("t") for name in own)
    return PolicyBatch(
        Canvas(own["ids"], own["attended"], own["corruptible"], own["supervised"]),
        [Noise(own[f"t{k}"], own[f"u{k}"]) for k in range(draws)],
        own["advantage"],
        own["counted"],
        bool(own["on_policy"]),
        own.get("old"),
        own.get("reference"),
    )
