"""An HTTP/1.1 client on a raw socket: sends any bytes, and reads answers strictly, piece by piece if asked."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import urlsplit

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

_STATUS_LINE = re.compile(r"HTTP/1\.([01]) ([1-5][0-9]{2}) ([\t\x20-\x7e]*)")
_HEADER_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*")
_BODILESS = (204, 304)

HOST = "proxy.test"
"""The name under which requests are made unless another is given."""


class ProtocolViolation(AssertionError):
    """The server's bytes are not HTTP/1.1."""


class Truncated(Exception):
    """The connection ended before the message did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Status and headers as they came."""

    status: int
    headers: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str | None:
        """Return the only value of a header, or None. A second one is an error."""
        values = self.all(name)
        if len(values) > 1:
            raise ProtocolViolation(f"{name} came {len(values)} times")
        return values[0] if values else None

    def all(self, name: str) -> list[str]:
        """Return every value of a header, in order."""
        return [value for key, value in self.headers if key.lower() == name.lower()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Response(Head):
    """A whole answer. `complete` is False when the connection ended before the body did."""

    body: bytes
    complete: bool = True

    def json(self) -> Any:
        """Return the decoded body."""
        return msgspec.json.decode(self.body)


def request_bytes(
    method: str,
    target: str,
    headers: Iterable[tuple[str, str]] = (),
    body: bytes | None = None,
    host: str = HOST,
) -> bytes:
    """Return a well-formed request."""
    lines = [f"{method} {target} HTTP/1.1", f"host: {host}", *(f"{name}: {value}" for name, value in headers)]
    if body is not None:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


class Connection(asyncio.Protocol):
    """One connection. Bytes that came before an end or a reset can still be read."""

    reads_all = False
    """Whether chunk extensions and trailers are read over, as HTTP allows; our own server never sends them."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._buffer = bytearray()
        self._ended = False
        self._news = asyncio.Event()
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, url: str, timeout_s: float = 20.0) -> Self:
        """Connect to the host and port of a URL; `timeout_s` bounds every read."""
        where = urlsplit(url)
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: cls(timeout_s), where.hostname or "127.0.0.1", where.port or 80
        )
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._news.set()

    @property
    def ended(self) -> bool:
        """Whether the server ended the connection and all its bytes were read."""
        return self._ended and not self._buffer

    @property
    def heard(self) -> bool:
        """Whether the server said something that was not read yet, or ended the connection."""
        return self._ended or bool(self._buffer)

    @property
    def broken(self) -> bool:
        """Whether the connection is gone, read or not."""
        return self._ended

    def send(self, data: bytes) -> None:
        """Write bytes; ignored once the server closed, as on any socket that has not noticed yet."""
        if self._transport is not None:
            self._transport.write(data)

    def end_sending(self) -> None:
        """Send FIN but keep reading."""
        if self._transport is not None:
            self._transport.write_eof()

    def leave(self, *, reset: bool = False) -> None:
        """Close, by FIN or by RST."""
        if self._transport is None:
            return
        if reset and not self._ended:
            linger = struct.pack("ii", 1, 0)
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._transport.abort()

    def pause(self) -> None:
        """Stop reading, as a client does that is too slow: the kernel's buffer fills."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._transport is not None:
            self._transport.resume_reading()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.leave()

    async def wait_end(self) -> None:
        """Wait until the server ends the connection; bytes that come meanwhile stay readable."""
        async with asyncio.timeout(self._timeout_s):
            while not self._ended:
                await self._more()

    async def read_head(self) -> Head:
        """Read the next status line and headers, 1xx included. Raises Truncated, ProtocolViolation."""
        raw = (await self._until(b"\r\n\r\n"))[:-4].decode("latin-1")
        first, *lines = raw.split("\r\n")
        status = _STATUS_LINE.fullmatch(first)
        if status is None:
            raise ProtocolViolation(f"status line {first!r}")
        headers: list[tuple[str, str]] = []
        for line in lines:
            header = _HEADER_LINE.fullmatch(line)
            if header is None:
                raise ProtocolViolation(f"header line {line!r}")
            headers.append((header[1], header[2]))
        return Head(status=int(status[2]), headers=tuple(headers))

    async def read_response(self, method: str = "POST") -> Response:
        """Read the next final answer whole; what came of a broken one is in its `body`."""
        exchange = await self.exchange(method)
        return await exchange.rest()

    async def exchange(self, method: str = "POST") -> Exchange:
        """Read the next final head and leave the body to be read as it comes."""
        head = await self.read_head()
        while head.status < 200:
            head = await self.read_head()
        return Exchange(self, head, _Framing.of(head, method))

    async def take(self, most: int) -> bytes:
        """Return at least one and at most `most` bytes. Raises Truncated at the end."""
        async with asyncio.timeout(self._timeout_s):
            while not self._buffer:
                if self._ended:
                    raise Truncated
                await self._more()
        data = bytes(self._buffer[:most])
        del self._buffer[:most]
        return data

    async def line(self) -> bytes:
        """Return the next line without its CRLF."""
        return (await self._until(b"\r\n"))[:-2]

    async def _until(self, mark: bytes) -> bytes:
        async with asyncio.timeout(self._timeout_s):
            while (at := self._buffer.find(mark)) < 0:
                if self._ended:
                    raise Truncated(bytes(self._buffer[:200]))
                await self._more()
        return await self.take(at + len(mark))

    async def _more(self) -> None:
        self._news.clear()
        await self._news.wait()


@dataclass(slots=True)
class _Framing:
    """How much of a body is to come: `left` bytes of it or of a chunk; None until the connection ends."""

    chunked: bool
    left: int | None
    done: bool = False

    @classmethod
    def of(cls, head: Head, method: str) -> _Framing:
        coding, length = head.get("transfer-encoding"), head.get("content-length")
        if coding is not None and length is not None:
            raise ProtocolViolation("both Transfer-Encoding and Content-Length")
        if method == "HEAD" or head.status in _BODILESS:
            return cls(chunked=False, left=0, done=True)
        if coding is not None:
            if coding.lower() != "chunked":
                raise ProtocolViolation(f"Transfer-Encoding {coding!r}")
            return cls(chunked=True, left=0)
        if length is None:
            return cls(chunked=False, left=None)
        if not re.fullmatch("[0-9]+", length):
            raise ProtocolViolation(f"Content-Length {length!r}")
        return cls(chunked=False, left=int(length), done=length == "0")


class Exchange:
    """One answer whose head has come; its body is read as it comes."""

    def __init__(self, connection: Connection, head: Head, framing: _Framing) -> None:
        self.connection = connection
        self.head = head
        self._received = bytearray()
        self._framing = framing

    async def until(self, mark: bytes) -> bytes:
        """Read the body until it holds `mark`; return all of it so far. Raises Truncated."""
        searched = 0
        while self._received.find(mark, max(0, searched - len(mark))) < 0:
            searched = len(self._received)
            if not await self._piece():
                raise Truncated(bytes(self._received))
        return bytes(self._received)

    async def rest(self) -> Response:
        """Read to the end of the body, clean or not."""
        complete = True
        try:
            while await self._piece():
                pass
        except Truncated:
            complete = False
        body = bytes(self._received)
        return Response(status=self.head.status, headers=self.head.headers, body=body, complete=complete)

    def leave(self, *, reset: bool = False) -> None:
        """Close the connection without reading on."""
        self.connection.leave(reset=reset)

    async def _piece(self) -> bool:
        framing = self._framing
        if not framing.done and framing.chunked and framing.left == 0:
            await self._chunk_head()
        if framing.done:
            return False
        try:
            data = await self.connection.take(framing.left or 1 << 20)
        except Truncated:
            if framing.left is None:
                framing.done = True
                return False
            raise
        self._received += data
        if framing.left is not None:
            framing.left -= len(data)
            if framing.left == 0:
                await self._piece_end()
        return True

    async def _chunk_head(self) -> None:
        size = await self.connection.line()
        if self.connection.reads_all:
            size = size.partition(b";")[0]
        if not re.fullmatch(b"[0-9A-Fa-f]+", size):
            raise ProtocolViolation(f"chunk size {size!r}")
        self._framing.left = int(size, 16)
        if self._framing.left == 0:
            while self.connection.reads_all and await self.connection.line() != b"":
                pass
            if not self.connection.reads_all:
                await self._piece_end()
            self._framing.done = True

    async def _piece_end(self) -> None:
        if not self._framing.chunked:
            self._framing.done = True
        elif await self.connection.line() != b"":
            raise ProtocolViolation("no CRLF after a chunk")


async def send_raw(url: str, data: bytes, method: str = "POST") -> Response:
    """Send bytes on a connection of their own and read one answer."""
    async with await Connection.open(url) as connection:
        connection.send(data)
        return await connection.read_response(method)
