"""A closed-loop load generator: N connections, each sends its next request when its last answer is whole.

Bare protocols and prepared bytes, so that the generator costs little beside the proxy it measures on the same machine.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(slots=True)
class Measured:
    """What one run saw. Times in milliseconds; `first_ms` is to the first byte of an answer.

    `sent_s` is when each request was sent, by `perf_counter`.
    """

    sent_s: list[float] = field(default_factory=list)
    total_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    outcomes: dict[str, int] = field(default_factory=dict)
    elapsed_s: float = 0.0


async def run(
    host: str, port: int, requests: Iterator[bytes], *, connections: int, seconds: float, pause_s: float = 0.0
) -> Measured:
    """Send requests from `connections` sockets for about `seconds`, then wait for the answers begun.

    Each socket pauses for `pause_s` after an answer.
    """
    loop = asyncio.get_running_loop()
    seen, stop_at = Measured(), time.perf_counter() + seconds
    began = time.perf_counter()
    clients = [_Client(requests, seen, stop_at, pause_s) for _ in range(connections)]
    for client in clients:
        await loop.create_connection(client.itself, host, port)
    try:
        await asyncio.gather(*(client.done for client in clients))
    finally:
        for client in clients:
            client.close()
    seen.elapsed_s = time.perf_counter() - began
    return seen


class _Client(asyncio.Protocol):
    def itself(self) -> _Client:
        return self

    def __init__(self, requests: Iterator[bytes], seen: Measured, stop_at: float, pause_s: float) -> None:
        self._requests = requests
        self._seen = seen
        self._stop_at = stop_at
        self._pause_s = pause_s
        self._buffer = bytearray()
        self._first_at = 0.0
        self._sent_at = 0.0
        self._end = -1
        self._chunked = False
        self._transport: asyncio.Transport | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._next()

    def data_received(self, data: bytes) -> None:
        if not self._buffer:
            self._first_at = time.perf_counter()
        self._buffer += data
        if self._end < 0 and not self._chunked:
            self._read_head()
        if self._buffer.endswith(b"0\r\n\r\n") if self._chunked else 0 <= self._end <= len(self._buffer):
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError("the proxy closed a connection mid-run"))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _next(self) -> None:
        self._buffer.clear()
        self._end, self._chunked = -1, False
        self._sent_at = time.perf_counter()
        assert self._transport is not None
        self._transport.write(next(self._requests))

    def _read_head(self) -> None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._buffer[:end]).lower()
        length = _field(head, b"content-length")
        self._chunked = length is None
        self._end = end + 4 + int(length) if length is not None else -1
        outcome = _field(head, b"x-cacheproxy-outcome") or _field(head, b"x-cache") or b"none"
        tier = _field(head, b"x-cacheproxy-tier") or _field(head, b"x-cache-tier") or b""
        name = b" ".join([head[9:12], outcome, tier]).decode().strip()
        self._seen.outcomes[name] = self._seen.outcomes.get(name, 0) + 1

    def _finish(self) -> None:
        now = time.perf_counter()
        self._seen.sent_s.append(self._sent_at)
        self._seen.total_ms.append((now - self._sent_at) * 1000)
        self._seen.first_ms.append((self._first_at - self._sent_at) * 1000)
        if now >= self._stop_at:
            self.done.set_result(None)
        elif self._pause_s:
            asyncio.get_running_loop().call_later(self._pause_s, self._next)
        else:
            self._next()


def _field(head: bytes, name: bytes) -> bytes | None:
    start = head.find(b"\r\n" + name + b":")
    if start < 0:
        return None
    start += len(name) + 3
    end = head.find(b"\r\n", start)
    return head[start : end if end >= 0 else None].strip()
