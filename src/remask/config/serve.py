"""Options of `remask serve`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from remask.choices import Device, Dtype, Quantization
from remask.config.read import STRICT


@dataclass(frozen=True)
class ServeConfig:
    """Serve a model: OpenAI's protocol for clients, and a page that shows the canvas being written."""

    __pydantic_config__ = STRICT

    model: str = "tiny"
    """A hub id, a local folder, a GGUF file, a run of Remask's, or an embedded model: tiny, tiny-direct, tiny-block."""
    model_attention: str | None = None
    """Which tokens attend to which: full, block:N, block:N:answer, either with :causal (default: the checkpoint's)."""
    name: str | None = None
    """The name that requests ask for (default: the last part of the model's path)."""
    adapter: tuple[str, ...] = ()
    """LoRA adapters to choose from, each as NAME=FOLDER; a request names the one it wants as its model."""
    host: str = "127.0.0.1"
    """The address to listen at. Other machines reach 0.0.0.0; give an API key then."""
    port: int = 8000
    """The port to listen at; 0 takes one that is free."""
    api_key: str | None = None
    """The key that requests must bring, or @FILE that holds it (default: none is asked for)."""
    admin_key: str | None = None
    """Let new weights be sent to /admin/weights by who brings this key, or the one in @FILE (default: nobody may)."""
    admin_remote: bool = False
    """Let other machines send weights too, where the server listens at more than its own machine."""
    cors_origin: tuple[str, ...] = ()
    """Web pages of other servers that may ask this one (default: none)."""
    max_tokens: int | None = None
    """Tokens of a prompt and its answer at most (default: the model's positions)."""
    max_rows: int = 64
    """Answers that are written at once at most."""
    token_budget: int | None = None
    """Tokens of all answers that are written at once (default: measured, what fits into free memory)."""
    max_waiting: int = 256
    """Answers that wait at most; beyond, requests are told to come later (429)."""
    max_body: int = 4194304
    """Bytes of a request at most."""
    timeout: float = 600.0
    """Seconds that an answer may take, the time in the queue included."""
    grace: float = 60.0
    """Seconds that running answers are given when the server is stopped."""
    deterministic: bool = False
    """Give each answer forwards of its own. Its tokens then do not depend on others to the last bit, in any precision;
    the server is slower with many clients."""
    threads: int | None = None
    """CPU threads (default: torch's)."""
    log: Literal["text", "json"] = "text"
    """How requests are logged on standard error: text, or json with an object a line."""
    dtype: Dtype = "float32"
    quantization: Quantization | None = None
    """Load the weights in 4 or 8 bits (needs bitsandbytes)."""
    device: Device = "auto"
