"""A server from its options to its end."""

from __future__ import annotations

import json
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from transformers import PreTrainedTokenizerBase

from remask.config.serve import ServeConfig
from remask.errors import UserError
from remask.progress import working
from remask.serving.app import make_app
from remask.serving.guards import LOOPBACK, Guards
from remask.serving.models import Served, name_of
from remask.serving.room import measured
from remask.serving.scheduler import Limits, Scheduler
from remask.serving.service import Service

log = logging.getLogger("remask.serving")
FALLBACK_LENGTH = 4096
"""The longest prompt and answer of a model that does not say how many positions it has."""


@dataclass
class Server:
    """A server that is ready to run. url: where it listens. tokens: how many may be at work at once."""

    config: ServeConfig
    service: Service
    url: str
    tokens: int
    _socket: socket.socket
    _uvicorn: uvicorn.Server
    _thread: threading.Thread | None = None

    def run(self) -> bool:
        """Answer requests until a signal ends it. Return whether all answers that had begun were finished."""
        scheduler = self.service.scheduler
        scheduler.start()
        finished = False
        with signals_end_nothing():
            try:
                self._uvicorn.run(sockets=[self._socket])
            finally:
                finished = scheduler.stop(self.config.grace)
                self._socket.close()
        return finished

    def start(self) -> Server:
        """Answer requests in threads of their own, and return when it does. `stop` ends it."""
        if self._thread is not None:
            return self
        self._thread = threading.Thread(target=self.run, name="remask-server", daemon=True)
        self._thread.start()
        while not self._uvicorn.started and self._thread.is_alive():
            time.sleep(0.01)
        return self

    def stop(self) -> None:
        """End a server that was started, with what is being written finished first."""
        self._uvicorn.should_exit = True
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()


class Listener(uvicorn.Server):
    """A server that says what it waits for when it is stopped."""

    def __init__(self, config: uvicorn.Config, scheduler: Scheduler, grace: float) -> None:
        super().__init__(config)
        self.scheduler, self.grace = scheduler, grace

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what was begun, as far as the time allows, and close."""
        rows = self.scheduler.at_work + self.scheduler.waiting
        if rows:
            log.info("stopping", extra={"told": {"answers_to_finish": rows, "seconds_at_most": self.grace}})
        await super().shutdown(sockets=sockets)


@contextmanager
def signals_end_nothing() -> Iterator[None]:
    """Let signals that ask to stop be no more than noted: uvicorn reads them, ends, and then raises them once more."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def serve(model: Any, tokenizer: PreTrainedTokenizerBase, *, background: bool = False, **options: Any) -> Server:
    """Serve a loaded model. Options are those of `remask serve` (`ServeConfig`), adapters among them.

    Returns when the server has ended, or at once with `background=True`: `stop()` ends it then, and `url` says where it
    is. Raises UserError for options that contradict each other, and for a port that is taken.
    """
    options.setdefault("name", name_of(getattr(model, "name_or_path", "") or "model"))
    server = prepared(ServeConfig(**options), model, tokenizer)
    if background:
        return server.start()
    server.run()
    return server


def prepared(config: ServeConfig, model: Any, tokenizer: PreTrainedTokenizerBase) -> Server:
    """Return a server of this model, bound to its address. Raises UserError where that cannot be."""
    refuse_unsafe(config)
    served = Served(model, tokenizer, config.name or name_of(config.model))
    for said in config.adapter:
        name, equals, folder = said.partition("=")
        if not (name and equals and folder):
            raise UserError(f"--adapter {said}", mend="write NAME=FOLDER")
        served.add(name, folder)
    positions = getattr(served.model.config, "max_position_embeddings", None) or FALLBACK_LENGTH
    longest = min(config.max_tokens or positions, positions)
    with working("measuring how many answers fit into memory", enabled=config.token_budget is None):
        tokens = config.token_budget or measured(served.model).tokens
    scheduler = Scheduler(served, Limits(tokens, config.max_rows, config.max_waiting, config.deterministic))
    service = Service(served, scheduler, longest=longest, seconds=config.timeout)
    listener = bound(config.host, config.port)
    host, port = listener.getsockname()[:2]
    guards = Guards(
        key=secret(config.api_key, "--api-key"),
        admin_key=secret(config.admin_key, "--admin-key"),
        hosts=LOOPBACK if config.host in LOOPBACK else None,
        body=config.max_body,
    )
    app = make_app(service, guards, origins=config.cors_origin)
    settings = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, int(config.grace)),
        timeout_keep_alive=30,
        lifespan="off",
    )
    shown = f"[{host}]" if ":" in host else host
    return Server(
        config, service, f"http://{shown}:{port}", tokens, listener, Listener(settings, scheduler, config.grace)
    )


def refuse_unsafe(config: ServeConfig) -> None:
    """Raises UserError for options that have no meaning, or open more than they say."""
    for name, least in (("max_rows", 1), ("max_waiting", 1), ("max_body", 1), ("timeout", 0), ("grace", 0)):
        if getattr(config, name) < least:
            raise UserError(f"{name} = {getattr(config, name)}", mend=f"give {least} or more")
    for name in ("max_tokens", "token_budget", "threads"):
        if getattr(config, name) is not None and getattr(config, name) < 1:
            raise UserError(f"{name} = {getattr(config, name)}", mend="give 1 or more")
    if not 0 <= config.port < 65536:
        raise UserError(f"port = {config.port}", mend="give a number below 65536, or 0 for one that is free")
    if config.admin_key is not None and config.host not in LOOPBACK and not config.admin_remote:
        raise UserError(
            f"--admin-key with --host {config.host}: other machines could send weights",
            mend="add --admin-remote if they are to, or listen at 127.0.0.1",
        )
    if config.admin_remote and config.admin_key is None:
        raise UserError("--admin-remote without --admin-key", mend="give the key that weights are sent with")


def secret(said: str | None, flag: str) -> str | None:
    """Return a key as it is given, or the first line of @FILE. Raises UserError for a key that is empty."""
    if said is None:
        return None
    key = said
    if said.startswith("@"):
        try:
            key = (Path(said[1:]).read_text(encoding="utf-8").splitlines() or [""])[0].strip()
        except (OSError, UnicodeError) as error:
            raise UserError("the key cannot be read", where=f"{flag} {said}", mend="give a text file") from error
    if not key:
        raise UserError(f"{flag} is empty", mend="give a key, or leave it out")
    return key


def bound(host: str, port: int) -> socket.socket:
    """Return a socket that listens at the address. Raises UserError where it is taken, or not this machine's."""
    try:
        kind, _, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # asyncio sends small packets at once (TCP_NODELAY) only where the protocol is named.
        listener = socket.socket(kind, socket.SOCK_STREAM, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(1024)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise UserError(
            f"cannot listen at {host}:{port} ({error.strerror or error})",
            mend="give another --port (0 takes one that is free), or end what listens there",
        ) from error
    return listener


class Lines(logging.Formatter):
    """Log lines for people, or an object a line for machines."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def format(self, record: logging.LogRecord) -> str:
        """Return a line; of an error's traceback the lines that follow it."""
        told = getattr(record, "told", {})
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        trace = self.formatException(record.exc_info) if record.exc_info else None
        if self.form == "json":
            more = {"trace": trace} if trace else {}
            return json.dumps(
                {"time": f"{moment}Z", "level": record.levelname.lower(), "event": record.getMessage(), **told, **more}
            )
        said = " ".join(f"{key}={value}" for key, value in told.items() if value is not None)
        return f"{moment}Z {record.levelname.lower()} {record.getMessage()} {said}".rstrip() + (
            f"\n{trace}" if trace else ""
        )


def log_to_stderr(form: str) -> None:
    """Send the server's log lines to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines(form))
    for name in ("remask.serving", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name.startswith("remask") else logging.WARNING)
