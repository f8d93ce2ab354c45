"""One request on one connection, byte for byte: what aiohttp's own request class does not promise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler

if TYPE_CHECKING:
    import asyncio

    from aiohttp.connector import Connection


BARE_QUERY = "bare-query"


class SpoiledConnection(Exception):
    """A kept connection brought bytes nobody asked for; it is closed, and nothing was sent on it."""


class CandidHandler(ResponseHandler):
    """A connection whose reset, or whose nonsense, is an error to whoever reads from it.

    aiohttp takes a reset for the end of a body that only the connection's end marks: half an answer would look whole.
    And its C parser leaves the reader of a body with broken chunks waiting for ever.
    """

    def connection_lost(self, exc: BaseException | None) -> None:
        """Tell the reader before the parent tells it of a clean end."""
        if exc is not None and self._payload is not None and not self._payload.is_eof():
            self._payload.set_exception(aiohttp.ClientPayloadError("the connection was reset"), exc)
        payload = self._payload
        super().connection_lost(exc)
        if payload is not None and not payload.is_eof() and payload.exception() is None:
            payload.set_exception(aiohttp.ClientPayloadError("the connection ended within a body"))


class ExactRequest(aiohttp.ClientRequest):
    """A request whose head arrives as it came, to the byte, never sent where an answer waits already.

    aiohttp writes headers as UTF-8, which doubles every byte of a caller's Latin-1; it drops a query that is empty (a
    URL with the fragment `BARE_QUERY` keeps it); and it hands an answer that came
    unasked on a kept connection to whoever uses the connection next, who may be another tenant.
    """

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        """Send, as the parent does. Raises SpoiledConnection before anything is written."""
        protocol = conn.protocol
        if protocol is None or protocol.should_close:
            conn.close()
            raise SpoiledConnection
        plain = all(value.isascii() for value in self.headers.values()) and self.url.raw_path_qs.isascii()
        bare = self.original_url.raw_fragment == BARE_QUERY
        if (bare or not plain) and protocol.transport is not None:
            protocol.transport = cast("asyncio.Transport", _ExactHead(protocol, protocol.transport, bare=bare))
        return await super().send(conn)


class _ExactHead:
    """A transport for one head: turns it from UTF-8 back to Latin-1, then puts the real transport in its place."""

    def __init__(self, protocol: Any, transport: asyncio.Transport, *, bare: bool) -> None:
        self._bare = bare
        self._protocol = protocol
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write the head, with whatever of the body comes along."""
        head, end, rest = bytes(data).partition(b"\r\n\r\n")
        if self._protocol.transport is self:
            self._protocol.transport = self._transport
        head = head.decode("utf-8").encode("latin-1")
        if self._bare:
            head = head.replace(b" HTTP/1.1", b"? HTTP/1.1", 1)
        self._transport.write(head + end + rest)

    def writelines(self, pieces: list[bytes]) -> None:
        """Write the head and a body given in pieces."""
        self.write(b"".join(pieces))
