"""Many clients at once: every answer is compared with that of `remask.generate`, and the server's memory is watched.

Requests differ in prompt, length, blocks, temperature, rule and seed; a part of them is read as a stream. The server is
a process of its own, with the embedded model.

    python benchmarks/serve_load.py [--clients 32] [--requests 2000] [--model tiny]
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

import remask
from remask.progress import progress
from remask.tasks.generated import generated_examples

KINDS: list[dict[str, Any]] = [
    {"max_new_tokens": 12, "steps": 6},
    {"max_new_tokens": 20},
    {"max_new_tokens": 40, "steps": 20, "block_length": 10, "temperature": 0.8},
    {"max_new_tokens": 24, "threshold": 0.8, "temperature": 0.6},
    {"max_new_tokens": 32, "steps": 16, "reveal": "margin"},
    {"max_new_tokens": 16, "steps": 8, "reveal": "random", "temperature": 1.0, "top_k": 20},
    {"max_new_tokens": 24, "steps": 12, "block_length": 8, "cache": "dual"},
    {"max_new_tokens": 64, "steps": 16},
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--model", default="tiny")
    arguments = parser.parse_args()
    jobs = list(requests(arguments.requests))
    process = subprocess.Popen(
        [sys.executable, "-m", "remask.cli", "serve", "--port", "0", "--model", arguments.model],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    url = process.stdout.readline().split()[0]
    try:
        report = loaded(url, jobs, arguments.clients, process.pid)
    finally:
        process.terminate()
        process.wait(60)
    wrong = compared(arguments.model, jobs, report.pop("texts"))
    print(json.dumps({**report, "wrong": wrong, "exit": process.returncode}, indent=1))
    return int(bool(wrong or report["not answered"]))


def requests(count: int) -> list[tuple[str, dict[str, Any], bool]]:
    """(prompt, settings, whether it is read as a stream) of each request."""
    draw = random.Random(0)
    rows = generated_examples(f"generated:sudoku+countdown:{count}", split="train", prompt_style="compact")
    return [
        (str(row.messages[0]["content"]), {**draw.choice(KINDS), "seed": number}, draw.random() < 0.3)
        for number, row in enumerate(rows)
    ]


def loaded(url: str, jobs: list[Any], clients: int, pid: int) -> dict[str, Any]:
    """All answers, how long they took, and how much memory the server had in use."""
    statuses: Counter[int] = Counter()
    memory: list[int] = []
    done = 0
    with (
        httpx2.Client(base_url=url, timeout=None) as http,
        ThreadPoolExecutor(clients) as threads,
        progress("asking", len(jobs)) as tick,
    ):

        def one(job: Any) -> tuple[str, float]:
            nonlocal done
            began = time.perf_counter()
            text = asked(http, *job, statuses)
            done += 1
            tick(done)
            if done % (len(jobs) // 20 or 1) == 0:
                memory.append(resident(pid))
            return text, time.perf_counter() - began

        began = time.perf_counter()
        answers = list(threads.map(one, jobs))
        seconds = time.perf_counter() - began
    took = np.array([taken for _, taken in answers])
    return {
        "texts": [text for text, _ in answers],
        "requests": len(jobs),
        "clients": clients,
        "not answered": len(jobs) - len(answers),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "seconds": round(seconds, 1),
        "requests a second": round(len(jobs) / seconds, 1),
        "p50 seconds": round(float(np.median(took)), 3),
        "p99 seconds": round(float(np.quantile(took, 0.99)), 3),
        "memory MiB, by twentieths": [round(bytes_ / 2**20) for bytes_ in memory],
    }


def asked(http: httpx2.Client, prompt: str, settings: dict[str, Any], stream: bool, statuses: Counter[int]) -> str:
    own = {"max_tokens" if name == "max_new_tokens" else name: value for name, value in settings.items()}
    body = {"messages": [{"role": "user", "content": prompt}], "stream": stream, **own}
    while True:
        response = http.post("/v1/chat/completions", json=body)
        statuses[response.status_code] += 1
        if response.status_code == 429:
            time.sleep(float(response.headers["retry-after"]))
            continue
        response.raise_for_status()
        if not stream:
            return str(response.json()["choices"][0]["message"]["content"])
        events = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
        return "".join(choice["delta"].get("content") or "" for choice in choices)


def compared(name: str, jobs: list[Any], texts: list[str]) -> list[int]:
    """Numbers of the requests whose answer is not that of `remask.generate`."""
    model, tokenizer = remask.load(name)
    wrong = []
    with progress("comparing", len(jobs)) as tick:
        for number, ((prompt, settings, _), text) in enumerate(zip(jobs, texts, strict=True)):
            if remask.generate(model, tokenizer, [prompt], row_seeds=[0], **settings).texts[0] != text:
                wrong.append(number)
            tick(number + 1)
    return wrong


def resident(pid: int) -> int:
    """Bytes of memory that a process has in use."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))


if __name__ == "__main__":
    raise SystemExit(main())
