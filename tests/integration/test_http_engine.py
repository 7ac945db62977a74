"""Answers through servers: those of the local engine, whichever server gives them and whatever happens to one."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import remask
from remask import cli
from remask.data.chat import encode_prompt
from remask.errors import UserError
from remask.models.fingerprint import fingerprint, spread
from remask.sampling import Decoding, http_engine
from remask.sampling.engine import LocalEngine, Request, engine_of
from remask.sampling.http_engine import HttpEngine, settings_of
from remask.serving.run import Server

ADMIN = "weights"
DECODINGS = [
    Decoding(max_new_tokens=8, steps=4, temperature=1.0),
    Decoding(max_new_tokens=20, block_length=5, reveal="margin"),
    Decoding(max_new_tokens=12, threshold=0.6, edit_threshold=0.9, temperature=0.4, seed=3),
]


def started(name: str = "tiny-direct", **options: Any) -> Server:
    return remask.serve(*remask.load(name), background=True, port=0, token_budget=4096, admin_key=ADMIN, **options)


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    two = [started(), started()]
    yield two
    for server in two:
        server.stop()


def requests(tokenizer: Any, count: int = 6) -> list[Request]:
    ids = encode_prompt(tokenizer, [{"role": "user", "content": "sudoku 2031 0002 0013 3004"}])
    return [Request(ids, seed) for seed in range(count)]


def urls(servers: list[Server]) -> str:
    return ",".join(server.url for server in servers)


@pytest.mark.parametrize("decoding", DECODINGS)
def test_answers_are_the_local_engine_s(decoding: Decoding, servers: list[Server]) -> None:
    model, tokenizer = remask.load("tiny-direct")
    engine = engine_of(urls(servers), tokenizer, 4)
    engine.update(model, 0)
    local = LocalEngine(tokenizer, 1, model=model)
    for found, expected in zip(
        engine.answer(requests(tokenizer), decoding), local.answer(requests(tokenizer), decoding), strict=True
    ):
        assert found.row.token_ids == expected.row.token_ids
        assert found.row.revealed_at == expected.row.revealed_at
        assert found.row.earlier == expected.row.earlier
        assert found.row.confidence == pytest.approx(expected.row.confidence, abs=1e-6, nan_ok=True)
        assert (found.text, found.tokens, found.row.ended) == (expected.text, expected.tokens, expected.row.ended)
    assert all(server.service.scheduler.counted.finished for server in servers)


def test_new_weights_are_sent_and_answers_are_of_their_version(
    servers: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMASK_ADMIN_KEY", ADMIN)
    model, tokenizer = remask.load("tiny-direct")
    engine = HttpEngine(urls(servers), tokenizer)
    engine.update(model, 0)
    before = engine.answer(requests(tokenizer), DECODINGS[0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1)
    engine.update(model, 3)
    after = engine.answer(requests(tokenizer), DECODINGS[0])
    expected = LocalEngine(tokenizer, 1, model=model).answer(requests(tokenizer), DECODINGS[0])
    assert [one.row.token_ids for one in after] == [one.row.token_ids for one in expected]
    assert [one.row.token_ids for one in after] != [one.row.token_ids for one in before]
    assert [one.version for one in before + after] == [0] * 6 + [3] * 6
    assert all(server.service.served.versions == {"tiny-direct": 3} for server in servers)


def test_other_weights_are_refused_where_none_may_be_sent(
    servers: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REMASK_ADMIN_KEY", raising=False)
    model, tokenizer = remask.load("tiny")
    with pytest.raises(UserError, match="other weights than the model that is asked for"):
        HttpEngine(servers[0].url, tokenizer).update(model, 0)


def test_a_wrong_key_is_named(servers: list[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMASK_ADMIN_KEY", "guess")
    model, tokenizer = remask.load("tiny-direct")
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    with pytest.raises(UserError, match="lacks the admin key"):
        HttpEngine(servers[0].url, tokenizer).update(model, 1)


def test_a_server_that_ends_loses_no_answer_and_one_that_returns_gets_the_weights_first(
    servers: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMASK_ADMIN_KEY", ADMIN)
    model, tokenizer = remask.load("tiny-direct")
    engine = HttpEngine(urls(servers), tokenizer, 4)
    engine.update(model, 0)
    port = servers[1].config.port or int(servers[1].url.rpartition(":")[2])
    servers[1].stop()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1)
    engine.update(model, 1)
    expected = LocalEngine(tokenizer, 1, model=model).answer(requests(tokenizer, 8), DECODINGS[0])
    found = engine.answer(requests(tokenizer, 8), DECODINGS[0])
    assert [one.row.token_ids for one in found] == [one.row.token_ids for one in expected]
    servers[1] = remask.serve(
        *remask.load("tiny-direct"), background=True, port=port, token_budget=4096, admin_key=ADMIN
    )
    for replica in engine.replicas:
        replica.away_until = 0.0
    found = engine.answer(requests(tokenizer, 8), DECODINGS[0])
    assert [one.row.token_ids for one in found] == [one.row.token_ids for one in expected]
    assert servers[1].service.served.versions == {"tiny-direct": 1}
    assert servers[1].service.scheduler.counted.finished > 0


def test_no_server_at_all_is_an_error_in_time() -> None:
    model, tokenizer = remask.load("tiny-direct")
    with pytest.raises(UserError, match="no server answers"):
        HttpEngine("http://127.0.0.1:9", tokenizer, patience=0.1).update(model, 0)


def test_what_a_server_that_hangs_was_asked_is_asked_of_another(
    servers: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes connections and says nothing, at first or after its weights were looked at."""
    monkeypatch.setattr(http_engine, "HANGS_TO_A_QUESTION", 0.2)
    monkeypatch.setattr(http_engine, "HANGS", 2.0)
    model, tokenizer = remask.load("tiny-direct")
    expected = LocalEngine(tokenizer, 1, model=model).answer(requests(tokenizer), DECODINGS[0])
    with socket.create_server(("127.0.0.1", 0)) as mute:
        engine = HttpEngine(f"http://127.0.0.1:{mute.getsockname()[1]},{servers[0].url}", tokenizer)
        engine.update(model, 0)
        hung = engine.replicas[0]
        assert hung.away_until > time.monotonic() + 100
        hung.away_until, hung.has = 0.0, engine.number
        found = engine.answer(requests(tokenizer), DECODINGS[0])
    assert [one.row.token_ids for one in found] == [one.row.token_ids for one in expected]
    assert servers[0].service.scheduler.counted.finished == 6


def test_what_a_server_does_not_run_is_refused() -> None:
    with pytest.raises(UserError, match="no rule of one's own"):
        settings_of(Decoding(rule="own.py:Rule"))
    with pytest.raises(UserError, match="no address"):
        HttpEngine("http://", remask.load("tiny-direct")[1])


def test_rollouts_and_evaluation_through_servers_are_the_local_ones(
    servers: list[Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's weights after two steps are equal, and so is every answer of an evaluation."""
    monkeypatch.setenv("REMASK_ADMIN_KEY", ADMIN)
    weights, answers = [], []
    for engine in ("local", urls(servers)):
        folder, record = tmp_path / f"rl-{len(weights)}", tmp_path / f"{len(weights)}.json"
        flags = [
            "--model",
            "tiny-direct",
            "--tasks",
            "sudoku",
            "--rollout.prompts",
            "2",
            "--rollout.completions",
            "4",
            "--problems",
            "8",
        ]
        flags += ["--rollout.engine", engine, "--max-steps", "2", "--held-out.n", "4", "--output-dir", str(folder)]
        assert cli.main(["rl", *flags, "--rollout.decoding.steps", "5"]) == 0
        weights.append(load_file(folder / "model.safetensors"))
        told = ["--engine", engine, "--n", "6", "--tasks", "sudoku", "--json", str(record)]
        assert cli.main(["eval", "--model", str(folder), *told]) == 0
        answers.append([p["completion"] for p in json.loads(record.read_text())["tasks"]["sudoku"]["problems"]])
    for name, value in weights[1].items():
        assert torch.allclose(weights[0][name], value, atol=1e-6), name
    assert answers[0] == answers[1]


@pytest.mark.parametrize("length", [0, 1, 2, 63, 64, 65, 64_749_568, 2**40])
def test_values_of_a_tensor_are_read_all_over_it(length: int) -> None:
    places = spread(length).tolist()
    assert len(places) == min(64, length)
    assert places == sorted(set(places))
    if length > 1:
        assert (places[0], places[-1]) == (0, length - 1)


def test_a_fingerprint_tells_weights_apart() -> None:
    model, _ = remask.load("tiny-direct")
    before = fingerprint(model)
    assert fingerprint(remask.load("tiny-direct")[0]) == before
    with torch.no_grad():
        nn.init.normal_(next(model.parameters()))
    assert fingerprint(model) != before


def test_servers_that_are_busy_are_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A request may wait for longer than the patience, as long as servers say that they are busy; a line says so."""
    monkeypatch.setattr(http_engine, "TELL_SECONDS", 0.0)
    model, tokenizer = remask.load("tiny-direct")
    decoding = Decoding(max_new_tokens=60, steps=60, stop_early=False)
    with started(max_rows=1, max_waiting=1) as server:
        engine = HttpEngine(server.url, tokenizer, 6, patience=0.0)
        engine.update(model, 0)
        found = engine.answer(requests(tokenizer), decoding)
        assert server.service.scheduler.counted.finished == 6
    assert re.search(r"still waiting for an answer after .*: http://127.0.0.1:\d+ is busy", capsys.readouterr().err)
    expected = LocalEngine(tokenizer, 1, model=model).answer(requests(tokenizer), decoding)
    assert [one.row.token_ids for one in found] == [one.row.token_ids for one in expected]
