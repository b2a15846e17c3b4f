"""Every answer that is not a success, in OpenAI's envelope: message, type, param, code.

The table below is the only place that turns our errors into HTTP.
"""

import math
from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from fluxline.errors import (
    Cancelled,
    CapacityError,
    DeadlineExceeded,
    FluxlineError,
    InvalidParams,
    QueueFull,
    RequestError,
    TooLarge,
    UnknownLora,
    UnknownModel,
    UnsupportedFormat,
    WorkerDied,
)
from fluxline.telemetry import request_id_var

NO_RETRY = {"x-should-retry": "false"}  # obeyed by the official clients

_BY_ERROR: tuple[tuple[type[FluxlineError], int, str], ...] = (  # the first that fits counts
    (UnknownModel, 404, "invalid_request_error"),
    (TooLarge, 413, "invalid_request_error"),
    (RequestError, 400, "invalid_request_error"),
    (QueueFull, 429, "rate_limit_error"),
    (DeadlineExceeded, 504, "timeout_error"),
    (CapacityError, 503, "server_error"),
    (Cancelled, 409, "conflict_error"),
    (FluxlineError, 500, "server_error"),
)
_PARAMS: dict[type[FluxlineError], str] = {
    UnknownModel: "model",
    UnknownLora: "loras",
    UnsupportedFormat: "output_format",
}
_CODE_BY_STATUS = {
    400: "invalid_value",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "payload_too_large",
    415: "unsupported_media_type",
}


DOCUMENTED: dict[int | str, dict[str, Any]] = {  # Any: JSON
    "default": {
        "description": "What went wrong. `error` is OpenAI's object, or a word at the doors of "
        "programs that have it so.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["error"],
                    "properties": {
                        "error": {
                            "oneOf": [
                                {
                                    "type": "object",
                                    "required": ["message", "type", "param", "code"],
                                    "properties": {
                                        "message": {"type": "string"},
                                        "type": {"type": "string"},
                                        "param": {"type": ["string", "null"]},
                                        "code": {"type": ["string", "null"]},
                                    },
                                },
                                {"type": "string"},
                            ]
                        }
                    },
                }
            }
        },
    }
}
"""For the OpenAPI document of every route, in place of FastAPI's own, which is not answered."""


def failure(
    status: int,
    message: str,
    *,
    kind: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
    extra: Mapping[str, object] | None = None,
) -> Response:
    """Answer with an error. `extra` stands beside the `error` object."""
    error = {"message": message, "type": kind, "param": param, "code": code}
    return _response(status, error, headers, extra)


def spelt(error: FluxlineError) -> tuple[int, dict[str, str | None]]:
    """Our error as a status and an `error` object."""
    status, kind = next((s, k) for cls, s, k in _BY_ERROR if isinstance(error, cls))
    param = error.field if isinstance(error, InvalidParams) else _PARAMS.get(type(error))
    message = error.message
    if status == 500:
        message = f"{message} (request {request_id_var.get()})"
    return status, {"message": message, "type": kind, "param": param, "code": error.code}


def of_error(error: FluxlineError) -> Response:
    """Answer with one of our own errors."""
    status, told = spelt(error)
    return _response(status, told, hints(error))


def of_detail(error: FluxlineError, *, status: int | None = None) -> Response:
    """Answer as FastAPI's own applications do, with `detail`, and our `error` beside it."""
    usual, told = spelt(error)
    status = status or usual
    detail: object = told["message"]
    if status == 422:
        loc = ["body", *([told["param"]] if told["param"] else [])]
        detail = [{"type": told["code"], "loc": loc, "msg": told["message"]}]
    return _response(status, told, hints(error), {"detail": detail})


def of_crash() -> Response:
    """Answer for an exception nobody expected. The log has it; the caller gets a number."""
    message = f"internal error; request {request_id_var.get()}"
    return failure(500, message, kind="server_error", code="internal_error")


async def on_fluxline_error(request: Request, exc: Exception) -> Response:
    """Handle FluxlineError."""
    assert isinstance(exc, FluxlineError)
    return of_error(exc)


async def on_http_exception(request: Request, exc: Exception) -> Response:
    """Handle what the framework raises: no such route, wrong method, and our own of its kind."""
    assert isinstance(exc, HTTPException)
    message = str(exc.detail)
    if exc.status_code in (404, 405):
        message = f"{message}: {request.method} {request.url.path}"
    kind = "server_error" if exc.status_code >= 500 else "invalid_request_error"
    code = _CODE_BY_STATUS.get(exc.status_code)
    return failure(exc.status_code, message, kind=kind, code=code, headers=exc.headers)


async def on_validation_error(request: Request, exc: Exception) -> Response:
    """Handle what the framework finds wrong with a path or a query."""
    assert isinstance(exc, RequestValidationError)
    first = exc.errors()[0]
    param = str(first["loc"][1])  # after "query" or "path"
    return failure(400, f"{param}: {first['msg']}", param=param, code="invalid_value")


def hints(error: FluxlineError) -> dict[str, str]:
    """What the error says of trying again."""
    headers: dict[str, str] = {}
    if isinstance(error, CapacityError):
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
        headers["retry-after-ms"] = str(round(1000 * error.retry_after_s))
    if isinstance(error, Cancelled | WorkerDied):
        headers |= NO_RETRY  # the same request would meet the same end
    return headers


def _response(
    status: int,
    error: Mapping[str, str | None],
    headers: Mapping[str, str] | None,
    extra: Mapping[str, object] | None = None,
) -> Response:
    body = msgspec.json.encode({**(extra or {}), "error": error})
    return Response(body, status, headers, media_type="application/json")
