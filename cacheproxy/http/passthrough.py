"""Pass-through: any request to the backend and its answer back, byte for byte, nothing looked up and nothing stored."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

from cacheproxy.errors import InvalidRequest, UpstreamError
from cacheproxy.ports import HOP_BY_HOP, OWN_PREFIX, Call

if TYPE_CHECKING:
    from collections.abc import Callable

    from cacheproxy.http.exchange import Exchange
    from cacheproxy.http.headers import Headers
    from cacheproxy.ports import Upstream

# `host` is the backend's own, and an expectation is met here.
_NOT_FORWARDED = frozenset(name.encode() for name in HOP_BY_HOP | {"host", "expect"})
_OWN_PREFIX = OWN_PREFIX.encode()


def end_to_end(exchange: Exchange, *dropped: bytes) -> tuple[tuple[str, str], ...]:
    """Return the request headers meant for the backend: none of the connection's, of ours, or of `dropped`."""
    named = {
        token.strip().lower()
        for name, value in exchange.headers
        if name == b"connection"
        for token in value.split(b",")
    }
    return tuple(
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in exchange.headers
        if name not in _NOT_FORWARDED and name not in named and name not in dropped and not name.startswith(_OWN_PREFIX)
    )


async def forward(
    exchange: Exchange,
    upstream: Upstream,
    *,
    max_body_bytes: int,
    body: bytes | None = None,
    more_headers: Callable[[int], Headers] | None = None,
) -> None:
    """Forward one request and its answer.

    `body` is given when it was read already; otherwise it is streamed. `more_headers` adds headers to an answer of some
    status. Raises UpstreamError before anything was sent back, or after (then the answer stays unfinished and the
    connection is closed), BodyTooLarge, and CallerGone.
    """
    if any(segment in ("..", ".") for segment in unquote(exchange.path).split("/")):
        raise InvalidRequest("the path must not hold . or .. segments")
    if body is None:
        has_body = exchange.header(b"transfer-encoding") is not None or exchange.header(b"content-length") not in (
            None,
            b"0",
        )
        payload = exchange.body_chunks(max_body_bytes) if has_body else b""
        if not has_body:
            await exchange.body(0)
    else:
        payload = body
    # A body we hold gets its length from the client; a streamed one keeps the length that was declared.
    dropped = (b"content-length",) if isinstance(payload, bytes) else ()
    exchange.check_declared(max_body_bytes)
    call = Call(method=exchange.method, target=exchange.target, headers=end_to_end(exchange, *dropped), body=payload)
    await exchange.while_caller_stays(_send_back(exchange, upstream, call, more_headers))


async def _send_back(exchange: Exchange, upstream: Upstream, call: Call, more: Callable[[int], Headers] | None) -> None:
    try:
        answer = await upstream.send(call)
    except UpstreamError:
        if exchange.broken is not None:
            raise exchange.broken from None  # not the backend: the caller's own body broke off or was too large
        raise
    async with answer:
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
        await exchange.send_stream(answer.status, headers + (more(answer.status) if more else []), answer.chunks())
