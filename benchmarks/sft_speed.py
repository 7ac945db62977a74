"""One optimiser step of SFT and of GIFT: Remask's trainer against other projects' (`peers.py`), same rows and model.

Rows are filled with EOS up to the batch's longest and learned from, as those projects do, and the noise is the same.
Apart from them: what GIFT's probes cost above SFT, on rows without fill, and the padding that is computed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import peers
import torch
from measure import Figure, Variant, in_turns, peak_memory, ratio, release
from shapes import LAPTOP, Shape, build, fitting, gsm8k_like, memory_of
from transformers import TrainingArguments

from remask.config import TrainerConfig
from remask.data.canvas import Fill, Row
from remask.data.collate import Collator, RowDataset, Visit, by_length
from remask.diffusion.corruption import Canvas
from remask.diffusion.times import LINEAR
from remask.sft.presets import resolve
from remask.sft.signals import CacheKey, build_cache
from remask.sft.trainer import LEAST_TOKENS, SftTrainer

ROWS = 8
ROWS_OF_PEERS = 4
"""dllm's default for a device."""


def adamw(model: Any) -> torch.optim.Optimizer:
    """Transformers' default optimiser, its states already there: they are part of no step's memory."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def mixed(model: Any, wanted: bool = True) -> AbstractContextManager[Any]:
    """What recipes train large models under on CUDA, bfloat16's mixed precision; nothing on a CPU, or unwanted."""
    kind = next(model.parameters()).device.type
    return torch.autocast(kind, torch.bfloat16) if wanted and kind == "cuda" else nullcontext()


class Stepper:
    """Remask's own optimiser step: collate, corrupt, loss, backward, clip, update."""

    def __init__(
        self,
        model: Any,
        rows: list[Row],
        objective: str,
        folder: str,
        optimizer: torch.optim.Optimizer,
        *,
        frozen: bool = False,
        mixed: bool = True,
        fill: str = "none",
    ) -> None:
        self.mixed = mixed
        self.chosen = resolve(objective)
        collator = Collator(Fill.parse(fill), model.config.eos_token_id, 4096, seed=0)
        arguments = TrainingArguments(folder, use_cpu=not torch.cuda.is_available(), report_to=[], disable_tqdm=True)
        self.trainer = SftTrainer(
            model,
            arguments,
            objective=self.chosen,
            rows=rows,
            collator=collator,
            mask_id=model.config.mask_token_id,
            micro_batch_tokens=TrainerConfig().micro_batch_tokens,
        )
        self.optimizer = optimizer
        self.rows, self.collator, self.visit = RowDataset(rows), collator, 0
        if frozen:
            self.trainer.cache = build_cache(
                self.trainer.reader(model).read_only(),
                rows,
                collator,
                model.config.mask_token_id,
                self.chosen.signal,
                CacheKey("", "", "", ""),
                batch_size=len(rows),
                device=next(model.parameters()).device,
                show_progress=False,
            )

    def batch(self) -> dict[str, torch.Tensor]:
        """All rows, with the noise of this visit."""
        return self.collator(
            [self.rows[Visit(i, self.visit, self.visit * len(self.rows) + i)] for i in range(len(self.rows))]
        )

    def __call__(self) -> None:
        loss = self.loss()
        self.visit += 1
        loss.backward()
        self.update()

    def loss(self) -> torch.Tensor:
        trainer = self.trainer
        with mixed(trainer.model, self.mixed):
            inputs, count = trainer.get_batch_samples(iter([self.batch()]), 1, trainer.args.device)
            return trainer.compute_loss(trainer.model, inputs[0], num_items_in_batch=count)

    def update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.trainer.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


Loss = Callable[..., torch.Tensor]
FILL = "batch"
"""The EOS that fills rows up to the batch's longest is learned, as the projects compared with do."""
SFT: dict[str, Loss] = {
    "dllm's trainer (0900026)": peers.dllm_sft_loss,
    "d1's SFT, autocast (44e3187)": partial(peers.d1_sft_loss, autocast=True),
    "LIFT's SFT, as launched (b2cacc0)": partial(peers.d1_sft_loss, autocast=False),
}
GIFT: dict[str, Loss] = {"LIFT's GIFT, as launched (b2cacc0)": peers.lift_gift_loss}


class Peer:
    """Another project's optimiser step on the rows, the noise and the optimiser of Remask's."""

    def __init__(self, loss: Loss, ours: Stepper) -> None:
        self.of_batch, self.ours, self.model = loss, ours, ours.trainer.model

    def loss(self) -> torch.Tensor:
        device = self.ours.trainer.args.device
        batch = {name: value.to(device) for name, value in self.ours.batch().items()}
        t = LINEAR.rate(batch["tau"].amax(-1))
        return self.of_batch(self.model, batch["ids"], batch["corruptible"], t, batch["u"])

    def __call__(self) -> None:
        self.ours.visit += 1
        self.loss().backward()
        self.ours.update()


def with_adapters(model: Any) -> Any:
    """Frozen but for LoRA of rank 8 on the attention's projections."""
    from remask.config import LoraConfig
    from remask.models.lora import add_adapter

    return add_adapter(model, LoraConfig(rank=8, alpha=16, dropout=0.0), base_name="random")


def measure(rounds: int, shape: Shape = LAPTOP, device: str = "cpu") -> list[Figure]:
    """Against other projects."""
    figures = in_kinds(peers_of_kind, rounds, shape, device)
    return [*figures, *agreement(shape if device == "cpu" else LAPTOP, device)]


def measure_probes(rounds: int, shape: Shape = LAPTOP, device: str = "cpu") -> list[Figure]:
    """What GIFT costs above SFT, and the padding of Remask's batches."""
    return [*in_kinds(probes_of_kind, rounds, shape, device), padding(shape)]


OfKind = Callable[[str, Any, Shape, int], list[Figure]]


def in_kinds(compared: OfKind, rounds: int, shape: Shape, device: str) -> list[Figure]:
    """With all weights trained and with adapters, of a model each, of which nothing is left afterwards."""
    figures = []
    for name in ("full", "LoRA"):
        kind = fitting(shape, memory_of(device)) if name == "full" else shape
        model = build(kind, device=device)
        model = with_adapters(model) if name == "LoRA" else model.requires_grad_(True)
        figures += compared(name, model, kind, rounds)
        del model
        release()
    return figures


def peers_of_kind(name: str, model: Any, shape: Shape, rounds: int) -> list[Figure]:
    rows, optimizer, figures = gsm8k_like(ROWS_OF_PEERS, shape), adamw(model), []
    with tempfile.TemporaryDirectory() as folder:
        for objective, others in (("sft", SFT), ("gift", GIFT)):
            ours = Stepper(model, rows, objective, folder, optimizer, fill=FILL)
            part = f"{objective.upper()} step, {name}: {shape.name}, {len(rows)} rows"
            figures += against_peers(part, ours, others, rounds)
    return figures


def probes_of_kind(name: str, model: Any, shape: Shape, rounds: int) -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        sft = Stepper(model, gsm8k_like(ROWS, shape), "sft", folder, adamw(model))
        return probes(f"GIFT's probes, {name}: {shape.name}, {ROWS} rows", sft, folder, 2 * rounds)


def against_peers(part: str, ours: Stepper, others: dict[str, Loss], rounds: int) -> list[Figure]:
    """Time and memory of a step, all timed in the same rounds."""
    ways: dict[str, Variant] = {name: Peer(loss, ours) for name, loss in others.items()}
    ours()
    memory = {name: peak_memory(run) for name, run in {"": ours, **ways}.items()}  # and warms up
    times = in_turns({"": ours, **ways}, rounds=rounds, warm_up=0)
    figures = [Figure(part, f"against {name}", *ratio(times[name], times[""]), bar=1.0) for name in others]
    for name in others:
        detail = f"{memory[''] / 2**20:,.0f} of {memory[name] / 2**20:,.0f} MiB above weights and optimiser"
        share = memory[""] / memory[name]
        figures.append(
            Figure(part, f"peak memory, against {name}", share, bar=1.0, more_is_better=False, detail=detail)
        )
    return figures


def agreement(shape: Shape, device: str) -> list[Figure]:
    """In float32, on the same masks, of two rows; of GIFT for one: LIFT's mean importance is the batch's, Remask's a
    row's.
    """
    model, rows = build(shape, torch.float32, device).requires_grad_(True), gsm8k_like(2, shape)
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        optimizer = torch.optim.SGD(model.parameters())  # never steps
        for objective, others, taken in (("sft", SFT, rows), ("gift", GIFT, rows[:1])):
            ours = Stepper(model, taken, objective, folder, optimizer, fill=FILL)
            loss, gradient = with_gradient(model, ours.loss())
            for name, other in others.items():
                found, gradient_found = with_gradient(model, Peer(other, ours).loss())
                apart = max(abs(loss / found - 1), ((gradient - gradient_found).norm() / gradient_found.norm()).item())
                figures.append(
                    Figure(
                        f"loss and gradient in float32: {shape.name}",
                        f"{objective}, largest relative difference from {name}",
                        apart,
                        bar=1e-4,
                        more_is_better=False,
                        unit="relative",
                    )
                )
    return figures


def with_gradient(model: Any, loss: torch.Tensor) -> tuple[float, torch.Tensor]:
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return loss.item(), gradient


def padding(shape: Shape, batch: int = 32) -> Figure:
    """Of what the trainer computes, the share that is padding."""
    rows = gsm8k_like(10 * batch, shape, seed=1)
    collate = Collator(Fill.parse("none"), shape.vocabulary - 3, 4096, seed=0)
    kept = computed = 0
    for start in range(0, len(rows), batch):
        whole = collate([RowDataset(rows)[Visit(i, 0, i)] for i in range(start, start + batch)])
        for part in by_length(whole, most=TrainerConfig().micro_batch_tokens, least=LEAST_TOKENS[True]):
            kept += int(part["attended"].sum())
            computed += part["attended"].numel()
    lengths = [len(row.prompt) + len(row.response) for row in rows]
    fixed = 1 - sum(lengths) / (1024 * len(lengths))
    what = f"padding, batches of {batch} GSM8K-like rows"
    detail = f"padded to 1,024 tokens: {100 * fixed:.0f} %"
    return Figure("batches", what, 1 - kept / computed, unit="%", more_is_better=False, detail=detail)


def probes(part: str, ours: Stepper, folder: str, rounds: int) -> list[Figure]:
    """What GIFT costs above SFT. Beside the policy's probe stands what it cannot do without: a forward pass of the same
    rows that ends in the logits of the response's positions.
    """
    model, rows = ours.trainer.model, list(ours.trainer.rows)
    variants = {
        "sft": ours,
        "policy": Stepper(model, rows, "gift", folder, ours.optimizer),
        "frozen": Stepper(model, rows, "gift", folder, ours.optimizer, frozen=True),
        "forward": lambda: forward_of_response(ours),
    }
    times = in_turns(variants, rounds=rounds)
    share = ratio(times["forward"], times["sft"])
    cost = {name: ratio(times[name], times["sft"]) for name in ("frozen", "policy")}
    figures = [
        Figure(part, "GIFT with frozen probe, in SFT steps", *cost["frozen"], bar=1.03, more_is_better=False),
        Figure(part, "one forward pass, in SFT steps", *share, more_is_better=False),
    ]
    figures.append(
        Figure(
            part,
            "GIFT with policy probe, in SFT steps",
            *cost["policy"],
            bar=1 + share[0] + 0.03,
            more_is_better=False,
            detail="bar: 1, the forward pass, and 3 points",
        )
    )
    return figures


def forward_of_response(ours: Stepper) -> None:
    """The rows with all of the response masked, in the parts that the trainer takes them in; nothing is read of the
    logits but one column.
    """
    trainer = ours.trainer
    reader = trainer.reader(trainer.model).read_only()
    for part in trainer.parts(ours.batch()):
        canvas = Canvas.of({name: value.to(trainer.args.device) for name, value in part.items()})
        ids = canvas.ids.masked_fill(canvas.corruptible, trainer.mask_id)
        with mixed(trainer.model):
            reader.look(ids, canvas, canvas.corruptible, lambda logits, part: (logits[:, 0].clone(),))
