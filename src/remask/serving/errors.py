"""What a client is told of an error, in OpenAI's shape. Nothing of the machine is told: no path and no traceback."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from remask.errors import UserError
from remask.faults import is_out_of_memory
from remask.serving.jobs import CancelledError, TooLateError
from remask.serving.scheduler import FullError, StoppingError


class ApiError(Exception):
    """An answer that is an error. param: the field that is wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.headers = dict(headers or {})
        super().__init__(message)

    def body(self) -> dict[str, Any]:
        """Return what is sent."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


OWN_NAMES = {"max_new_tokens": "max_tokens"}
"""Settings whose name in a request is another one."""
IN_WORDS = {
    "extra_forbidden": "there is no such field",
    "missing": "is missing",
}


def of_settings(error: UserError, fields: Iterable[str]) -> ApiError:
    """The error of a request whose settings contradict each other or the model; names the field that it begins with."""
    message = str(error)
    for own, name in OWN_NAMES.items():
        message = re.sub(rf"\b{own}\b", name, message)
    found = [*re.findall(r"\b(\w+) = ", message), *re.findall(r"\b[a-z]+_[a-z_]+\b", message), message.split()[0]]
    known = set(fields)
    return ApiError(400, message, param=next((name for name in found if name in known), None), code="invalid_value")


def of_fields(errors: Iterable[Mapping[str, Any]], fields: Iterable[str]) -> ApiError:
    """The error of a request that cannot be read; names the first field that is wrong."""
    said = list(errors)
    first = next((one for one in said if one["type"] == "extra_forbidden"), said[0])
    place = [part for part in first["loc"] if part not in ("body", "query")]
    names = [str(part) for part in place if isinstance(part, int) or str(part).isidentifier()]
    param = ".".join(names) or None
    if first["type"] == "json_invalid":
        return ApiError(
            400, f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}", code="invalid_json"
        )
    message = IN_WORDS.get(first["type"]) or str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden" and len(place) == 1:
        message += f"; the fields are {', '.join(sorted(fields))}"
    return ApiError(400, f"{param}: {message}" if param else message, param=param, code="invalid_value")


def of_work(error: BaseException) -> ApiError:
    """The error of a request that was taken and could not be answered."""
    if isinstance(error, FullError):
        return ApiError(
            429,
            f"{error}; try again in {error.retry_after} s",
            kind="rate_limit_error",
            code="queue_full",
            headers={"Retry-After": str(error.retry_after)},
        )
    if isinstance(error, StoppingError):
        return ApiError(
            503, "the server is shutting down", kind="server_error", code="shutting_down", headers={"Retry-After": "5"}
        )
    if isinstance(error, TooLateError):
        return ApiError(504, "the answer took longer than the server allows", kind="server_error", code="timeout")
    if isinstance(error, CancelledError):
        return ApiError(499, "the request was given up", kind="server_error", code="cancelled")
    if is_out_of_memory(error):
        return ApiError(503, "the server has not enough memory for this request", kind="server_error", code="memory")
    if isinstance(error, UserError):
        return ApiError(500, error.what, kind="server_error", code="model_failed")
    return ApiError(500, "the server failed; its log says more", kind="server_error", code="internal")
