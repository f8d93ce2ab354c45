"""Pass-through: any request to the backend and its answer back, byte for byte, nothing looked up and nothing stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from cacheproxy.errors import InvalidRequest, UpstreamError
from cacheproxy.http.callers import SEEN_BYTES, has_small_json, on_account, withheld
from cacheproxy.ports import HOP_BY_HOP, OWN_PREFIX, Call

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from cacheproxy.http.exchange import Exchange
    from cacheproxy.http.headers import Headers
    from cacheproxy.ports import Upstream

# `host` is the backend's own, and an expectation is met here.
_NOT_FORWARDED = frozenset(name.encode() for name in HOP_BY_HOP | {"host", "expect"})
_OWN_PREFIX = OWN_PREFIX.encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is known of a request already: which model it is for, and who asks; "" for what is not.

    One that may go `elsewhere` may be sent to another backend when it failed before the first byte of an answer.
    """

    model: str = ""
    tenant: str = ""
    elsewhere: bool = False


def end_to_end(exchange: Exchange, *dropped: bytes) -> tuple[tuple[str, str], ...]:
    """Return the request headers meant for the backend: none of the connection's, of ours, or of `dropped`.

    A virtual key is not among them, nor what belongs to it.
    """
    dropped += withheld(exchange)
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
    asked: Asked | None = None,
    more_headers: Callable[[int], Headers] | None = None,
) -> None:
    """Forward one request and its answer.

    `body` is given when it was read already; otherwise it is read first where it is small JSON, whose model decides
    which backend it goes to, and else streamed. `more_headers` adds headers to an answer of some status. Raises
    UpstreamError before anything was sent back, or after (then the answer stays unfinished and the connection is
    closed), BodyTooLarge, RateLimited, and CallerGone.
    """
    if any(segment in ("..", ".") for segment in unquote(exchange.path).split("/")):
        raise InvalidRequest("the path must not hold . or .. segments")
    if body is None:
        has_body = exchange.header(b"transfer-encoding") is not None or exchange.header(b"content-length") not in (
            None,
            b"0",
        )
        payload: bytes | AsyncIterator[bytes]
        if not has_body:
            payload = await exchange.body(0)
        elif has_small_json(exchange):
            payload = await exchange.body(min(SEEN_BYTES, max_body_bytes))
        else:
            payload = exchange.body_chunks(max_body_bytes)
    else:
        payload = body
    # A body we hold gets its length from the client; a streamed one keeps the length that was declared.
    dropped = (b"content-length",) if isinstance(payload, bytes) else ()
    exchange.check_declared(max_body_bytes)
    asked = asked or Asked()
    call = Call(
        method=exchange.method,
        target=exchange.target,
        headers=end_to_end(exchange, *dropped),
        body=payload,
        model=asked.model,
        tenant=asked.tenant,
        elsewhere=asked.elsewhere,
    )
    call = on_account(exchange, call)
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
