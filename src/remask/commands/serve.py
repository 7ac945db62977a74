"""`remask serve`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from remask.commands.options import parse
from remask.config.serve import ServeConfig
from remask.errors import UserError
from remask.imports import uncollected

EXAMPLES = """Examples:
  remask serve                                        # the embedded model: open the address that is printed
  remask serve --model runs/gift --port 8080
  remask serve --model GSAI-ML/LLaDA-8B-Instruct --dtype bfloat16 --adapter math=runs/gift-a code=runs/gift-b
  remask serve --model runs/gift --host 0.0.0.0 --api-key @key.txt
  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{"messages": [{"role": "user", "content": "countdown 4 5 9 -> 9"}]}'"""


def run(arguments: Sequence[str]) -> int:
    """Run `remask serve` with these arguments and return the exit code."""
    config = parse(ServeConfig, arguments, command="serve", examples=EXAMPLES)
    try:
        with uncollected():
            import torch

            from remask.models.load import load
            from remask.serving import run as serving
    except ModuleNotFoundError as error:
        raise UserError(
            f"the server needs {error.name}, which is not installed", mend="pip install 'remask[serve]'"
        ) from None
    serving.refuse_unsafe(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    model, tokenizer = load(
        config.model,
        dtype=config.dtype,
        device=config.device,
        quantization=config.quantization,
        attention=config.model_attention,
    )
    serving.log_to_stderr(config.log)
    server = serving.prepared(config, model, tokenizer)
    for line in said_of(server):
        print(line, flush=True)
    finished = server.run()
    print("stopped" if finished else "stopped; some answers were not finished", file=sys.stderr)
    return 0 if finished else 1


def said_of(server: Any) -> list[str]:
    """Return the lines that tell where the server is, and what it serves with which settings."""
    service, config = server.service, server.config
    served, decoding = service.served, service.default_decoding()
    written = ", ".join(f"{name} {value}" for name, value in decoding.items() if value not in (None, False))
    rows = min(config.max_rows, server.tokens // service.longest)
    room = f"{rows} answers of {service.longest:,} tokens" if rows else f"{server.tokens:,} tokens"
    return [
        f"{server.url}  (the page; /v1 beneath it is OpenAI's protocol)",
        f"models: {', '.join(served.names)}",
        f"decoding: {written}",
        f"at once: {server.tokens:,} tokens, {room}; {config.max_waiting} may wait",
        *(
            ["keys: none is asked for"]
            if config.api_key is None and config.host not in ("127.0.0.1", "localhost")
            else []
        ),
    ]
