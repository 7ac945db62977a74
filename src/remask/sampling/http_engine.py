"""An engine that asks `remask serve`, one server or several that serve the same model.

Requests go to the server with the fewest under way. One that fails is asked of another server, and counts once. A
server that was away is given the present weights before it is asked again.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from remask.errors import UserError
from remask.models.fingerprint import changing, fingerprint
from remask.progress import duration
from remask.sampling.engine import Answer, Request
from remask.sampling.generate import Row
from remask.sampling.record import Earlier
from remask.sampling.schedule import Decoding

PATIENCE = 120.0
"""Seconds without an answer of any server, after which an engine gives up. That a server is busy is an answer."""
TELL_SECONDS = 60.0
"""Seconds of waiting for busy servers after which a line says so."""
HANGS, HANGS_TO_A_QUESTION = 900.0, 60.0
"""Seconds without a word after which a server is taken to hang: when it was asked for an answer, which it gives up
itself after 600 (`--timeout`), and when it was asked about its weights.
"""
REST_OF_HUNG = 300.0
"""Seconds after which a server that hung is tried again."""
REST = 1.0
"""Seconds after which a server that failed is tried again."""
KEY, ADMIN_KEY = "REMASK_API_KEY", "REMASK_ADMIN_KEY"
"""The environment variables with the servers' keys."""


class AwayError(Exception):
    """A server that does not answer, or not now. until: when to ask it again (`time.monotonic`). busy: it said so."""

    def __init__(self, said: str, until: float, busy: bool = False) -> None:
        self.until, self.busy = until, busy
        super().__init__(said)


@dataclass
class Replica:
    """A server, the requests that are under way to it, and when it is asked again after a failure. `has`: which of the
    engine's weights it has, by their number; `version`: as it numbers them itself.
    """

    url: str
    under_way: int = 0
    away_until: float = 0.0
    has: int = -1
    version: int = 0


@dataclass(frozen=True)
class Weights:
    """A copy of a model's weights. path: the file that is sent to servers (None: there is no key to send it with)."""

    version: int
    fingerprint: str
    path: Path | None


class HttpEngine:
    """Answers by asking servers. url: `http://host:port`, several after commas, with `#name` for a model's name.

    Keys are read from $REMASK_API_KEY and $REMASK_ADMIN_KEY. New weights are sent with the latter; without it the
    servers must have the weights that `update` is called with, and it raises UserError where they have others.
    """

    def __init__(
        self, url: str, tokenizer: PreTrainedTokenizerBase, batch_size: int = 32, *, patience: float = PATIENCE
    ) -> None:
        url, _, self.model = url.partition("#")
        self.replicas = [Replica(one.strip().rstrip("/")) for one in url.split(",") if one.strip()]
        for replica in self.replicas:
            if not urlsplit(replica.url).hostname:
                raise UserError(f"{replica.url} is no address of a server", mend="write http://host:port")
        self.tokenizer, self.batch_size, self.patience = tokenizer, batch_size, patience
        self.number, self._copies = 0, 0
        self.weights = Weights(0, "", None)
        self._folder = tempfile.TemporaryDirectory(prefix="remask-weights-")
        self._lock = threading.Condition()
        self._answered_at = self._told_at = 0.0
        key = os.environ.get(KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx2.Limits(max_connections=None)
        self._client = httpx2.Client(headers=headers, limits=limits)

    def update(self, model: Any, version: int) -> None:
        """Let all servers have the model's weights; answers from now on are of this version."""
        self.install(self.snapshot(model, version))

    def snapshot(self, model: Any, version: int) -> Weights:
        """Return a copy of the weights, in a file where there is a key to send it with: of adapters alone where the
        model has any.
        """
        path = None
        if os.environ.get(ADMIN_KEY) is not None:
            self._copies += 1
            path = Path(self._folder.name) / f"{self._copies}.safetensors"
            save_file(changing(model), path)
        return Weights(version, fingerprint(model), path)

    def install(self, weights: Weights) -> None:
        """Let all servers that answer have these weights, and wait for one where none does."""
        before, self.weights = self.weights, weights
        self.number += 1
        if before.path not in (None, weights.path):
            before.path.unlink(missing_ok=True)
        begun = time.monotonic()
        while True:
            reached, said = 0, ""
            for replica in self.replicas:
                try:
                    self._bring_up_to_date(replica)
                    reached += 1
                except AwayError as error:
                    replica.away_until, said = error.until, str(error)
            if reached:
                return
            if time.monotonic() - begun > self.patience:
                raise UserError(f"no server answers ({said})", where=self._names(), mend="start one: remask serve")
            time.sleep(REST)

    def answer(self, requests: Sequence[Request], decoding: Decoding) -> list[Answer]:
        """Return an answer to each request, in their order, `batch_size` of them under way at once.

        Raises UserError where a server refuses one, or none has answered for `patience` seconds.
        """
        if not requests:
            return []
        settings = settings_of(decoding)
        with ThreadPoolExecutor(max_workers=min(len(requests), self.batch_size)) as threads:
            return list(threads.map(lambda request: self._answered(request, settings), requests))

    def _answered(self, request: Request, settings: dict[str, Any]) -> Answer:
        body = {**settings, "prompt": request.prompt, "row_seed": request.seed, "canvas": True}
        if self.model:
            body["model"] = self.model
        begun = time.monotonic()
        while True:
            replica = self._least_loaded()
            try:
                if replica.has != self.number:
                    self._bring_up_to_date(replica)
                answer = self._asked(replica, body)
            except AwayError as error:
                replica.away_until = error.until
                if error.busy:
                    self._answered_at = time.monotonic()
                    self._tell_waiting(begun, error)
                elif time.monotonic() - max(begun, self._answered_at) > self.patience:
                    raise UserError(
                        f"no server has answered for {self.patience:g} s ({error})",
                        where=self._names(),
                        mend="see their logs, and start them again",
                    ) from None
            else:
                self._answered_at = time.monotonic()
                return answer
            finally:
                with self._lock:
                    replica.under_way -= 1
                    self._lock.notify_all()

    def _tell_waiting(self, begun: float, error: AwayError) -> None:
        """Say on stderr, every so many seconds, that a request has waited for busy servers so long."""
        now = time.monotonic()
        with self._lock:
            due = now - max(begun, self._told_at) >= TELL_SECONDS
            self._told_at = now if due else self._told_at
        if due:
            print(f"still waiting for an answer after {duration(now - begun)}: {error}", file=sys.stderr, flush=True)

    def _least_loaded(self) -> Replica:
        """The server to ask next, counted as asked; waits until one may be asked."""
        with self._lock:
            while True:
                now = time.monotonic()
                ready = [replica for replica in self.replicas if replica.away_until <= now]
                if ready:
                    chosen = min(ready, key=lambda replica: replica.under_way)
                    chosen.under_way += 1
                    return chosen
                self._lock.wait(min(replica.away_until for replica in self.replicas) - now)

    def _asked(self, replica: Replica, body: dict[str, Any]) -> Answer:
        told = self._sent(replica, "POST", "/v1/completions", json=body).json()
        choice, of_server = told["choices"][0], told["remask"]
        if of_server["version"] != replica.version:
            replica.has = -1  # somebody else changed its weights, or it began anew
            raise AwayError(f"{replica.url} answered with other weights", time.monotonic())
        canvas = choice["canvas"]
        confidence = [float("nan") if p is None else p for p in canvas["confidence"]]
        earlier = [Earlier(*one) for one in canvas["earlier"]]
        row = Row(canvas["token_ids"], canvas["written_at"], confidence, canvas["ended"], canvas["block"], earlier)
        forwards = of_server["forwards"]
        return Answer(
            row, choice["text"], canvas["ends"], self.weights.version, forwards, of_server["seconds"], forwards
        )

    def _bring_up_to_date(self, replica: Replica) -> None:
        """See that a server has the present weights, and send them where it has others."""
        name = self.model or self._sent(replica, "GET", "/v1/models").json()["data"][0]["id"]
        told = self._sent(replica, "GET", f"/v1/models/{quote(name)}").json()
        if told["fingerprint"] != self.weights.fingerprint:
            if self.weights.path is None:
                raise UserError(
                    f"{name} has other weights than the model that is asked for",
                    where=replica.url,
                    mend=f"serve that model, or let weights be sent: --admin-key there, ${ADMIN_KEY} here",
                )
            headers = {"Authorization": f"Bearer {os.environ[ADMIN_KEY]}", "Content-Type": "application/octet-stream"}
            with self.weights.path.open("rb") as file:
                path = f"/admin/weights?version={self.weights.version}"
                told = self._sent(replica, "POST", path, content=file, headers=headers).json()
        replica.has, replica.version = self.number, told["version"]

    def _sent(self, replica: Replica, method: str, path: str, **more: Any) -> httpx2.Response:
        """A response of the server. Raises UserError for a request that it refuses, AwayError where it is to be asked
        again later.
        """
        silence = HANGS_TO_A_QUESTION if method == "GET" else HANGS
        timeout = httpx2.Timeout(10.0, read=silence)
        try:
            response = self._client.request(method, f"{replica.url}{path}", timeout=timeout, **more)
        except httpx2.ReadTimeout:
            said = f"{replica.url} has said nothing for {silence:g} s"
            raise AwayError(said, time.monotonic() + REST_OF_HUNG) from None
        except httpx2.TransportError as error:
            raise AwayError(f"{replica.url}: {type(error).__name__}", time.monotonic() + REST) from None
        if response.status_code == 429:
            until = time.monotonic() + _seconds(response.headers.get("retry-after", ""))
            raise AwayError(f"{replica.url} is busy", until, busy=True)
        if response.status_code >= 500:
            raise AwayError(f"{replica.url} answered {response.status_code}", time.monotonic() + REST)
        if response.status_code >= 400:
            raise UserError(_said(response), where=replica.url, mend=_mend(response.status_code))
        return response

    def _names(self) -> str:
        return ", ".join(replica.url for replica in self.replicas)


def settings_of(decoding: Decoding) -> dict[str, Any]:
    """Return the fields of a request that asks for these settings and no others. Raises UserError for a rule of one's
    own, which no server runs.
    """
    if decoding.rule is not None:
        raise UserError(f"rule = {decoding.rule}: a server runs no rule of one's own", mend="sample with engine local")
    given = {field.name: getattr(decoding, field.name) for field in fields(decoding)}
    kept = {name: value for name, value in given.items() if value is not None}
    return {"max_tokens": kept.pop("max_new_tokens"), "checkpoint_defaults": False, **kept}


def _seconds(retry_after: str) -> float:
    """The seconds after which a busy server wants to be asked again; it may also name a date, which is not read."""
    try:
        return min(max(float(retry_after), 0.0), 60.0)
    except ValueError:
        return REST


def _said(response: httpx2.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"answered {response.status_code}"


def _mend(status: int) -> str:
    if status == 401:
        return f"set ${KEY} and, to send weights, ${ADMIN_KEY}"
    if status in (404, 405):
        return "is it `remask serve`, with this model, and with --admin-key if weights are sent?"
    return "change the request"
