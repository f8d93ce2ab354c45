"""Errors as callers see them: OpenAI-shaped bodies."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException

from cacheproxy.errors import CacheProxyError, MethodNotAllowed, NotCached

if TYPE_CHECKING:
    from cacheproxy.http.exchange import Exchange
    from cacheproxy.http.headers import Headers

log = structlog.get_logger()

JSON = (b"content-type", b"application/json")

_encode = msgspec.json.Encoder().encode


def problem_body(message: str, type_: str, code: str, param: str | None = None) -> bytes:
    """Return `{"error": {"message", "type", "param", "code"}}`."""
    return _encode({"error": {"message": message, "type": type_, "param": param, "code": code}})


def body_of(error: CacheProxyError) -> bytes:
    """Return the body for one of our errors."""
    return problem_body(error.message, error.type, error.code, error.param)


async def send(exchange: Exchange, error: CacheProxyError, headers: Headers | None = None) -> None:
    """Answer with an error, or, where half an answer is out already, leave it visibly unfinished."""
    if exchange.started:
        log.info("answer_broken_off", code=error.code)
        exchange.break_off()
        return
    headers = [JSON, *(headers or [])]
    if error.status in (413, 415):
        headers.append((b"connection", b"close"))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allow.encode()))
    if error.status == 415:
        headers.append((b"accept-encoding", b"identity"))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, NotCached):
        headers.append((b"x-should-retry", b"false"))  # OpenAI's clients would ask a 504 again
    if error.retry_after_s is not None:
        headers += retry_after(error.retry_after_s)
    await exchange.send_whole(error.status, headers, body_of(error))


def retry_after(seconds: float) -> Headers:
    """Return when to ask again, rounded up: whole seconds (RFC 9110), and milliseconds for OpenAI's clients."""
    return [
        (b"retry-after", b"%d" % max(1, math.ceil(seconds))),
        (b"retry-after-ms", b"%d" % max(1, math.ceil(seconds * 1000))),
    ]


def from_framework(_: Request[Any, Any, Any], exc: HTTPException) -> Response[bytes]:
    """Return Litestar's own refusals in our shape."""
    kind = "authentication_error" if exc.status_code == 401 else "invalid_request_error"
    body = problem_body(str(exc.detail), kind, f"http_{exc.status_code}")
    allowed = {name: value for name, value in (exc.headers or {}).items() if name.lower() == "allow"}
    return Response(body, status_code=exc.status_code, media_type="application/json", headers=allowed)


def from_ours(_: Request[Any, Any, Any], exc: CacheProxyError) -> Response[bytes]:
    """Return our errors from a typed Litestar handler."""
    return Response(body_of(exc), status_code=exc.status, media_type="application/json")


def from_unexpected(_: Request[Any, Any, Any], exc: Exception) -> Response[bytes]:
    """Return a 500 that tells nothing; the log has the details."""
    log.error("request_failed", exc_info=exc)
    return from_ours(_, CacheProxyError("the proxy failed; its log has the details"))


HANDLERS: Any = {HTTPException: from_framework, CacheProxyError: from_ours, Exception: from_unexpected}
