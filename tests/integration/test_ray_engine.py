"""The engine on Ray, on a cluster of this machine where ray is installed, and on one that is simulated."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import remask
from remask.config import RlConfig, RolloutConfig
from remask.errors import UserError
from remask.rl.settings import check_numbers
from remask.sampling import Decoding
from remask.sampling.engine import LocalEngine, OutsideEngine, Request, engine_of
from remask.sampling.ray_engine import RayEngine

DECODING = Decoding(max_new_tokens=8, steps=4, temperature=1.0)
REQUESTS = [Request([65, 66, 67 + seed], seed) for seed in range(5)]


class ActorDiedError(Exception):
    pass


@dataclass(frozen=True, eq=False)
class Stored:
    value: Any


class Handle:
    """An actor of the simulated cluster: a call is carried out when it is waited for, unless the actor was ended."""

    def __init__(self, kind: type, arguments: Any) -> None:
        self.made, self.ended = kind(*(copy.deepcopy(getattr(one, "value", one)) for one in arguments)), False
        self.answer = SimpleNamespace(remote=lambda *given: Stored((self, given)))

    def carried_out(self, given: Any) -> Any:
        if self.ended:
            raise ActorDiedError("the actor died")
        return self.made.answer(*given)


class Simulated(ModuleType):
    """As much of ray as the engine asks for. Objects are copied, so that nothing is shared by accident."""

    exceptions = SimpleNamespace(RayActorError=ActorDiedError)

    def __init__(self) -> None:
        super().__init__("ray")
        self.ends_at_once = False

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def put(self, value: Any) -> Stored:
        return Stored(copy.deepcopy(value))

    def get(self, stored: Any) -> Any:
        value = stored.value
        return value[0].carried_out(value[1]) if isinstance(value, tuple) else value

    def wait(self, under_way: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return (under_way[-1:], under_way[:-1]) if timeout else ([], under_way)  # the last one first

    def remote(self, kind: type) -> Any:
        def start(*arguments: Any) -> Handle:
            handle = Handle(kind, arguments)
            handle.ended = self.ends_at_once
            return handle

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=start))

    def kill(self, handle: Handle) -> None:
        handle.ended = True


@pytest.fixture(params=["simulated", "real"])
def ray(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    if request.param == "simulated":
        monkeypatch.setitem(sys.modules, "ray", Simulated())
        yield sys.modules["ray"]
        return
    real = pytest.importorskip("ray", reason="ray is not installed: pip install 'remask[ray]'")
    real.init(num_cpus=2, object_store_memory=2**27, include_dashboard=False, log_to_driver=False)
    yield real
    real.shutdown()


def negated(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1)


def test_answers_are_the_local_ones_whatever_ends(ray: Any) -> None:
    """Weights of the version that was installed, also by a replica that was started anew; each answer once."""
    model, tokenizer = remask.load("tiny-direct")
    engine = engine_of("ray", tokenizer, 8, replicas=2)
    assert isinstance(engine, RayEngine)
    assert isinstance(engine, OutsideEngine)

    def expected() -> list[list[int]]:
        local = LocalEngine(tokenizer, 3, model=model)
        return [one.row.token_ids for one in local.answer(REQUESTS, DECODING)]

    engine.update(model, 0)
    before = engine.answer(REQUESTS, DECODING)
    first = expected()
    negated(model)
    weights = engine.snapshot(model, 3)
    assert [one.row.token_ids for one in engine.answer(REQUESTS, DECODING)] == first
    engine.install(weights)
    negated(model)  # training goes on: the copy stays
    ray.kill(engine.replicas[1])
    found = engine.answer(REQUESTS, DECODING)
    assert engine.started == 3
    negated(model)
    assert [one.row.token_ids for one in found] == expected() != first
    assert [one.row.token_ids for one in before] == first
    assert [one.version for one in before + found] == [0] * 5 + [3] * 5
    with pytest.raises(UserError, match="nowhere"):
        engine.answer(REQUESTS, replace(DECODING, rule="nowhere.py:Rule"))


def test_replicas_that_end_again_and_again_or_are_silent_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Simulated()
    monkeypatch.setitem(sys.modules, "ray", cluster)
    model, tokenizer = remask.load("tiny-direct")
    engine = RayEngine(tokenizer, replicas=2, patience=0.0)
    engine.update(model, 0)
    with pytest.raises(UserError, match="no replica has answered for 0 s; the cluster has 2 CPU"):
        engine.answer(REQUESTS, DECODING)
    engine = RayEngine(tokenizer, replicas=2)
    cluster.ends_at_once = True
    engine.update(model, 0)
    with pytest.raises(UserError, match="8 replicas ended one after another"):
        engine.answer(REQUESTS, DECODING)
    assert engine.answer([], DECODING) == []


def test_what_ray_needs_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"needs the library ray; pip install 'remask\[ray\]'"):
        engine_of("ray", remask.load("tiny-direct")[1], 8)
    with pytest.raises(UserError, match=r"rollout\.replicas = 2: the engine local has none"):
        check_numbers(RlConfig(rollout=RolloutConfig(replicas=2)))
