"""One optimiser step of SFT and of GIFT: Remask's trainer against the textbook's loop on the same rows and model."""

from __future__ import annotations

import tempfile
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import textbook
import torch
from measure import Figure, in_turns, peak_memory, ratio, release
from shapes import LAPTOP, Shape, build, fitting, gsm8k_like, memory_of
from transformers import TrainingArguments

from remask.config import TrainerConfig
from remask.data.canvas import Fill, Row
from remask.data.collate import Collator, RowDataset, Visit, by_length, canvas_of
from remask.sft.presets import resolve
from remask.sft.signals import CacheKey, build_cache
from remask.sft.trainer import LEAST_TOKENS, SftTrainer

ROWS = 8


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
    ) -> None:
        self.mixed = mixed
        self.chosen = resolve(objective)
        collator = Collator(Fill.parse("none"), model.config.eos_token_id, 4096, seed=0)
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
                self.trainer.predict(model).read_only(),
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
        trainer, batch = self.trainer, self.batch()
        self.visit += 1
        with mixed(trainer.model, self.mixed):
            inputs, count = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
            loss = trainer.compute_loss(trainer.model, inputs[0], num_items_in_batch=count)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


class Plain:
    """The textbook's optimiser step on the same rows."""

    def __init__(
        self,
        model: Any,
        rows: list[Row],
        form: textbook.LossForm,
        optimizer: torch.optim.Optimizer,
        *,
        gift: bool = False,
    ) -> None:
        self.model, self.form, self.gift, self.pad = model, form, gift, model.config.pad_token_id
        self.pairs = [(row.prompt, row.response) for row in rows]
        self.optimizer = optimizer
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self) -> None:
        ids, response = textbook.pad_rows(self.pairs, self.pad)
        t = torch.rand(len(ids), generator=self.generator).clamp(min=1e-3)
        u = torch.rand(ids.shape, generator=self.generator)
        device = next(self.model.parameters()).device
        ids, response, t, u = (x.to(device) for x in (ids, response, t, u))
        rate = t[:, None].expand(ids.shape)
        with mixed(self.model):
            if self.gift:
                rate = textbook.gift_rate(self.model, ids, response, t, self.pad)
            loss = textbook.sft_loss(self.model, ids, response, rate, u, self.form, self.pad)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def with_adapters(model: Any) -> Any:
    """Frozen but for LoRA of rank 8 on the attention's projections."""
    from remask.config import LoraConfig
    from remask.models.lora import add_adapter

    return add_adapter(model, LoraConfig(rank=8, alpha=16, dropout=0.0), base_name="random")


def measure(rounds: int, shape: Shape = LAPTOP, device: str = "cpu") -> list[Figure]:
    figures = []
    for name in ("full", "LoRA"):
        figures += of_kind(name, rounds, shape, device)
        release()
    return [*figures, loss_apart(shape if device == "cpu" else LAPTOP, device), padding(shape)]


def of_kind(name: str, rounds: int, shape: Shape, device: str) -> list[Figure]:
    """Of one model with all weights trained or with adapters; nothing of it is left afterwards."""
    shape = fitting(shape, memory_of(device)) if name == "full" else shape
    rows, model = gsm8k_like(ROWS, shape), build(shape, device=device)
    model = with_adapters(model) if name == "LoRA" else model.requires_grad_(True)
    part = f"SFT step, {name}: {shape.name}, {ROWS} rows"
    with tempfile.TemporaryDirectory() as folder:
        ours = Stepper(model, rows, "sft", folder, adamw(model))
        figures = against_textbook(part, ours, model, rows, rounds)
        figures += probes(part, ours, folder, 2 * rounds)
        plain = Plain(model, rows, "masked rows", ours.optimizer, gift=True)
        gift = Stepper(model, rows, "gift", folder, ours.optimizer)
        times = in_turns({"ours": gift, "plain": plain}, rounds=max(1, rounds - 1), warm_up=0)
    return [*figures, Figure(part, "GIFT against the textbook's", *ratio(times["plain"], times["ours"]))]


def loss_apart(shape: Shape, device: str) -> Figure:
    """In float32, on the same masks."""
    model, rows = build(shape, torch.float32, device), gsm8k_like(ROWS, shape)
    with tempfile.TemporaryDirectory() as folder:
        ours = Stepper(model, rows, "sft", folder, adamw(model.requires_grad_(True)))
    prepared = ours.trainer.prepare(ours.batch(), ours.trainer.args.device)
    canvas, corrupted = prepared.canvas, prepared.corrupted
    u = torch.where(corrupted.mask, 0.0, 1.0)
    pad = model.config.pad_token_id
    plain = textbook.sft_loss(model, canvas.ids, canvas.corruptible, corrupted.rate, u, "masked rows", pad).item()
    found = (ours.trainer.loss_rows(model, prepared).sum() / canvas.corruptible.sum()).item()
    what = "loss, of the textbook's, relative difference in float32"
    return Figure(
        f"SFT loss: {shape.name}", what, abs(found / plain - 1), bar=1e-5, more_is_better=False, unit="relative"
    )


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


def against_textbook(part: str, ours: Stepper, model: Any, rows: list[Row], rounds: int) -> list[Figure]:
    plain = {form: Plain(model, rows, form, ours.optimizer) for form in ("masked rows", "B V L")}
    ours()
    memory = {name: peak_memory(run) for name, run in {"ours": ours, **plain}.items()}  # and warms up
    said = {"masked rows": ("full logits", 1.5, rounds), "B V L": ("the [B, V, L] form", 2.5, max(1, rounds - 1))}
    figures = []
    for form, (name, bar, count) in said.items():
        times = in_turns({"ours": ours, "plain": plain[form]}, rounds=count, warm_up=0)
        figures.append(Figure(part, f"against {name}", *ratio(times["plain"], times["ours"]), bar=bar))
    for form, (name, *_) in said.items():
        share = memory["ours"] / memory[form]
        detail = f"{memory['ours'] / 2**20:,.0f} of {memory[form] / 2**20:,.0f} MiB above weights and optimiser"
        figures.append(Figure(part, f"peak memory, of {name}'s", share, bar=0.5, more_is_better=False, detail=detail))
    return figures


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
    network = trainer.predict(trainer.model).read_only()
    for part in trainer.parts(ours.batch()):
        canvas = canvas_of({name: value.to(trainer.args.device) for name, value in part.items()})
        ids = canvas.ids.masked_fill(canvas.corruptible, trainer.mask_id)
        with mixed(trainer.model):
            network.call(ids, canvas.attended, canvas.corruptible, look=lambda logits, part: (logits[:, 0].clone(),))
