"""The addresses of the server: OpenAI's under /v1, the page, health, figures, and new weights under /admin."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from sse_starlette import EventSourceResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from remask import __version__
from remask.models.facts import stop_token_ids
from remask.serving.admin import add_admin
from remask.serving.answers import Answer
from remask.serving.errors import ApiError, of_fields, of_work
from remask.serving.figures import Metrics
from remask.serving.guards import Guarded, Guards, response_of
from remask.serving.service import Service
from remask.serving.wire import Asked, ChatRequest, CompletionRequest, InfillRequest

log = logging.getLogger("remask.serving")
PAGE = Path(__file__).parent / "page"
SLOW_READER = 60.0
"""Seconds that a reader of a stream may take for an event before it is let go."""
ROUTES = {"/v1/chat/completions": ChatRequest, "/v1/completions": CompletionRequest, "/v1/infill": InfillRequest}


def make_app(service: Service, guards: Guards, *, origins: tuple[str, ...] = ()) -> Any:
    """Return the ASGI application. origins: the pages of other servers that may ask this one."""
    app = FastAPI(
        title="Remask",
        version=__version__,
        description="A diffusion language model behind OpenAI's protocol.",
        docs_url=None,
        redoc_url=None,
    )
    metrics = Metrics(service.scheduler)
    _add_errors(app)
    _add_writing(app, service, metrics)
    _add_facts(app, service, metrics)
    if guards.admin_key is not None:
        add_admin(app, service)
    app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
    if origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    return Guarded(app, guards)


def _add_errors(app: FastAPI) -> None:
    """Every error goes back in OpenAI's shape, and none with what is inside the server."""

    @app.exception_handler(ApiError)
    async def _api(request: Request, error: ApiError) -> Response:
        return response_of(error)

    @app.exception_handler(RequestValidationError)
    async def _fields(request: Request, error: RequestValidationError) -> Response:
        kind = ROUTES.get(request.url.path)
        return response_of(of_fields(error.errors(), kind.model_fields if kind is not None else ()))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        return response_of(ApiError(error.status_code, str(error.detail), headers=error.headers))

    @app.exception_handler(Exception)
    async def _own(request: Request, error: Exception) -> Response:
        return response_of(of_work(error))


def _add_writing(app: FastAPI, service: Service, metrics: Metrics) -> None:
    """The three routes that write text."""

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        return await _written(body, request, service, metrics)

    @app.post("/v1/completions", response_model=None)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Go on from a text, or write what is missing before its suffix."""
        return await _written(body, request, service, metrics)

    @app.post("/v1/infill", response_model=None)
    async def infill(body: InfillRequest, request: Request) -> Response:
        """Write each mask token of a text."""
        return await _written(body, request, service, metrics)


def _add_facts(app: FastAPI, service: Service, metrics: Metrics) -> None:
    """What the server says of itself."""
    served = service.served

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """Name the models, with what a client needs to know of them."""
        return {"object": "list", "data": [_model(service, name) for name in served.names]}

    @app.get("/v1/models/{name:path}", response_model=None)
    async def model(name: str) -> dict[str, Any]:
        """Say of one model what a client needs to know."""
        if name not in served.names:
            raise ApiError(404, f"there is no model {name!r}", param="model", code="model_not_found")
        return _model(service, name)

    @app.get("/health", response_model=None)
    async def health() -> Response:
        """Say whether requests are answered."""
        alive = service.scheduler.is_alive
        told = {
            "status": "ok" if alive else "down",
            "waiting": service.scheduler.waiting,
            "at_work": service.scheduler.at_work,
            "versions": served.versions,
        }
        return JSONResponse(told, status_code=200 if alive else 503)

    @app.get("/metrics", response_model=None)
    async def figures() -> Response:
        """Give the server's figures in Prometheus' form."""
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")


def _model(service: Service, name: str) -> dict[str, Any]:
    served = service.served
    config = served.model.config
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "remask",
        "version": served.versions[name],
        "fingerprint": served.fingerprints[name],
        "mask": served.tokenizer.decode([config.mask_token_id]),
        "ends": [served.tokenizer.decode([token]) for token in stop_token_ids(config)],
        "max_tokens": service.longest,
        "attention": getattr(config, "attention", None) or "full",
        "decoding": service.default_decoding(),
    }


async def _written(body: Asked, request: Request, service: Service, metrics: Metrics) -> Response:
    """Begin an answer, and send it whole or as a stream."""
    route, number = request.url.path, f"req_{uuid.uuid4().hex[:12]}"
    client = request.headers.get("authorization") or (request.client.host if request.client else "")
    try:
        underway = service.begin(body, client)
    except ApiError as error:
        metrics.requests.labels(route, error.status).inc()
        _note(route, number, error.status, body.model)
        raise
    answer = Answer(underway)
    done = _Accounts(answer, metrics, route, number)
    headers = {"X-Request-Id": number, "X-Remask-Version": str(service.served.versions[underway.model])}
    if body.stream:
        return EventSourceResponse(_stream(answer, service, done), send_timeout=SLOW_READER, ping=15, headers=headers)
    try:
        told = await _unless_gone(request, answer.whole())
        done.close(200)
        return JSONResponse(told, headers=headers)
    except ApiError as error:
        done.close(error.status)
        raise
    finally:
        service.give_up(underway)


async def _stream(answer: Answer, service: Service, done: _Accounts) -> AsyncIterator[dict[str, str]]:
    """Server-sent events. When the reader goes away the rows are let go."""
    try:
        async for event in answer.events():
            yield {"data": json.dumps(event, ensure_ascii=False)}
        yield {"data": "[DONE]"}
        done.close(200)
    except ApiError as error:
        done.close(error.status)
        yield {"data": json.dumps(error.body())}
    finally:
        service.give_up(answer.underway)
        done.close(499)


async def _unless_gone(request: Request, coming: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    """Wait for an answer as long as somebody waits for it. Raises ApiError where nobody does."""
    wanted, gone = asyncio.ensure_future(coming), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((wanted, gone), return_when=asyncio.FIRST_COMPLETED)
        if wanted.done():
            return wanted.result()
        raise ApiError(499, "the client went away", code="cancelled")
    finally:
        for task in (wanted, gone):
            task.cancel()
            with suppress(asyncio.CancelledError, ApiError):
                await task


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Accounts:
    """Counts and logs a request once, when it is over."""

    def __init__(self, answer: Answer, metrics: Metrics, route: str, number: str) -> None:
        self.answer, self.metrics, self.route, self.number, self.closed = answer, metrics, route, number, False

    def close(self, status: int) -> None:
        if self.closed:
            return
        self.closed = True
        answer, metrics = self.answer, self.metrics
        seconds = time.monotonic() - answer.underway.began
        metrics.requests.labels(self.route, status).inc()
        metrics.seconds.labels(self.route).observe(seconds)
        if answer.first_token is not None:
            metrics.first.observe(answer.first_token)
        for one in answer.finished.values():
            metrics.waited.observe(one.waited)
        counts = answer.usage()
        metrics.tokens.labels("prompt").inc(counts["prompt_tokens"])
        metrics.tokens.labels("answer").inc(counts["completion_tokens"])
        told = answer.told()
        _note(
            self.route,
            self.number,
            status,
            answer.underway.model,
            prompt_tokens=counts["prompt_tokens"],
            completion_tokens=counts["completion_tokens"],
            forwards=told["forwards"],
            waited=told["waited"],
            seconds=round(seconds, 4),
        )


def _note(route: str, number: str, status: int, model: str | None, **more: Any) -> None:
    log.info("request", extra={"told": {"request": number, "route": route, "status": status, "model": model, **more}})
