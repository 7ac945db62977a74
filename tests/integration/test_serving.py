"""The server as its clients see it: OpenAI's own client, and requests that are wrong."""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from fastapi.openapi.models import OpenAPI

import remask
from remask.chat_template import template_of
from remask.sampling import generate
from remask.sampling.generate import decoding_for, generate_from_ids
from remask.sampling.infill import infill
from remask.serving.run import Server

PROMPTS = ["sudoku 2031 0002 0013 3004", "countdown 4 5 9 -> 9", "countdown 3 7 2 -> 13", "sudoku 0000 1234 0000 4321"]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"max_new_tokens": 24, "steps": 9},
    {"max_new_tokens": 32, "block_length": 8, "temperature": 0.8, "seed": 4},
    {"max_new_tokens": 16, "threshold": 0.7, "temperature": 1.0, "seed": 7},
    {"max_new_tokens": 20, "reveal": "random", "temperature": 0.5, "top_k": 5, "seed": 3},
    {"max_new_tokens": 32, "block_length": 8, "cache": "dual"},
    {"max_new_tokens": 12, "guidance": 0.5, "reveal": "margin"},
]


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    """The smallest of the embedded models, served by a shorter name."""
    return remask.load("tiny-direct")


@pytest.fixture(scope="module")
def server(tiny: tuple[Any, Any]) -> Iterator[Server]:
    with remask.serve(*tiny, background=True, port=0, token_budget=4096, max_body=20_000, name="tiny") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=30) as plain:
        yield plain


def asked(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as OpenAI's client takes them: those that it does not know in `extra_body`."""
    known = {"temperature", "seed", "top_p"}
    own = {"max_tokens" if key == "max_new_tokens" else key: value for key, value in settings.items()}
    named = {key: value for key, value in own.items() if key in known | {"max_tokens"}}
    return {**named, "extra_body": {key: value for key, value in own.items() if key not in named}}


def turns(prompt: str) -> Any:
    return [{"role": "user", "content": prompt}]


def alone(tiny: tuple[Any, Any], prompt: str, settings: dict[str, Any]) -> Any:
    return generate(*tiny, [prompt], row_seeds=[0], **settings)


@pytest.mark.parametrize("settings", SETTINGS)
def test_an_answer_is_that_of_generate(settings: dict[str, Any], client: openai.OpenAI, tiny: Any) -> None:
    said = client.chat.completions.create(model="tiny", messages=turns(PROMPTS[1]), **asked(settings))
    expected = alone(tiny, PROMPTS[1], settings)
    (choice,) = said.choices
    assert choice.message.content == expected.texts[0]
    assert choice.finish_reason == ("stop" if expected.history[0].ended else "length")
    assert said.usage is not None
    assert said.usage.completion_tokens == expected.stats["tokens"]
    assert said.usage.prompt_tokens + said.usage.completion_tokens == said.usage.total_tokens
    told: Any = said.model_extra
    assert told["remask"]["decoding"] == expected.stats["decoding"]
    assert told["remask"]["forwards"] == expected.stats["forwards"]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_stream_adds_up_to_the_answer(settings: dict[str, Any], client: openai.OpenAI, tiny: Any) -> None:
    options: Any = {"include_usage": True}
    stream = client.chat.completions.create(
        model="tiny", messages=turns(PROMPTS[0]), stream=True, stream_options=options, **asked(settings)
    )
    chunks = list(stream)
    expected = alone(tiny, PROMPTS[0], settings)
    pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(pieces) == expected.texts[0]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == expected.stats["tokens"]
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] in ("stop", "length")


def test_text_comes_before_the_end_of_a_stream(client: openai.OpenAI) -> None:
    """From left to right each step settles a token."""
    stream = client.chat.completions.create(
        model="tiny",
        messages=turns(PROMPTS[0]),
        stream=True,
        max_tokens=12,
        extra_body={"steps": 12, "reveal": "left_to_right", "suppress_eos": True},
    )
    pieces = [choice.delta.content for chunk in stream for choice in chunk.choices if choice.delta.content]
    assert len(pieces) > 6


@pytest.mark.parametrize("settings", SETTINGS[:4])
def test_canvas_events_tell_every_step(settings: dict[str, Any], http: httpx2.Client, tiny: Any) -> None:
    own = {"max_tokens" if key == "max_new_tokens" else key: value for key, value in settings.items()}
    body = {"messages": turns(PROMPTS[0]), "stream": True, "stream_options": {"canvas": True}, **own}
    events = streamed(http, "/v1/chat/completions", body)
    canvases = [event["canvas"] for event in events if "canvas" in event]
    row = alone(tiny, PROMPTS[0], settings).history[0]
    assert [one["step"] for one in canvases[:-1]] == list(range(max(row.revealed_at) + 1))
    assert canvases[-1]["done"]
    assert canvases[-1]["token_ids"] == row.token_ids
    assert canvases[-1]["written_at"] == row.revealed_at
    for one in canvases[:-1]:
        new = [place for place, step in enumerate(row.revealed_at) if step == one["step"]]
        assert one["new"] == new
        assert [text is None for text in one["tokens"]] == [step > one["step"] or step < 0 for step in row.revealed_at]


def streamed(http: httpx2.Client, path: str, body: dict[str, Any]) -> list[Any]:
    """The events of a stream, which ends with [DONE]."""
    with http.stream("POST", path, json=body) as response:
        assert response.status_code == 200
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_sixteen_clients_at_once_each_get_their_own_answer(server: Server, tiny: Any) -> None:
    jobs = [(PROMPTS[n % 4], {**SETTINGS[n % len(SETTINGS)], "seed": n}) for n in range(16)]

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            async def one(prompt: str, settings: dict[str, Any]) -> str:
                said = await client.chat.completions.create(model="tiny", messages=turns(prompt), **asked(settings))
                return said.choices[0].message.content or ""

            return await asyncio.gather(*(one(*job) for job in jobs))

    assert asyncio.run(ask()) == [alone(tiny, *job).texts[0] for job in jobs]
    assert server.service.scheduler.counted.row_steps > server.service.scheduler.counted.forwards


async def _streams(server: Server, settings: dict[str, Any]) -> str:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(
            model="tiny", messages=turns(PROMPTS[2]), stream=True, **asked(settings)
        )
        return "".join([choice.delta.content or "" async for chunk in stream for choice in chunk.choices])


def test_the_asynchronous_client_reads_streams(server: Server, tiny: Any) -> None:
    assert asyncio.run(_streams(server, SETTINGS[2])) == alone(tiny, PROMPTS[2], SETTINGS[2]).texts[0]


def test_several_choices_are_rows_of_one_seed(client: openai.OpenAI, tiny: Any) -> None:
    settings = {"max_new_tokens": 16, "temperature": 1.0, "seed": 5}
    said = client.chat.completions.create(model="tiny", messages=turns(PROMPTS[0]), n=3, **asked(settings))
    expected = generate(*tiny, [PROMPTS[0]] * 3, **settings)
    assert [choice.message.content for choice in said.choices] == expected.texts
    assert [choice.index for choice in said.choices] == [0, 1, 2]
    assert said.usage is not None
    assert said.usage.prompt_tokens == len(ids_of(tiny, PROMPTS[0]))


def ids_of(tiny: Any, prompt: str) -> list[int]:
    from remask.sampling.generate import encode_prompts

    return encode_prompts(*tiny, [prompt], decoding_for(tiny[0]))[0]


def test_completions_go_on_from_text_or_token_ids(client: openai.OpenAI, tiny: Any) -> None:
    prompts = [ids_of(tiny, prompt) for prompt in PROMPTS[:2]]
    decoding = decoding_for(tiny[0], max_new_tokens=16)
    expected = generate_from_ids(*tiny, prompts, decoding, row_seeds=[0, 0])
    said = client.completions.create(model="tiny", prompt=prompts, max_tokens=16)
    assert [choice.text for choice in said.choices] == expected.texts
    template = template_of(tiny[1])
    plain = [*template.before, *template.ids("sudoku 20")]
    again = client.completions.create(model="tiny", prompt="sudoku 20", max_tokens=16)
    assert again.choices[0].text == generate_from_ids(*tiny, [plain], decoding, row_seeds=[0]).texts[0]


def test_row_seed_names_a_row_of_a_batch(http: httpx2.Client, tiny: Any) -> None:
    prompt = ids_of(tiny, PROMPTS[0])
    decoding = decoding_for(tiny[0], max_new_tokens=16, temperature=1.0, seed=2)
    expected = generate_from_ids(*tiny, [prompt], decoding, row_seeds=[77]).texts[0]
    body = {"prompt": prompt, "max_tokens": 16, "temperature": 1.0, "seed": 2, "row_seed": 77}
    assert http.post("/v1/completions", json=body).json()["choices"][0]["text"] == expected


def test_logprobs_are_of_the_tokens_when_they_were_written(client: openai.OpenAI, tiny: Any) -> None:
    said = client.chat.completions.create(model="tiny", messages=turns(PROMPTS[1]), logprobs=True, max_tokens=16)
    row = alone(tiny, PROMPTS[1], {"max_new_tokens": 16}).history[0]
    assert said.choices[0].logprobs is not None
    content = said.choices[0].logprobs.content or []
    assert "".join(one.token for one in content) == said.choices[0].message.content
    for one, p in zip(content, row.confidence, strict=False):
        assert math.exp(one.logprob) == pytest.approx(p, abs=1e-6)
        assert one.bytes == list(one.token.encode())


def test_completions_have_logprobs_of_their_own_shape(client: openai.OpenAI) -> None:
    said = client.completions.create(model="tiny", prompt="countdown 4 5 9 -> 9", max_tokens=8, logprobs=1)
    found = said.choices[0].logprobs
    assert found is not None
    assert len(found.tokens or []) == len(found.token_logprobs or []) == len(found.text_offset or [])
    assert (found.text_offset or [0])[0] == 0


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_before_a_text_to_stop_at(stream: bool, client: openai.OpenAI, tiny: Any) -> None:
    whole = alone(tiny, PROMPTS[1], {}).texts[0]
    stop = whole[6:8]
    said: Any = client.chat.completions.create(
        model="tiny", messages=turns(PROMPTS[1]), stop=["never there", stop], stream=stream
    )
    if stream:
        choices = [choice for chunk in said for choice in chunk.choices]
        text = "".join(choice.delta.content or "" for choice in choices)
    else:
        choices, text = said.choices, said.choices[0].message.content
    assert text == whole[: whole.index(stop)]
    assert choices[-1].finish_reason == "stop"


def test_what_stands_before_a_suffix_is_written(client: openai.OpenAI, http: httpx2.Client, tiny: Any) -> None:
    said = client.completions.create(model="tiny", prompt="countdown 4 5 9 -> 9\n", suffix="<answer>", max_tokens=6)
    assert said.choices[0].text
    missing = http.post("/v1/completions", json={"prompt": "x", "suffix": "y"})
    assert missing.status_code == 400
    assert "max_tokens" in missing.json()["error"]["message"]


def test_gaps_are_filled_as_infill_fills_them(http: httpx2.Client, tiny: Any) -> None:
    text = "2<|mask|>31 <|mask|><|mask|>02"
    expected = infill(*tiny, text, prompt=PROMPTS[0])
    said = http.post("/v1/infill", json={"text": text, "prompt": PROMPTS[0]}).json()
    (choice,) = said["choices"]
    assert choice["text"] == expected["text"]
    assert choice["token_ids"] == expected["token_ids"]
    assert choice["written"] == expected["written"]


def test_gaps_may_be_watched(http: httpx2.Client) -> None:
    body = {"text": "2<|mask|>31 <|mask|>", "stream": True, "stream_options": {"canvas": True}}
    canvases = [event["canvas"] for event in streamed(http, "/v1/infill", body) if "canvas" in event]
    assert canvases[0]["tokens"].count(None) == 1
    assert canvases[-1]["done"]


def test_a_template_s_gaps_take_tokens_of_their_kind(client: openai.OpenAI) -> None:
    form: Any = {"type": "template", "template": "b{{digits:1}}={{digits:1}} {{letters:3}}, {{any:2}}!"}
    for seed in range(4):
        said = client.chat.completions.create(
            model="tiny", messages=turns(PROMPTS[0]), temperature=2.0, seed=seed, extra_body={"response_format": form}
        )
        text = said.choices[0].message.content or ""
        assert re.fullmatch(r"b\d=\d [^\W\d_]{3}, .*!", text, re.DOTALL), text


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{colour:3}}", "gap of colour"),
        ("no gap", "no gap"),
        ("{{digits:0}}", "gap of 0"),
        ("{{digits:9999}}", "9999"),
    ],
)
def test_a_template_that_cannot_be_read_is_refused(template: str, words: str, http: httpx2.Client) -> None:
    body = {"messages": turns("x"), "response_format": {"type": "template", "template": template}}
    response = http.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


@pytest.mark.parametrize("name", ["tiny-block", "tiny-direct"])
def test_other_models_answer_as_generate_does(name: str) -> None:
    """tiny-block writes block by block with its exact cache; rows of different lengths join at different times."""
    model, tokenizer = remask.load(name)
    settings = [{"max_new_tokens": n, "temperature": t, "seed": n} for n in (8, 13, 20, 6) for t in (0.0, 0.9)]
    with remask.serve(model, tokenizer, background=True, port=0, token_budget=4096) as server:
        with httpx2.Client(base_url=f"{server.url}/v1", timeout=60) as http, ThreadPoolExecutor(8) as threads:

            def one(number: int) -> str:
                own = {**settings[number]}
                body = {"messages": turns(PROMPTS[number % 4]), "max_tokens": own.pop("max_new_tokens"), **own}
                return str(http.post("/chat/completions", json=body).json()["choices"][0]["message"]["content"])

            found = list(threads.map(one, range(8)))
        counted = server.service.scheduler.counted
        assert counted.row_steps > counted.forwards
    for number, text in enumerate(found):
        assert text == generate(model, tokenizer, [PROMPTS[number % 4]], row_seeds=[0], **settings[number]).texts[0]


def blocks_of(page: str, kind: str) -> list[str]:
    """The Python blocks of a page of the documentation, or its commands that begin with a word."""
    text = (Path(__file__).parents[2] / "docs" / page).read_text()
    if kind == "python":
        return re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    commands = re.findall(r"^    (\S(?:[^\n]|(?<=\\)\n)*)", text, re.MULTILINE)
    return [command for command in commands if command.startswith(kind)]


@pytest.mark.parametrize("number", range(3))
@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_the_page_s_curl_commands_are_answered(number: int, server: Server) -> None:
    commands = blocks_of("serving.md", "curl")
    assert len(commands) == 3
    command = commands[number].replace("http://127.0.0.1:8000", server.url)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert '"choices"' in done.stdout
    assert "error" not in done.stdout


def test_the_page_s_python_runs(server: Server) -> None:
    blocks = blocks_of("serving.md", "python")
    assert len(blocks) == 2
    for block in blocks:
        said: list[Any] = []
        exec(block.replace("http://127.0.0.1:8000", server.url), {"print": said.append})
        assert said


WRONG: list[tuple[str, dict[str, Any], str | None, str]] = [
    ("chat", {"messages": turns("x"), "stepz": 3}, "stepz", "no such field"),
    ("chat", {"messages": turns("x"), "steps": "8"}, "steps", "integer"),
    ("chat", {"messages": turns("x"), "temperature": -1}, "temperature", "temperature = -1"),
    ("chat", {"messages": turns("x"), "top_p": 2}, "top_p", "top_p = 2"),
    ("chat", {"messages": turns("x"), "max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ("chat", {"messages": turns("x"), "max_tokens": 10**9}, "max_tokens", "exceed"),
    ("chat", {"messages": turns("x"), "max_tokens": 4, "max_completion_tokens": 5}, None, "differ"),
    ("chat", {"messages": turns("x"), "n": 0}, "n", "greater than or equal to 1"),
    ("chat", {"messages": turns("x"), "rule": "evil.py:Rule"}, "rule", "no such field"),
    ("chat", {"messages": turns("x"), "threshold": 0.5, "reveal": "random"}, "reveal", "no meaning"),
    ("chat", {"messages": turns("x"), "cache": "exact"}, "cache", "full attention"),
    ("chat", {"messages": turns("x"), "cache": "dual", "guidance": 1.0}, "guidance", "do not go together"),
    ("chat", {"messages": turns("x"), "max_tokens": 8, "block_length": 9}, "block_length", "longer than"),
    ("chat", {"messages": turns("x"), "frequency_penalty": 0.5}, "frequency_penalty", "less than or equal to 0"),
    ("chat", {"messages": turns("x"), "logit_bias": {"5": 1}}, "logit_bias", "at most 0"),
    ("chat", {"messages": turns("x"), "tools": [{"type": "function"}]}, "tools", "at most 0"),
    ("chat", {"messages": turns("x"), "top_logprobs": 5}, "top_logprobs", "should be 0"),
    ("chat", {"messages": turns("x"), "response_format": {"type": "json_object"}}, "response_format", "by a template"),
    ("chat", {"messages": turns("x"), "stop": [""]}, "stop", "empty"),
    ("chat", {"messages": turns("x"), "stream_options": {"canvas": True}}, None, "without stream"),
    ("chat", {"messages": []}, "messages", "at least 1"),
    ("chat", {"messages": [{"role": "pirate", "content": "x"}]}, "messages.0.role", "should be"),
    ("chat", {"messages": turns("x" * 5000)}, "max_tokens", "exceed"),
    ("chat", {}, "messages", "missing"),
    ("completions", {"prompt": []}, "prompt", "empty"),
    ("completions", {"prompt": [10**9]}, "prompt", "vocabulary"),
    ("completions", {"prompt": [-1]}, "prompt", "vocabulary"),
    ("infill", {"text": "no gap"}, None, "no mask"),
    ("infill", {"text": "a<|mask|>", "block_length": 2}, "block_length", "one block"),
    ("infill", {"text": "a<|mask|>", "stop": "b"}, "stop", "written to its end"),
    ("infill", {"text": "a<|mask|>", "checkpoint_defaults": False}, "checkpoint_defaults", "settings of its own"),
    ("completions", {"prompt": "x", "suffix": "y", "max_tokens": 2, "stop": ["b"]}, "stop", "written to its end"),
    ("completions", {"prompt": [[5]] * 300, "max_tokens": 2}, "n", "300 answers are asked for"),
]


@pytest.mark.parametrize(("route", "body", "param", "words"), WRONG)
def test_what_is_wrong_is_named(
    route: str, body: dict[str, Any], param: str | None, words: str, http: httpx2.Client
) -> None:
    path = "/v1/chat/completions" if route == "chat" else f"/v1/{route}"
    response = http.post(path, json=body)
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert words in error["message"]
    assert error["param"] == param


def test_openai_s_client_raises_its_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="stepz"):
        client.chat.completions.create(model="tiny", messages=turns("x"), extra_body={"stepz": 1})
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-9'"):
        client.chat.completions.create(model="gpt-9", messages=turns("x"))


@pytest.mark.parametrize(
    ("content", "status"), [(b"{", 400), (b"[1]", 400), (b"\xff\xfe", 400), (b"", 400), (b"x" * 30_000, 413)]
)
def test_a_body_that_cannot_be_read_is_an_error(content: bytes, status: int, http: httpx2.Client) -> None:
    response = http.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_a_long_body_is_refused_though_its_length_is_not_announced(http: httpx2.Client) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(30):
            yield b" " * 1000

    response = http.post("/v1/chat/completions", content=parts())
    assert response.status_code == 413


def test_another_host_s_name_is_refused(http: httpx2.Client) -> None:
    assert http.get("/health", headers={"Host": "evil.example"}).status_code == 421
    assert http.get("/health", headers={"Host": "localhost:1"}).status_code == 200


def test_no_other_page_may_ask(http: httpx2.Client) -> None:
    response = http.options(
        "/v1/chat/completions", headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    )
    assert "access-control-allow-origin" not in response.headers


def test_every_answer_has_safe_headers(http: httpx2.Client) -> None:
    for path in ("/", "/v1/models", "/nowhere"):
        headers = http.get(path).headers
        assert "script-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_models_say_what_a_client_needs(client: openai.OpenAI, tiny: Any) -> None:
    (model,) = client.models.list().data
    assert model.id == "tiny"
    told: Any = model.model_extra
    assert told["decoding"] == decoding_for(tiny[0]).described()
    assert told["mask"] == "<|mask|>"
    assert client.models.retrieve("tiny").id == "tiny"


def test_health_and_figures(http: httpx2.Client) -> None:
    assert http.get("/health").json()["status"] == "ok"
    http.post("/v1/chat/completions", json={"messages": turns("x"), "max_tokens": 4})
    while "remask_rows_at_work 0.0" not in (text := http.get("/metrics").text):
        time.sleep(0.01)  # the answer may be here before its row's place is free
    assert 'remask_requests_total{route="/v1/chat/completions",status="200"}' in text


def test_the_description_of_the_server_is_openapi(http: httpx2.Client) -> None:
    described = http.get("/openapi.json").json()
    OpenAPI.model_validate(described)
    chat = described["components"]["schemas"]["ChatRequest"]["properties"]
    assert "edit_threshold" in chat
    assert "rule" not in chat
    assert "Reveal every proposal" in chat["threshold"]["description"]


def test_settings_of_a_served_answer_can_be_given_to_generate(http: httpx2.Client, tiny: Any) -> None:
    said = http.post("/v1/chat/completions", json={"messages": turns(PROMPTS[1]), "max_tokens": 12}).json()
    decoding = replace(decoding_for(tiny[0], max_new_tokens=12))
    assert said["remask"]["decoding"] == decoding.described()
