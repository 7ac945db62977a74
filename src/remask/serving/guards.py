"""What stands before the application: the size and the time of a body, the host's name, the key, and safe headers."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from remask.serving.errors import ApiError

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
"""Headers of every answer: a page of this server runs its own scripts alone, and is shown in no other page."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Guards:
    """Guards of a server. key: what `/v1` and `/metrics` ask for (None: nothing). hosts: names that the server is
    called by (None: any). body: the most bytes of one. seconds: how long it may take to come.
    """

    key: str | None = None
    admin_key: str | None = None
    hosts: tuple[str, ...] | None = None
    body: int = 4 * 2**20
    weights: int = 64 * 2**30
    seconds: float = 30.0

    def refuse(self, path: str, headers: Mapping[str, str]) -> ApiError | None:
        """Return the error of a request that is not let in."""
        host = headers.get("host", "").rsplit(":", 1)[0].strip("[]").lower() if headers.get("host") else ""
        if self.hosts is not None and host not in self.hosts:
            return ApiError(421, "the server is not called by this name", code="wrong_host")
        if path.startswith("/admin") and not _is_key(headers, self.admin_key):
            return _no_key("the admin key")
        if path.startswith(("/v1", "/metrics")) and self.key is not None and not _is_key(headers, self.key):
            return _no_key("an API key")
        return None

    def most(self, path: str) -> int:
        """Return the most bytes of a body that is sent to this path."""
        return self.weights if path.startswith("/admin") else self.body


def _is_key(headers: Mapping[str, str], key: str | None) -> bool:
    """Compare in a time that does not depend on how much of the key is right."""
    given = headers.get("authorization", "")
    found = given[7:].strip() if given[:7].lower() == "bearer " else ""
    return key is not None and hmac.compare_digest(found.encode(), key.encode())


def _no_key(which: str) -> ApiError:
    return ApiError(
        401,
        f"the request lacks {which}: send the header Authorization: Bearer KEY",
        kind="authentication_error",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


class Guarded:
    """An ASGI application behind its guards."""

    def __init__(self, app: App, guards: Guards) -> None:
        self.app, self.guards = app, guards

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it before the application sees it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), str(scope["path"])

        async def marked(message: Message) -> None:
            if body is not None and body.error is not None and not started:
                return  # what the application makes of a body that was cut off
            if message["type"] == "http.response.start":
                started.append(message)
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        started: list[Message] = []
        body: _Body | None = None
        error = self.guards.refuse(path, headers)
        if error is None:
            body = _Body(receive, self.guards.most(path), self.guards.seconds, path.startswith("/admin"))
            error = body.announced(headers.get("content-length"))
        if error is None and body is not None:
            with suppress(ClientDisconnect):
                await self.app(scope, body.receive, marked)
            error, body = body.error, None
        if error is not None and not started:
            await response_of(error)(scope, receive, marked)


class _Body:
    """A request's body, as far as it comes in time and is not too long."""

    def __init__(self, receive: Receive, most: int, seconds: float, slow: bool) -> None:
        self._receive, self.most, self.seconds, self.slow = receive, most, seconds, slow
        self.read, self.whole = 0, False
        self.error: ApiError | None = None

    def announced(self, length: str | None) -> ApiError | None:
        if length is not None and length.isdecimal() and int(length) > self.most:
            return self._too_long()
        return None

    def _too_long(self) -> ApiError:
        return ApiError(413, f"the body is longer than {self.most} bytes", code="body_too_long")

    async def receive(self) -> Message:
        if self.whole:
            return await self._receive()
        try:
            async with asyncio.timeout(None if self.slow else self.seconds):
                message = await self._receive()
        except TimeoutError:
            self.error = ApiError(408, f"the body did not come within {self.seconds:g} s", code="body_too_slow")
            return {"type": "http.disconnect"}
        if message["type"] == "http.request":
            self.read += len(message.get("body", b""))
            self.whole = not message.get("more_body", False)
            if self.read > self.most:
                self.error = self._too_long()
                return {"type": "http.disconnect"}
        return message


def response_of(error: ApiError) -> Response:
    """Return an error as a response."""
    return Response(
        json.dumps(error.body()), status_code=error.status, media_type="application/json", headers=error.headers
    )
