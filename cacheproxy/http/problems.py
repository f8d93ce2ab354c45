"""Errors as callers see them: OpenAI-shaped bodies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from cacheproxy.errors import CacheProxyError

JSON = (b"content-type", b"application/json")

_encode = msgspec.json.Encoder().encode


def problem_body(message: str, type_: str, code: str, param: str | None = None) -> bytes:
    """Return `{"error": {"message", "type", "param", "code"}}`."""
    return _encode({"error": {"message": message, "type": type_, "param": param, "code": code}})


def body_of(error: CacheProxyError) -> bytes:
    """Return the body for one of our errors."""
    return problem_body(error.message, error.type, error.code, error.param)
