"""An engine whose replicas of the model are Ray actors, on whatever cluster there is (the extra `ray`).

The model travels through Ray's object store once, and the weights that training changes with every version. A call
names the weights it wants, so that a replica that was started anew takes them before it answers. What a replica that
ended was asked for is asked of another; an answer depends on its request alone, and counts once.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from transformers import PreTrainedTokenizerBase

from remask.errors import UserError, first_line
from remask.models.fingerprint import changing, named
from remask.sampling.engine import Answer, LocalEngine, Request
from remask.sampling.schedule import Decoding

PATIENCE = 600.0
"""Seconds without an answer of any replica, after which an engine gives up. The first answer waits for the start."""
SHOWN = ("CPU", "GPU")
FAILURES = 4
"""Replicas, for each that there should be, that may end one after another without an answer of any."""


@dataclass(frozen=True)
class Weights:
    """A copy of weights in the object store. number: which of the engine's copies it is; version: of the training."""

    number: int
    version: int
    stored: Any


class Actor:
    """A replica's process: a model that answers, with the weights that a call names."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> None:
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.engine, self.number = LocalEngine(tokenizer, batch_size, model=self.model), -1

    @torch.no_grad()
    def answer(
        self, weights: Weights, requests: Sequence[Request], decoding: Decoding
    ) -> list[Answer] | tuple[str, str | None, str | None]:
        """Return an answer to each request, or what a UserError says."""
        if self.number != weights.number:
            import ray

            own = named(self.model)
            for name, value in load(ray.get(weights.stored).tobytes()).items():
                own[name].copy_(value)
            self.number = weights.number
        try:
            answers = self.engine.answer(requests, decoding)
        except UserError as error:
            return error.what, error.where, error.mend
        return [replace(answer, version=weights.version) for answer in answers]


class RayEngine:
    """Answers by `replicas` actors, which are started with the first weights. Each has a processor core, and a GPU
    where this process has one.

    Requests are cut into as many parts as there are replicas, none longer than `batch_size`; a part goes to the next
    replica that is free. Raises UserError where ray is not installed or finds no cluster.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int = 32,
        *,
        replicas: int = 1,
        patience: float = PATIENCE,
    ) -> None:
        try:
            import ray
        except ImportError:
            raise UserError("the engine ray needs the library ray", mend="pip install 'remask[ray]'") from None
        self.ray, self.tokenizer, self.batch_size, self.patience = ray, tokenizer, batch_size, patience
        self.replicas: list[Any] = [None] * replicas
        self.started = 0
        self._model: tuple[Any, Any] | None = None
        self._copies = 0
        self.weights: Weights | None = None
        if not ray.is_initialized():
            try:
                ray.init(logging_level=logging.ERROR, log_to_driver=False)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise UserError(
                    f"ray finds no cluster and cannot start one ({first_line(error)})", mend="see `ray status`"
                ) from None

    def update(self, model: Any, version: int) -> None:
        """Let answers from now on be of this version."""
        self.install(self.snapshot(model, version))

    def snapshot(self, model: Any, version: int) -> Weights:
        """Return a copy of the weights in the object store: of adapters alone where the model has any."""
        if self._model is None:
            if any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):
                raise UserError(
                    "the engine ray sends a whole model, and this one's weights are sharded",
                    mend="train on whole weights (one GPU, or DDP), or let servers answer: --rollout.engine http://…",
                )
            with bare(model):
                self._model = self.ray.put(model), self.ray.put(self.tokenizer)
        self._copies += 1
        stored = self.ray.put(np.frombuffer(save(changing(model)), dtype=np.uint8))
        return Weights(self._copies, version, stored)

    def install(self, weights: Weights) -> None:
        """Ask for these weights from now on."""
        self.weights = weights
        for place, replica in enumerate(self.replicas):
            if replica is None:
                self.replicas[place] = self._start()

    def answer(self, requests: Sequence[Request], decoding: Decoding) -> list[Answer]:
        """Return an answer to each request, in their order.

        Raises UserError where one is refused, and where replicas end again and again or none answers.
        """
        size = max(1, min(self.batch_size, -(-len(requests) // len(self.replicas))))
        parts = [list(requests[start : start + size]) for start in range(0, len(requests), size)]
        found: dict[int, list[Answer]] = {}
        todo, free, failures = deque(range(len(parts))), deque(range(len(self.replicas))), 0
        under_way: dict[Any, tuple[int, int]] = {}
        while len(found) < len(parts):
            while todo and free:
                part, place = todo.popleft(), free.popleft()
                under_way[self.replicas[place].answer.remote(self.weights, parts[part], decoding)] = part, place
            ready, _ = self.ray.wait(list(under_way), num_returns=1, timeout=self.patience)
            if not ready:
                raise self._silent()
            part, place = under_way.pop(ready[0])
            free.append(place)
            try:
                answers = self.ray.get(ready[0])
            except self.ray.exceptions.RayActorError as error:
                failures += 1
                if failures >= FAILURES * len(self.replicas):
                    raise UserError(
                        f"{failures} replicas ended one after another ({first_line(error)})",
                        mend="see Ray's logs; is there memory for the model?",
                    ) from None
                self.replicas[place] = self._start()
                todo.appendleft(part)
                continue
            if isinstance(answers, tuple):
                raise UserError(answers[0], where=answers[1], mend=answers[2])
            found[part], failures = answers, 0
        return [answer for part in range(len(parts)) for answer in found[part]]

    def _start(self) -> Any:
        assert self._model is not None
        self.started += 1
        remote = self.ray.remote(Actor).options(num_cpus=1, num_gpus=int(torch.cuda.is_available()), max_restarts=0)
        return remote.remote(*self._model, self.batch_size)

    def _silent(self) -> UserError:
        there = ", ".join(f"{value:g} {name}" for name, value in self.ray.cluster_resources().items() if name in SHOWN)
        return UserError(
            f"no replica has answered for {self.patience:g} s; the cluster has {there or 'no processors'}",
            mend="ask for fewer (--rollout.replicas) or add nodes: each takes a core, and a GPU where there is one",
        )


@contextmanager
def bare(model: Any) -> Iterator[None]:
    """Let a model be without what the training engine put around its call, which cannot be sent elsewhere."""
    kept = {name: model.__dict__.pop(name) for name in ("forward", "_original_forward") if name in model.__dict__}
    try:
        yield
    finally:
        model.__dict__.update(kept)
