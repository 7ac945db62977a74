"""New weights for a server that runs: its own, or an adapter's."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from remask.errors import UserError
from remask.models.load import load_model
from remask.serving.errors import ApiError, of_fields
from remask.serving.scheduler import StoppingError
from remask.serving.service import Service
from remask.serving.wire import Strict

BINARY = "application/octet-stream"


class NewWeights(Strict):
    """Name weights on the server's own disk. path: a folder or file. adapter: its name; None for the model's own."""

    path: str
    version: int
    adapter: str | None = None


def add_admin(app: FastAPI, service: Service) -> None:
    """Add the routes that change weights."""

    @app.post("/admin/weights")
    async def weights(
        request: Request,
        version: Annotated[int | None, Query(ge=0)] = None,
        adapter: Annotated[str | None, Query()] = None,
    ) -> dict[str, Any]:
        """Take new weights: a path on the server's disk as JSON, or the safetensors file itself as the body with
        `?version=N`. The call returns when they are in use; answers that were begun are finished first.
        """
        if request.headers.get("content-type", "").partition(";")[0] != BINARY:
            try:
                named = NewWeights.model_validate_json(await request.body())
            except ValidationError as error:
                raise of_fields(error.errors(), NewWeights.model_fields) from None
            return await _changed(service, lambda: _from_path(service, named))
        if version is None:
            raise ApiError(400, "version is missing: send ?version=N beside the file", param="version")
        if adapter is not None:
            raise ApiError(400, "an adapter is more than one file: send its path as JSON", param="adapter")
        path = await _received(request)
        try:
            return await _changed(service, lambda: _whole(service, load_weights(path), version))
        finally:
            path.unlink(missing_ok=True)


async def _received(request: Request) -> Path:
    """The body as a file of its own."""
    number, name = tempfile.mkstemp(suffix=".safetensors")
    try:
        with os.fdopen(number, "wb") as file:
            async for part in request.stream():
                file.write(part)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)


async def _changed(service: Service, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return await asyncio.wrap_future(service.scheduler.change(make))
    except StoppingError:
        raise ApiError(503, "the server is shutting down", kind="server_error", code="shutting_down") from None
    except UserError as error:
        raise ApiError(400, error.what, code="weights_do_not_fit") from None


def _from_path(service: Service, named: NewWeights) -> dict[str, Any]:
    """Weights that lie on the server's disk: a model in Hugging Face's layout, an adapter, or one file."""
    if not Path(named.path).exists():
        raise UserError("there is nothing at this path on the server", mend="give a path of the server's own disk")
    if named.adapter is not None:
        service.served.add(named.adapter, named.path, named.version)
        return {"model": named.adapter, "version": named.version}
    if Path(named.path).is_dir():
        model = service.served.model
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        tensors = load_model(named.path, dtype=dtype, attention=getattr(model.config, "attention", None)).state_dict()
    else:
        tensors = load_weights(Path(named.path))
    return _whole(service, tensors, named.version)


def _whole(service: Service, tensors: dict[str, Any], version: int) -> dict[str, Any]:
    service.served.load_weights(tensors, version)
    return {"model": service.served.name, "version": version}


def load_weights(path: Path) -> dict[str, Any]:
    """Return the tensors of a safetensors file. Raises UserError where it cannot be read."""
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        raise UserError("the weights cannot be read", mend="send a whole safetensors file") from None
