"""What a request is refused with, in the shape that its client reads."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from typing import Any

from fastapi import Response

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
"""What OpenAI's clients call a status; other 4xx are an `invalid_request_error`."""

TEI_TYPES = {
    401: "Unauthorized",
    429: "Overloaded",
    500: "Backend",
    502: "Backend",
    503: "Overloaded",
    504: "Overloaded",
}

MOST_CAUSES, LAST_FRAMES = 8, 8
"""Of one failure in the log."""


class HttpError(Exception):
    """A request that is refused, or that could not be answered. param: the field at fault; code: a name for it."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})


def error_body(error: HttpError, family: str = "") -> dict[str, Any]:
    """One object for OpenAI's, Cohere's and Jina's clients, who read `error`, `message` and `detail`; TEI's differs."""
    kind = TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    if family == "tei":
        return {"error": error.message, "error_type": TEI_TYPES.get(error.status, "Validation")}
    what = {"message": error.message, "type": kind, "param": error.param, "code": error.code}
    return {"error": what, "message": error.message, "detail": error.message}


def error_response(error: HttpError, family: str = "") -> Response:
    """The answer to such a request."""
    return json_response(error_body(error, family), error.status, error.headers)


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON as UTF-8. ValueError for a number that JSON does not have."""
    body = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(body.encode("utf-8", "replace"), status, in_latin(headers or {}), "application/json")


def in_latin(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers that can be sent, whatever they say: what HTTP has no character for becomes a question mark."""
    return {name: value.encode("latin-1", "replace").decode("latin-1") for name, value in headers.items()}


def causes(error: BaseException | None) -> list[dict[str, Any]]:
    """For the log: an exception and what it came of, each with its frames; no messages, which may quote texts."""
    found: list[dict[str, Any]] = []
    while error is not None and len(found) < MOST_CAUSES:
        frames = list(traceback.walk_tb(error.__traceback__))[-LAST_FRAMES:]
        told = [f"{frame.f_code.co_filename}:{line} {frame.f_code.co_name}" for frame, line in frames]
        found.append({"type": type(error).__name__, "frames": told})
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found
