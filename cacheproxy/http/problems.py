"""Errors as callers see them: OpenAI-shaped bodies."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException

from cacheproxy.errors import CacheProxyError

JSON = (b"content-type", b"application/json")

_encode = msgspec.json.Encoder().encode


def problem_body(message: str, type_: str, code: str, param: str | None = None) -> bytes:
    """Return `{"error": {"message", "type", "param", "code"}}`."""
    return _encode({"error": {"message": message, "type": type_, "param": param, "code": code}})


def body_of(error: CacheProxyError) -> bytes:
    """Return the body for one of our errors."""
    return problem_body(error.message, error.type, error.code, error.param)


def from_framework(_: Request[Any, Any, Any], exc: HTTPException) -> Response[bytes]:
    """Return Litestar's own refusals in our shape."""
    kind = "authentication_error" if exc.status_code == 401 else "invalid_request_error"
    body = problem_body(str(exc.detail), kind, f"http_{exc.status_code}")
    return Response(body, status_code=exc.status_code, media_type="application/json")


def from_ours(_: Request[Any, Any, Any], exc: CacheProxyError) -> Response[bytes]:
    """Return our errors from a typed Litestar handler."""
    return Response(body_of(exc), status_code=exc.status, media_type="application/json")


HANDLERS: Any = {HTTPException: from_framework, CacheProxyError: from_ours}
