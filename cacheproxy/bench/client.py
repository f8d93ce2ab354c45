"""HTTP/1.1 for the load generator: connections that are kept, prepared bytes out, an answer's head and times back.

It is written on bare protocols since the generator shares the machine with what it measures: aiohttp's client costs as
much CPU for one exchange as the proxy does for an exact hit.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import httptools

from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from typing import Self

_TOLD = {b"x-cacheproxy-outcome": "outcome", b"x-cacheproxy-tier": "tier", b"retry-after": "retry_after"}
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go. `path` is the whole path of chat completions."""

    host: str
    port: int
    path: str
    tls: bool = False

    @property
    def host_header(self) -> str:
        """What the Host header says."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read_target(url: str, *, anywhere: bool) -> Target:
    """Return the target of a base URL such as http://127.0.0.1:8080/v1. Raises ConfigError.

    Only this machine is a target, unless `anywhere`: a load generator aimed elsewhere by mistake is an attack.
    """
    told = urlsplit(url)
    try:
        port = told.port or (443 if told.scheme == "https" else 80)
    except ValueError:
        port = 0
    if told.scheme not in ("http", "https") or not told.hostname or not port:
        raise ConfigError(f"--url: {url!r} is no http(s) URL; write the base URL, such as http://127.0.0.1:8080/v1")
    if told.hostname not in _LOOPBACK and not anywhere:
        raise ConfigError(f"--url: {told.hostname} is another machine; --allow-remote says that it may be loaded")
    base = told.path.rstrip("/") or "/v1"
    return Target(host=told.hostname, port=port, path=f"{base}/chat/completions", tls=told.scheme == "https")


@dataclass(slots=True)
class Answer:
    """What came of one request; times by `time.perf_counter`."""

    status: int = 0
    outcome: str = ""
    tier: str = ""
    retry_after: str = ""
    first_s: float = 0.0
    """When the first byte of the body came."""
    done_s: float = 0.0
    error: str = ""
    """Why there is no whole answer: connect, timeout, closed, protocol; "" where there is one."""


class Connection(asyncio.Protocol):
    """One connection, which answers one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Answer] | None = None
        self._answer = Answer()
        self._parser = httptools.HttpResponseParser(self)
        self.usable = True

    @classmethod
    async def open(cls, target: Target) -> Self:
        """Connect. Raises OSError."""
        tls = ssl.create_default_context() if target.tls else None
        _, connection = await asyncio.get_running_loop().create_connection(cls, target.host, target.port, ssl=tls)
        return connection

    async def ask(self, request: bytes, timeout_s: float) -> Answer:
        """Send a request and return what came of it; never raises but where the caller is cancelled."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Answer] = loop.create_future()
        self._waiter = waiter
        self._answer = Answer()
        if not self.usable or self._transport is None:
            self._end("closed")
        else:
            self._transport.write(request)
        late = loop.call_later(timeout_s, self._end, "timeout")
        try:
            return await waiter
        finally:
            late.cancel()

    def close(self) -> None:
        """End the connection."""
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Read a piece of an answer."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._end("protocol")

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is awaited."""
        self._end("closed")

    # What httptools calls

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep what a header tells of the cache."""
        field = _TOLD.get(name.lower())
        if field is not None:
            setattr(self._answer, field, value.decode("latin-1"))

    def on_body(self, body: bytes) -> None:
        """Note the time of the first byte."""
        if not self._answer.first_s:
            self._answer.first_s = time.perf_counter()

    def on_message_complete(self) -> None:
        """Hand the answer over."""
        answer = self._answer
        answer.status = self._parser.get_status_code()
        answer.done_s = time.perf_counter()
        answer.first_s = answer.first_s or answer.done_s
        if not self._parser.should_keep_alive():
            self.usable = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(answer)

    def _end(self, error: str) -> None:
        self.close()
        if self._waiter is not None and not self._waiter.done():
            self._answer.error, self._answer.done_s = error, time.perf_counter()
            self._waiter.set_result(self._answer)


class Connections:
    """Connections to one target that are used again; the last one used first, so that few stay open."""

    def __init__(self, target: Target, *, timeout_s: float) -> None:
        self._target = target
        self._timeout_s = timeout_s
        self._idle: list[Connection] = []

    async def ask(self, request: bytes) -> Answer:
        """Send a request on an idle connection, or a new one, and return what came of it."""
        connection = await self._take()
        if connection is None:
            return Answer(error="connect", done_s=time.perf_counter())
        try:
            answer = await connection.ask(request, self._timeout_s)
        except BaseException:
            connection.close()
            raise
        if connection.usable:
            self._idle.append(connection)
        return answer

    def close(self) -> None:
        """End all that are idle."""
        while self._idle:
            self._idle.pop().close()

    async def _take(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        try:
            async with asyncio.timeout(self._timeout_s):
                return await Connection.open(self._target)
        except OSError:  # refused, reset, or late
            return None
