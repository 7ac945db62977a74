"""Who answers prompts: the model in this process, or anything else that keeps the protocol.

Rollouts, held-out problems, evaluation and the lm-eval harness all ask an `Engine`. A server over HTTP, a process of
its own, or a pool of them are engines too (docs/extending.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from transformers import PreTrainedTokenizerBase

from remask.models.facts import stop_token_ids
from remask.own_code import load_class
from remask.sampling.generate import Row, generate_from_ids, length_of
from remask.sampling.schedule import Decoding


@dataclass(frozen=True)
class Request:
    """A prompt to be answered. seed: the number that the answer's random draws follow from."""

    prompt: list[int]
    seed: int


@dataclass(frozen=True)
class Answer:
    """One answer as it was written.

    row: the canvas, the step that wrote each token, the probability it had, and whether the text ended. text: up to the
    first token that ends it, and tokens their number, that one included. version: of the weights that wrote it.
    forwards and seconds: this answer's share of what its batch took. row_forwards: its share of the forwards that rows
    took part in; the same for all answers of a batch.
    """

    row: Row
    text: str
    tokens: int
    version: int = 0
    forwards: float = 0.0
    seconds: float = 0.0
    row_forwards: float = 0.0


@runtime_checkable
class Engine(Protocol):
    """Answers prompts with the weights it was last given."""

    def answer(self, requests: Sequence[Request], decoding: Decoding) -> list[Answer]:
        """An answer to each request, in their order. It depends on the request, the decoding and the weights alone, not
        on what else is asked.
        """
        ...

    def update(self, model: Any, version: int) -> None:
        """Take over the model's weights; answers from now on are of this version (the optimiser steps behind them)."""
        ...


@runtime_checkable
class OutsideEngine(Engine, Protocol):
    """An engine that answers with a copy of the weights outside this process: the model may be trained on meanwhile.
    `update` is `install` of a `snapshot`.
    """

    def snapshot(self, model: Any, version: int) -> Any:
        """Return a copy of the model's weights that later training does not change. What is answered stays as it is."""
        ...

    def install(self, weights: Any) -> None:
        """Answer with this copy from now on. It is not called while answers are being written."""
        ...


class LocalEngine:
    """Answers with the live model of this process, `batch_size` prompts at a time.

    on_done is called with the number of answers that are there, now and then.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int = 32,
        *,
        model: Any = None,
        on_done: Callable[[int], None] | None = None,
    ) -> None:
        self.tokenizer, self.batch_size, self.on_done = tokenizer, batch_size, on_done
        self.model, self.version = model, 0

    def update(self, model: Any, version: int) -> None:
        """Nothing is copied: the model is the live one."""
        self.model, self.version = model, version

    def answer(self, requests: Sequence[Request], decoding: Decoding) -> list[Answer]:
        """Return an answer to each request, `batch_size` of them at a time."""
        generated = generate_from_ids(
            self.model,
            self.tokenizer,
            [request.prompt for request in requests],
            decoding,
            batch_size=self.batch_size,
            row_seeds=[request.seed for request in requests],
            on_batch=self.on_done,
        )
        stops = set(stop_token_ids(self.model.config))
        taken = ("forwards", "seconds", "row_forwards")
        share = {key: generated.stats[key] / len(requests) for key in taken} if requests else {}
        return [
            Answer(row, text, length_of(row.token_ids, stops), self.version, **share)
            for row, text in zip(generated.history, generated.texts, strict=True)
        ]


def engine_of(name: str, tokenizer: PreTrainedTokenizerBase, batch_size: int, replicas: int = 1) -> Engine:
    """Return the engine `local`, the one that asks the servers at `http://…`, `ray` with so many replicas, or the class
    that `file.py:Class` names, made with the tokenizer and the batch size.

    Raises UserError where there is no such class or it lacks a method.
    """
    if name == "local":
        return LocalEngine(tokenizer, batch_size)
    if name.startswith(("http://", "https://")):
        from remask.sampling.http_engine import HttpEngine

        return HttpEngine(name, tokenizer, batch_size)
    if name == "ray":
        from remask.sampling.ray_engine import RayEngine

        return RayEngine(tokenizer, batch_size, replicas=replicas)
    made: Engine = load_class(name, "an engine", ("answer", "update"))(tokenizer, batch_size)
    return made
