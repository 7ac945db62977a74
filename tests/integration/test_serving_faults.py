"""What goes wrong around a server: clients that leave or stall, too many of them, broken weights, signals, nonsense."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from safetensors.torch import save_file

import remask
from remask import cli
from remask.models.fingerprint import named
from remask.sampling import generate
from remask.serving import scheduler as scheduling
from remask.serving.guards import Guarded, Guards
from remask.serving.run import Server
from started import Started

CHAT = "/v1/chat/completions"
SLOW = {"max_tokens": 400, "steps": 400, "stop_early": False}
ADMIN = {"Authorization": "Bearer weights"}


def model(name: str = "tiny-direct") -> tuple[Any, Any]:
    """The smallest of the embedded models, new for each server as some tests change its weights."""
    return remask.load(name)


def body(text: str = "sudoku 2031 0002 0013 3004", **settings: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **settings}


def started(of: str = "tiny-direct", **options: Any) -> Server:
    return remask.serve(*model(of), background=True, port=0, **{"token_budget": 4096, "name": "tiny", **options})


@pytest.fixture
def serving() -> Iterator[Callable[..., tuple[Server, httpx2.Client]]]:
    """Starts servers; each ends with the test."""
    running: list[tuple[Server, httpx2.Client]] = []

    def start(**options: Any) -> tuple[Server, httpx2.Client]:
        server = started(**options)
        running.append((server, httpx2.Client(base_url=server.url, timeout=60)))
        return running[-1]

    yield start
    for server, client in running:
        client.close()
        server.stop()


def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def works(client: httpx2.Client, of: str = "tiny-direct") -> None:
    """The next request is answered, and rightly."""
    said = client.post(CHAT, json=body(max_tokens=8)).json()
    expected = generate(*model(of), [body()["messages"][0]["content"]], max_new_tokens=8).texts[0]
    assert said["choices"][0]["message"]["content"] == expected


def fail_once(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    """The third step's forward raises."""
    plain, calls = scheduling.step_together, [0]

    def failing(model: Any, writings: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise RuntimeError(said)
        return plain(model, writings)

    monkeypatch.setattr(scheduling, "step_together", failing)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_row_within_a_step(stream: bool, serving: Any) -> None:
    server, client = serving(of="tiny")
    scheduler = server.service.scheduler
    gone = httpx2.Client(base_url=server.url, timeout=0.3)
    if stream:
        with gone.stream("POST", CHAT, json=body(stream=True, **SLOW)) as response:
            lines = response.iter_lines()  # is kept: where it is let go of, the connection is closed
            assert next(lines).startswith("data: ")
            until(lambda: scheduler.at_work == 1)
    else:
        with pytest.raises(httpx2.ReadTimeout):
            gone.post(CHAT, json=body(**SLOW))
    gone.close()
    until(lambda: scheduler.counted.cancelled == 1)
    steps = scheduler.counted.steps
    assert steps < 400
    until(lambda: scheduler.at_work == 0)
    assert scheduler.counted.finished == 0
    works(client, of="tiny")


def test_too_many_requests_are_told_when_to_come_again(serving: Any) -> None:
    _, client = serving(max_rows=1, max_waiting=2)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda n: client.post(CHAT, json=body(max_tokens=60, steps=60)), range(8)))
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}
    refused = answers[statuses.index(429)]
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["type"] == "rate_limit_error"
    works(client)


def test_an_answer_that_takes_too_long_is_given_up(serving: Any) -> None:
    server, client = serving(timeout=0.2)
    response = client.post(CHAT, json=body(**SLOW))
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "timeout"
    until(lambda: server.service.scheduler.at_work == 0)
    works(client)


def test_a_forward_that_fails_fails_its_requests_alone(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, client = serving()
    fail_once(monkeypatch, "secret/path/of/the/machine")
    response = client.post(CHAT, json=body(max_tokens=8))
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    works(client)


def test_a_failure_within_a_stream_is_its_last_event(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, client = serving()
    fail_once(monkeypatch, "inside")
    lines = client.post(CHAT, json=body(max_tokens=8, stream=True)).text.splitlines()
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert json.loads(events[-1])["error"]["code"] == "internal"
    assert "[DONE]" not in events
    works(client)


def test_weights_that_are_not_finite_are_an_error_until_whole_ones_come(serving: Any, tmp_path: Path) -> None:
    server, client = serving(admin_key="weights")
    good = {name: tensor.clone() for name, tensor in named(server.service.served.model).items()}
    bad = {name: torch.full_like(tensor, torch.nan) for name, tensor in good.items()}
    for number, tensors in ((1, bad), (2, good)):
        path = tmp_path / f"{number}.safetensors"
        save_file(tensors, path)
        told = client.post("/admin/weights", json={"path": str(path), "version": number}, headers=ADMIN)
        assert told.json() == {"model": "tiny", "version": number}
        if number == 1:
            response = client.post(CHAT, json=body())
            assert response.status_code == 500
            assert response.json()["error"]["message"] == "the model's predictions are not finite"
    works(client)
    assert client.post(CHAT, json=body(max_tokens=4)).json()["remask"]["version"] == 2


def test_weights_change_between_answers_and_never_within_one(serving: Any) -> None:
    server, client = serving(admin_key="weights")
    plain = {name: tensor.clone() for name, tensor in named(server.service.served.model).items()}
    other = {name: -tensor for name, tensor in plain.items()}
    expected = [client.post(CHAT, json=body(max_tokens=16)).json()["choices"][0]["message"]["content"]]
    scheduler = server.service.scheduler
    with ThreadPoolExecutor(9) as threads:
        asked = []
        for number in range(6):
            asked += [threads.submit(client.post, CHAT, json=body(max_tokens=16)) for _ in range(4)]
            weights, version = (plain, other)[number % 2], number + 1
            change = scheduler.change(lambda w=weights, v=version: server.service.served.load_weights(w, v))
            change.result(timeout=30)
        answers = [one.result().json() for one in asked]
    expected.append(client.post(CHAT, json=body(max_tokens=16)).json()["choices"][0]["message"]["content"])
    assert expected[0] != expected[1]
    for answer in answers:
        version = answer["remask"]["version"]
        of_plain = version == 0 or version % 2 == 1
        assert answer["choices"][0]["message"]["content"] == expected[0 if of_plain else 1], version


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ({"path": "/no/such/file", "version": 1}, "nothing at this path"),
        ({"path": "pyproject.toml", "version": 1}, "cannot be read"),
        ({"path": "/no/such/file"}, "version: is missing"),
        ({"path": "docs", "version": 1, "adapter": "a"}, "no adapter that can be read"),
        ({"paths": "x", "version": 1}, "no such field"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(sent: dict[str, Any], words: str, serving: Any) -> None:
    server, client = serving(admin_key="weights")
    response = client.post("/admin/weights", json=sent, headers=ADMIN)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]
    assert server.service.served.versions == {"tiny": 0}
    works(client)


def test_weights_are_sent_by_who_has_the_key_and_only_where_that_is_asked_for(serving: Any) -> None:
    _, closed = serving()
    assert closed.post("/admin/weights", json={}, headers=ADMIN).status_code == 401
    _, opened = serving(admin_key="weights")
    assert opened.post("/admin/weights", json={}).status_code == 401
    assert opened.post("/admin/weights", json={}, headers={"Authorization": "Bearer weight"}).status_code == 401


def test_a_key_is_needed_for_answers_and_figures_but_not_for_the_page(serving: Any) -> None:
    _, client = serving(api_key="sesame")
    assert client.post(CHAT, json=body()).status_code == 401
    assert client.get("/metrics").status_code == 401
    assert client.get("/").status_code == client.get("/health").status_code == 200
    assert client.get("/v1/models", headers={"Authorization": "Bearer sesame"}).status_code == 200


def test_each_row_has_forwards_of_its_own_where_that_is_asked_for(serving: Any) -> None:
    server, client = serving(deterministic=True)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: client.post(CHAT, json=body(max_tokens=20, seed=n)), range(4)))
    counted = server.service.scheduler.counted
    assert counted.forwards == counted.row_steps


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    """A reader gets a quarter of a second."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive())["type"] == "http.request" and message.get("more_body"):
            pass

    async def never() -> Any:
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    asyncio.run(Guarded(app, Guards(seconds=0.25))(scope, never, send))
    assert sent[0]["status"] == 408


VALUES = [None, True, -1, 0, 1, 3.5, 1e308, 10**30, "", "x", "\x00", "é" * 50, [], [1], {}, {"a": 1}, [[]], "nan"]
NAMES = ["model", "max_tokens", "steps", "temperature", "top_p", "seed", "stop", "n", "stream", "threshold", "zz"]
NAMES += ["suffix", "reveal", "cache", "logprobs", "stream_options", "block_length", "row_seed", "messages", "prompt"]
RIGHT = {
    CHAT: {**body(), "max_tokens": 4},
    "/v1/completions": {"prompt": "x", "max_tokens": 4},
    "/v1/infill": {"text": "a<|mask|>"},
}


def nonsense(draw: random.Random) -> tuple[str, bytes]:
    """A request that is wrong in some way, or by chance is not."""
    route = draw.choice([*RIGHT, *RIGHT, "/v1/models/x", "/nowhere", "/admin/weights"])
    if draw.random() < 0.15:
        return route, draw.randbytes(draw.randrange(200))
    wrong = {draw.choice(NAMES): draw.choice(VALUES) for _ in range(draw.randrange(4))}
    text = json.dumps({**RIGHT.get(route, {}), **wrong} if draw.random() < 0.9 else wrong)
    return route, (text if draw.random() < 0.9 else text[: draw.randrange(len(text) + 1)]).encode()


def test_a_thousand_senseless_requests_leave_the_server_as_it_was(serving: Any) -> None:
    server, client = serving()
    draw = random.Random(0)
    answered = {}
    for _ in range(1000):
        route, content = nonsense(draw)
        response = client.post(route, content=content, headers={"Content-Type": "application/json"})
        assert response.status_code in (200, 400, 401, 404, 405), (route, content, response.text)
        assert "Traceback" not in response.text
        if response.status_code != 200:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        answered[response.status_code] = answered.get(response.status_code, 0) + 1
    assert answered[400] > 300
    assert answered[200] > 20
    scheduler = server.service.scheduler
    until(lambda: scheduler.at_work == scheduler.waiting == 0)
    assert scheduler.counted.failed == 0
    works(client)


def health(url: str) -> dict[str, Any]:
    """What the server says of itself; nothing where it does not answer yet."""
    try:
        return dict(httpx2.get(url + "/health").json())
    except httpx2.TransportError:
        return {}


def test_a_signal_ends_the_server_after_the_answers_that_had_begun() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    url = f"http://127.0.0.1:{port}"
    process = Started("serve", "--port", port, "--token-budget", "4096", "--log", "json")
    until(lambda: health(url).get("status") == "ok")
    found: list[httpx2.Response] = []
    asked = body(max_tokens=100, steps=100)
    asking = [
        threading.Thread(target=lambda: found.append(httpx2.post(url + CHAT, json=asked, timeout=60))) for _ in range(4)
    ]
    for thread in asking:
        thread.start()
    until(lambda: health(url)["at_work"] == 4)
    process.terminate()
    for thread in asking:
        thread.join()
    out, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert [response.status_code for response in found] == [200] * 4
    assert len({response.json()["choices"][0]["message"]["content"] for response in found}) == 1
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert [line["status"] for line in lines if line["event"] == "request"] == [200] * 4
    assert [line["answers_to_finish"] for line in lines if line["event"] == "stopping"] == [4]
    assert out.splitlines()[0].startswith(url)
    assert "models: tiny" in out
    assert "at once: 4,096 tokens" in out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--port", "99999"], "port = 99999; give a number below 65536"),
        (["--host", "0.0.0.0", "--admin-key", "k"], "other machines could send weights; add --admin-remote"),
        (["--admin-remote"], "--admin-remote without --admin-key"),
        (["--api-key", "@/no/such/file"], "the key cannot be read"),
        (["--api-key", ""], "--api-key is empty"),
        (["--adapter", "noequals"], "write NAME=FOLDER"),
        (["--adapter", "a=/no/such/folder"], "no adapter that can be read"),
        (["--max-rows", "0"], "max_rows = 0; give 1 or more"),
        (["--model", "/no/such/model"], "no such model folder"),
    ],
)
def test_options_that_cannot_be_are_refused(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", *flags]) == 2
    assert words in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", "--port", str(port), "--token-budget", "4096"]) == 2
    assert f"cannot listen at 127.0.0.1:{port}" in capsys.readouterr().err


def raw(server: Server, content: bytes) -> socket.socket:
    """A connection that sends this and nothing more."""
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    connection = socket.create_connection((host, int(port)))
    connection.sendall(content)
    return connection


def test_connections_that_stall_keep_nobody_waiting(serving: Any) -> None:
    """Fifty clients send half a header, and fifty half a body."""
    server, client = serving()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    stalled = [raw(server, head) for _ in range(50)]
    stalled += [raw(server, head + b"Content-Length: 100\r\n\r\n{") for _ in range(50)]
    works(client)
    assert server.service.scheduler.at_work == server.service.scheduler.waiting == 0
    for connection in stalled:
        connection.close()
    works(client)


def test_a_stream_that_nobody_reads_is_written_all_the_same(serving: Any) -> None:
    """Its row leaves the scheduler; what is not read waits in the server, within bounds."""
    server, client = serving()
    text = json.dumps(body(stream=True, stream_options={"canvas": True}, max_tokens=300, steps=150, stop_early=False))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection = raw(server, f"{head}Content-Length: {len(text)}\r\n\r\n{text}".encode())
    until(lambda: server.service.scheduler.counted.finished == 1)
    works(client)
    assert server.service.scheduler.counted.cancelled == 0
    connection.close()


def test_in_bfloat16_a_row_with_forwards_of_its_own_is_that_of_generate() -> None:
    """To the last bit, whatever is asked beside it."""
    served, tokenizer = remask.load("tiny-direct", dtype="bfloat16")
    with (
        remask.serve(served, tokenizer, background=True, port=0, token_budget=4096, deterministic=True) as server,
        httpx2.Client(base_url=server.url, timeout=60) as client,
        ThreadPoolExecutor(6) as threads,
    ):
        asked = [body(max_tokens=24, temperature=0.8, seed=seed) for seed in range(6)]
        said = list(threads.map(lambda one: client.post(CHAT, json=one).json(), asked))
    for seed, answer in enumerate(said):
        prompt, settings = body()["messages"][0]["content"], {"max_new_tokens": 24, "temperature": 0.8, "seed": seed}
        assert answer["choices"][0]["message"]["content"] == generate(served, tokenizer, [prompt], **settings).texts[0]
