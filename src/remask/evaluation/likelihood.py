"""How likely a model finds the answers of rows: the ELBO of each, which bounds its log-likelihood from below.

The noise of a row depends on the row's place and the draw alone, so that two models are compared on the same noise.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from remask.choices import Split
from remask.data.canvas import Fill, Row, build_rows, tell_faults
from remask.data.collate import Collator, Visit
from remask.data.sources import Example, Loaded, load_examples
from remask.data.token_classes import classes_of
from remask.diffusion.blocks import attention_of, in_blocks
from remask.diffusion.corruption import Canvas
from remask.diffusion.likelihood import elbo_coupled_views, estimate
from remask.diffusion.noise import Noise
from remask.errors import UserError
from remask.evaluation.nats import totals
from remask.evaluation.statistics import mean_interval
from remask.models.facts import facts, first_eos, mask_token
from remask.progress import progress
from remask.tasks.generated import generated_examples, is_generated
from remask.tasks.generator import digest

TASK = "likelihood"
NOISE_SEED = 1 << 22
"""The seed of the noise that rows are read on, the same for every model."""


def evaluate_likelihood(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    *,
    count: int | None,
    draws: int,
    batch_size: int,
    split: Split = "test",
    quiet: bool = False,
    label: str = "reading",
) -> dict[str, Any]:
    """Return the task block of an evaluation record: the likelihood of each row's answer, its end token included.

    Rows that are generated are of `split`. `likelihood` is exp(ELBO / tokens), the geometric mean of the tokens'
    probabilities, and `nats_per_token` of the block is −ΣELBO / Σtokens over all rows. `classes` are the tokens and
    nats of each class of tokens (`remask.data.token_classes`), whose lexical ones add up to the whole. Each draw reads
    a mask and its complement (`elbo_coupled_views`). Raises UserError for rows that cannot be read or do not fit the
    model.
    """
    started = time.perf_counter()
    if is_generated(source):
        style = facts(model, tokenizer).prompt_style
        loaded = Loaded(generated_examples(source, split=split, prompt_style=style))
    else:
        loaded = load_examples(source)
    loaded.examples = loaded.examples[:count]
    limit = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    mask_id = mask_token(model.config)
    built = build_rows(loaded.examples, tokenizer, max_length=limit, over_long="error", mask_id=mask_id)
    if not quiet:
        tell_faults(source, loaded, built)
    rows, collator = built.rows, Collator(Fill("none"), first_eos(model.config), limit, NOISE_SEED)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    values = [np.zeros(len(row.response)) for row in rows]
    with progress(f"{label} {TASK}", len(rows) * draws, enabled=not quiet) as tick:
        for start in range(0, len(order), batch_size):
            members = order[start : start + batch_size]
            for draw in range(draws):
                visits = [Visit(i, draw, i * draws + draw) for i in members]
                for i, drawn in zip(members, _elbo(model, collator, [rows[i] for i in members], visits), strict=True):
                    values[i] += drawn.numpy() / draws
                tick(start * draws + (draw + 1) * len(members))
    classes = [_classes(classes_of(tokenizer, row.response), value) for row, value in zip(rows, values, strict=True)]
    elbo = [float(value.sum()) for value in values]
    return _block(source, loaded.examples, rows, elbo, classes, draws, time.perf_counter() - started)


@torch.no_grad()
def _elbo(model: Any, collator: Collator, rows: Sequence[Row], visits: Sequence[Visit]) -> list[Tensor]:
    """One draw of each row's ELBO, in nats, as the shares [n] of the answer's tokens."""
    batch = {name: value.to(model.device) for name, value in collator(list(zip(rows, visits, strict=True))).items()}
    canvas = in_blocks(Canvas.of(batch), attention_of(model))
    views = elbo_coupled_views(canvas, Noise.of(batch), mask_token(model.config))
    values = estimate(model, canvas, [views]).token.double().cpu()
    if not bool(torch.isfinite(values).all()):
        raise UserError("the model's predictions are not finite", mend="use a checkpoint whose weights are whole")
    return [value[answer] for value, answer in zip(values, canvas.supervised.cpu(), strict=True)]


def _classes(names: Sequence[tuple[str, ...]], values: ndarray) -> dict[str, tuple[int, float]]:
    """Tokens and nats of each class."""
    found: dict[str, tuple[int, float]] = {}
    for of_token, value in zip(names, values.tolist(), strict=True):
        for name in of_token:
            tokens, nats = found.get(name, (0, 0.0))
            found[name] = tokens + 1, nats - value
    return found


def _block(
    source: str,
    examples: Sequence[Example],
    rows: Sequence[Row],
    elbo: Sequence[float],
    classes: Sequence[dict[str, tuple[int, float]]],
    draws: int,
    seconds: float,
) -> dict[str, Any]:
    tokens = [len(row.response) for row in rows]
    likelihoods = [math.exp(min(0.0, value / n)) for value, n in zip(elbo, tokens, strict=True)]
    seen: dict[str, int] = {}
    problems = []
    for example, value, of_class, n, likelihood in zip(examples, elbo, classes, tokens, likelihoods, strict=True):
        said = [f"{turn['role']}: {turn['content']}" for turn in example.messages]
        key = f"{TASK}:{digest(chr(10).join([*said, example.completion])).hex()}"
        seen[key] = seen.get(key, 0) + 1
        problems.append(
            {
                "id": key if seen[key] == 1 else f"{key}#{seen[key]}",
                "prompt": example.messages[-1]["content"],
                "completion": example.completion,
                "correct": None,
                "score": likelihood,
                "metrics": {TASK: likelihood},
                "answer": None,
                "tokens": n,
                "elbo": value,
                "classes": of_class,
            }
        )
    return {
        "source": source,
        "n": len(rows),
        "lead": TASK,
        "published_metric": TASK,
        "metrics": {TASK: asdict(mean_interval(likelihoods))},
        "nats_per_token": -sum(elbo) / sum(tokens),
        "classes": totals(classes),
        "draws": draws,
        "generation": {"forwards": 2 * draws, "tokens": sum(tokens), "seconds": round(seconds, 3), "unended": 0},
        "problems": problems,
    }
