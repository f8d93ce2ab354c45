"""Answers of unknown length for callers who know no chunks (HTTP/1.0): the end of the connection is the end."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

_UNKNOWN = sys.maxsize


def unframed(app: ASGI3Application, cycle: RequestResponseCycle) -> ASGI3Application:
    """Return the application, its answers without a length sent as they grow (RFC 9112 section 6.3, item 8)."""

    async def answering(scope: Any, receive: Any, send: Any) -> None:
        async def send_bare(message: Any) -> None:
            if message["type"] == "http.response.start":
                if not any(name.lower() == b"content-length" for name, _ in message["headers"]):
                    cycle.chunked_encoding, cycle.expected_content_length = False, _UNKNOWN
                    cycle.keep_alive = False
                    others = [one for one in message["headers"] if one[0].lower() != b"connection"]
                    message = {**message, "headers": [*others, (b"connection", b"close")]}
            elif not message.get("more_body") and cycle.expected_content_length > _UNKNOWN // 2:
                cycle.expected_content_length = len(message["body"])
            await send(message)

        await cast("Any", app)(scope, receive, send_bare)

    return answering


def ends_with_connection(cycle: RequestResponseCycle) -> bool:
    """Whether the caller of an answer that is being sent would take a close for its end."""
    return cycle.response_started and not cycle.chunked_encoding and cycle.expected_content_length > _UNKNOWN // 2
