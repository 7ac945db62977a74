"""What a server adds to its model: one client against `remask.generate`, eight clients against one, and dlmserve.

All answers are of the same random weights: 128 tokens after a prompt of 96, in blocks of 32, eight tokens a step, in
bfloat16. Clients keep their connections. Another server is measured in turns with this one, on the same model object
(dlmserve's engine, scheduler and application as they are released: `pip install --no-deps dlmserve==0.1.1`).

    python benchmarks/serve_speed.py [--rounds 3]
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx2
import torch
import uvicorn
from measure import Figure, in_turns, ratio, release
from shapes import Shape, build, fitting, memory_of, print_figures
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

import remask
from remask.diffusion.attention import BlockCausal
from remask.sampling import Decoding
from remask.sampling.generate import generate_from_ids

PROMPT, CANVAS, BLOCK, STEPS, CLIENTS = 96, 128, 32, 16, 8
PEER = "dlmserve 0.1.1"
DECODING = Decoding(max_new_tokens=CANVAS, steps=STEPS, block_length=BLOCK, stop_early=False)


def measure(rounds: int, shape: Shape, device: str) -> list[Figure]:
    shape = fitting(shape, memory_of(device))
    model = build(shape, device=device).eval()
    tokenizer = words(shape.vocabulary)
    settings: Any = {"host": "127.0.0.1", "port": 0, "background": True, "name": "m", "token_budget": 65536}
    with remask.serve(model, tokenizer, **settings) as server, dlmserve(model, tokenizer) as peer:
        figures = [*against_generate(rounds, shape, server.url, model, tokenizer)]
        figures += clients(rounds, shape, server.url, peer, model)
        figures += latency(rounds, shape, server.url)
    del model
    release()
    return [*figures, *by_blocks(rounds, shape, device, tokenizer)]


def by_blocks(rounds: int, shape: Shape, device: str, tokenizer: Any) -> Iterator[Figure]:
    """A block model with its exact cache: a step reads a block, which leaves a machine room for other clients."""
    model = build(shape, device=device).eval()
    model.attention = BlockCausal(BLOCK)
    part = f"serving a block model with its cache: {shape.name}, blocks of {BLOCK}"
    settings: Any = {"port": 0, "background": True, "name": "m", "token_budget": 65536}
    with remask.serve(model, tokenizer, **settings) as server, httpx2.Client(base_url=server.url, timeout=None) as http:

        def together(count: int) -> None:
            with ThreadPoolExecutor(count) as threads:
                list(threads.map(lambda client: ask(http, client, shape), range(count)))

        times = in_turns({"one": lambda: together(1), "eight": lambda: together(CLIENTS)}, rounds=rounds)
    eight = [seconds / CLIENTS for seconds in times["eight"]]
    tokens = CLIENTS * CANVAS / statistics.median(times["eight"])
    what = f"tokens a second, {CLIENTS} clients against one"
    yield Figure(part, what, *ratio(times["one"], eight), bar=2.5, detail=f"{tokens:.0f} tokens/s")


def words(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer of so many words, w0, w1, …, and a chat template that adds nothing."""
    plain = Tokenizer(WordLevel({f"w{number}": number for number in range(vocabulary)}, unk_token="w0"))
    plain.pre_tokenizer = WhitespaceSplit()
    special = {"eos_token": f"w{vocabulary - 3}", "pad_token": f"w{vocabulary - 2}", "mask_token": f"w{vocabulary - 1}"}
    made = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="w0", padding_side="left", **special)
    made.chat_template = "{% for turn in messages %}{{ turn['content'] }} {% endfor %}"
    return made


def prompt_of(client: int, shape: Shape) -> list[int]:
    generator = torch.Generator().manual_seed(client)
    return torch.randint(1, shape.vocabulary - 3, (PROMPT,), generator=generator).tolist()


def ask(http: httpx2.Client, client: int, shape: Shape) -> list[int]:
    body = {"prompt": prompt_of(client, shape), "max_tokens": CANVAS, "steps": STEPS, "block_length": BLOCK}
    said = http.post("/v1/completions", json={**body, "stop_early": False, "canvas": True}).json()
    found: list[int] = said["choices"][0]["canvas"]["token_ids"]
    return found


def against_generate(rounds: int, shape: Shape, url: str, model: Any, tokenizer: Any) -> Iterator[Figure]:
    part = f"serving, one client: {shape.name}, {CANVAS} tokens in {STEPS} steps"
    written: dict[str, list[int]] = {}

    def alone() -> None:
        generated = generate_from_ids(model, tokenizer, [prompt_of(0, shape)], DECODING, row_seeds=[0])
        written["generate"] = generated.token_ids[0]

    with httpx2.Client(base_url=url, timeout=None) as http:
        ways = {"generate": alone, "server": lambda: written.update(server=ask(http, 0, shape))}
        times = in_turns(ways, rounds=rounds)
    yield Figure(part, "tokens a second, against remask.generate", *ratio(times["generate"], times["server"]), bar=0.95)
    added = sorted(1000 * (b - a) / STEPS for a, b in zip(times["generate"], times["server"], strict=True))
    yield Figure(
        part,
        "added to a step",
        statistics.median(added),
        added[0],
        added[-1],
        bar=2.0,
        more_is_better=False,
        unit="ms",
    )
    same = float(written["generate"] == written["server"])
    yield Figure(part, "the same tokens", same, bar=1.0, unit="%")


def clients(rounds: int, shape: Shape, url: str, peer: str | None, model: Any) -> Iterator[Figure]:
    """Tokens a second of one client and of eight, of both servers in turns."""
    part = f"serving, {CLIENTS} clients: {shape.name}"
    with httpx2.Client(base_url=url, timeout=None) as ours, httpx2.Client(base_url=peer or url, timeout=None) as theirs:

        def together(http: httpx2.Client, way: Any, count: int) -> None:
            with ThreadPoolExecutor(count) as threads:
                list(threads.map(lambda client: way(http, client, shape), range(count)))

        ways = {
            "one": lambda: together(ours, ask, 1),
            "eight": lambda: together(ours, ask, CLIENTS),
        }
        if peer is not None:
            ways["one, peer"] = lambda: together(theirs, ask_dlmserve, 1)
            ways["eight, peer"] = lambda: together(theirs, ask_dlmserve, CLIENTS)
        times = in_turns(ways, rounds=rounds, warm_up=0)
    eight = [seconds / CLIENTS for seconds in times["eight"]]
    yield Figure(part, "tokens a second, against one client", *ratio(times["one"], eight), bar=2.5)
    if peer is not None:
        yield Figure(part, f"one client, against {PEER}", *ratio(times["one, peer"], times["one"]), bar=1.0)
        yield Figure(part, f"{CLIENTS} clients, against {PEER}", *ratio(times["eight, peer"], times["eight"]), bar=1.0)
    yield from share_of_peak(part, shape, model, times)


def share_of_peak(part: str, shape: Shape, model: Any, times: dict[str, list[float]]) -> Iterator[Figure]:
    """What part of the machine's own speed of matrix products is used, of products that a forward is made of."""
    peak = peak_of(shape, model.device.type)
    body = sum(p.numel() for name, p in model.named_parameters() if "embed" not in name and "lm_head" not in name)
    head = shape.vocabulary * shape.width
    each = CANVAS // STEPS
    asked = sum(range(each, BLOCK + 1, each)) * (CANVAS // BLOCK)
    operations = 2 * (body * (PROMPT + CANVAS) * STEPS + head * asked)
    for name, rows in (("one", 1), ("eight", CLIENTS)):
        seconds = statistics.median(times[name])
        used = rows * operations / seconds / peak
        tokens = rows * CANVAS / seconds
        what = f"share of the matmul peak, {rows} client{'s' * (rows > 1)}"
        yield Figure(part, what, used, unit="%", detail=f"{tokens:.0f} tokens/s")


def peak_of(shape: Shape, device: str) -> float:
    """Operations a second of bfloat16 products of the feed-forward part's shape, with many rows."""
    x = torch.randn(2048, shape.width, device=device, dtype=torch.bfloat16)
    weight = torch.randn(shape.feed_forward, shape.width, device=device, dtype=torch.bfloat16)
    (seconds,) = in_turns({"product": lambda: [x @ weight.T for _ in range(20)]}, rounds=5).values()
    return 20 * 2 * 2048 * shape.width * shape.feed_forward / min(seconds)


def latency(rounds: int, shape: Shape, url: str) -> Iterator[Figure]:
    """Seconds to the first token that is written, against the seconds of a step."""
    part = f"serving, a stream: {shape.name}"
    first, whole = [], []
    body = {"prompt": prompt_of(0, shape), "max_tokens": CANVAS, "steps": STEPS, "block_length": BLOCK, "stream": True}
    with httpx2.Client(base_url=url, timeout=None) as http:
        for _ in range(rounds):
            began, seen = time.perf_counter(), None
            with http.stream("POST", "/v1/completions", json={**body, "stream_options": {"canvas": True}}) as response:
                for line in response.iter_lines():
                    if seen is None and line.startswith("data: {") and json.loads(line[6:])["canvas"]["new"]:
                        seen = time.perf_counter() - began
            assert seen is not None
            first.append(seen)
            whole.append((time.perf_counter() - began) / STEPS)
    low, high = 1000 * min(first), 1000 * max(first)
    detail = f"a step takes {1000 * statistics.median(whole):.0f} ms"
    yield Figure(part, "to the first token", 1000 * statistics.median(first), low, high, unit="ms", detail=detail)


def ask_dlmserve(http: httpx2.Client, client: int, shape: Shape) -> str:
    text = " ".join(f"w{token}" for token in prompt_of(client, shape))
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": CANVAS}
    said = http.post("/v1/chat/completions", json={**body, "block_length": BLOCK, "num_denoising_steps": STEPS})
    said.raise_for_status()
    found: str = said.json()["choices"][0]["message"]["content"]
    return found


@contextmanager
def dlmserve(model: Any, tokenizer: Any) -> Iterator[str | None]:
    """The other server on a port of its own, with this model; None where it is not installed."""
    if importlib.util.find_spec("dlmserve") is None:
        yield None
        return
    os.environ["DLMSERVE_LOG_LEVEL"] = "critical"
    import dlmserve.engine
    from dlmserve.models.llada import LoadedLLaDA

    loaded = LoadedLLaDA(model, tokenizer, model.device, "bf16", model.config.mask_token_id)
    dlmserve.engine.load_model = lambda **settings: loaded
    from dlmserve.api import server as application

    class Started(uvicorn.Server):
        """Begins as the application's own lifespan does, but for its signal handlers, which need the main thread."""

        async def startup(self, sockets: Any = None) -> None:
            application._engine = dlmserve.engine.Engine()
            application._ready = True
            self.engine = asyncio.create_task(application._engine._engine_loop())
            await super().startup(sockets=sockets)

    listener = socket.create_server(("127.0.0.1", 0))
    server = Started(uvicorn.Config(application.app, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


if __name__ == "__main__":
    print_figures(__doc__, 3, measure)
