"""Single-flight: one exchange with the backend, shared by every caller who waits for the same answer.

The exchange belongs to the flight, not to the caller who opened it: when that caller leaves, the others go on; when the
last reader leaves, the exchange is cancelled. Every reader gets the bytes from the start, as they come.
"""

from __future__ import annotations

import asyncio
import contextlib
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheproxy.errors import CacheProxyError, UpstreamBroken

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from cacheproxy.model import Classification, Offload, Query


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The start of a backend's answer: status and end-to-end headers."""

    status: int
    headers: tuple[tuple[str, str], ...]

    @property
    def failed(self) -> bool:
        """Whether the backend could not do it now, so that another try may help."""
        return self.status == 429 or self.status >= 500

    @property
    def streams(self) -> bool:
        """Whether a server-sent event stream follows."""
        return any(
            name.lower() == "content-type" and value.lower().startswith("text/event-stream")
            for name, value in self.headers
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What became of a flight's answer: kept or not, why, under which id, and which model gave it."""

    stored: bool | None
    """None while it is being kept and nobody knows yet."""
    reason: str
    entry_id: str = ""
    model: str = ""


_TURNS = 4
"""Turns of the event loop, and one to spare, from a head that comes to its caller's first bytes on the connection."""

_UNSETTLED = Settlement(stored=False, reason="not_settled")


class Flight:
    """One exchange: a head, a growing body, an end or an error, then a settlement."""

    def __init__(
        self,
        key: bytes | None,
        form: object,
        query: Query | None = None,
        *,
        window_bytes: int,
        keep_bytes: int,
    ) -> None:
        self.key = key
        self.form = form
        self.query = query
        self.told: Classification | None = None
        """The category of what is being answered, where it is known."""
        self.policy: object = None
        """The policy that told it."""
        self.offload: Offload | None = None
        """How the small model came to answer, once its answer begins."""
        self.may_offload = False
        """Whether the small model answers, or may yet: not for callers who want none of its answers."""
        self.ended = False
        self.abandoned = False
        self.error: CacheProxyError | None = None
        self.settlement = _UNSETTLED
        self.task: asyncio.Task[None] | None = None
        self._window_bytes = window_bytes
        self._keep_bytes = keep_bytes
        self._head: asyncio.Future[Head] = asyncio.get_running_loop().create_future()
        self._settled = asyncio.Event()
        self._chunks: list[bytes] = []
        self._dropped = 0
        self._written_bytes = 0
        self._readers: set[Reader] = set()
        self._grown = asyncio.Event()
        self._read = asyncio.Event()

    # For the exchange (one writer)

    def begin(self, head: Head) -> None:
        """Announce the head."""
        if not self._head.done():
            self._head.set_result(head)

    async def write(self, chunk: bytes) -> None:
        """Append body bytes; wait while the fastest reader is more than the window behind."""
        self.append(chunk)
        while self._readers and not self._near():
            self._read.clear()
            await self._read.wait()
            self._forget_what_all_have_read()

    @property
    def streams(self) -> bool:
        """Whether its head is known and begins an event stream."""
        head = self._head
        return head.done() and not head.cancelled() and head.exception() is None and head.result().streams

    async def let_readers_go_first(self) -> None:
        """Let readers pass on what was written, before anything is done that they need not wait for."""
        for _ in range(_TURNS):
            await asyncio.sleep(0)

    def append(self, chunk: bytes) -> None:
        """Append body bytes without waiting: for the last ones, before the end or the error."""
        if chunk:
            self._chunks.append(chunk)
            self._written_bytes += len(chunk)
            self._wake_readers()
            self._forget_what_all_have_read()

    def end(self) -> None:
        """Announce a clean end of the body."""
        self.ended = True
        self._wake_readers()

    def fail(self, error: CacheProxyError) -> None:
        """Announce that the answer broke off: before the head, or after some bytes."""
        if self.ended or self.error is not None:
            return
        self.error = error
        if not self._head.done():
            self._head.set_exception(error)
            self._head.exception()  # nobody may be left to retrieve it
        self._wake_readers()

    def settle(self, settlement: Settlement) -> None:
        """Announce what became of the answer."""
        self.settlement = settlement
        self._settled.set()

    # For callers

    @property
    def joinable(self) -> bool:
        """Whether a new reader would still get every byte."""
        return self.error is None and not self.abandoned and self._written_bytes <= self._keep_bytes

    def attach(self) -> Reader:
        """Add a reader, who must `leave`."""
        reader = Reader(self)
        self._readers.add(reader)
        return reader

    async def settled(self, timeout_s: float) -> Settlement:
        """Wait for the settlement, or return an unsettled one after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._settled.wait()
        except TimeoutError:
            return _UNSETTLED
        return self.settlement

    def detach(self, reader: Reader) -> None:
        """Remove a reader; without any, an exchange that has not ended is cancelled."""
        self._readers.discard(reader)
        if not self._readers and not self.ended and self.task is not None:
            self.abandoned = True
            self.task.cancel()

    def _near(self) -> bool:
        return any(
            reader.whole or self._written_bytes - reader.read_bytes <= self._window_bytes for reader in self._readers
        )

    def _wake_readers(self) -> None:
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()

    def _forget_what_all_have_read(self) -> None:
        # Up to keep_bytes the whole body stays, for followers who join late; past it, only what somebody still needs,
        # and a reader who holds up too much of it is no longer waited for.
        if self._written_bytes <= self._keep_bytes or any(reader.whole for reader in self._readers):
            return
        for reader in list(self._readers):
            if self._written_bytes - reader.read_bytes > self._keep_bytes + self._window_bytes:
                reader.cut = UpstreamBroken("this reader fell too far behind a shared stream")
                self._readers.discard(reader)
        needed = min((reader.position for reader in self._readers), default=self._dropped + len(self._chunks))
        if needed > self._dropped:
            del self._chunks[: needed - self._dropped]
            self._dropped = needed


class Reader:
    """One caller's view of a flight, to be left when done."""

    def __init__(self, flight: Flight) -> None:
        self.flight = flight
        self.position = 0
        self.read_bytes = 0
        self.whole = False
        self.cut: CacheProxyError | None = None

    def leave(self) -> None:
        """Stop reading; the last reader to leave ends the exchange."""
        self.flight.detach(self)

    async def head(self) -> Head:
        """Wait for the head. Raises the exchange's error."""
        return await asyncio.shield(self.flight._head)

    async def started(self) -> None:
        """Wait for the first byte of the body or its end. Raises the exchange's error if it broke off before."""
        flight = self.flight
        while not flight._written_bytes and not flight.ended:
            if flight.error is not None:
                raise copy(flight.error)  # one object raised by many would gather all their tracebacks
            await flight._grown.wait()

    async def ends_within(self, limit_bytes: int) -> bool:
        """Wait until the body has ended, or has grown beyond a limit that is smaller than the flight's window.

        Raises the exchange's error if it broke off before.
        """
        flight = self.flight
        while not flight.ended and flight._written_bytes <= limit_bytes:
            if flight.error is not None:
                raise copy(flight.error)
            await flight._grown.wait()
        return flight._written_bytes <= limit_bytes

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body from its start, as it comes. Raises the exchange's error where it broke off."""
        flight = self.flight
        while True:
            if self.cut is not None:
                raise self.cut
            available = flight._chunks[self.position - flight._dropped :]
            if available:
                data = b"".join(available) if len(available) > 1 else available[0]
                self.position += len(available)
                yield data
                self.read_bytes += len(data)
                flight._read.set()
            elif flight.error is not None:
                raise copy(flight.error)
            elif flight.ended:
                return
            else:
                await flight._grown.wait()

    async def body(self) -> bytes:
        """Wait for the end and return the whole body. Raises the exchange's error."""
        self.whole = True
        self.flight._read.set()
        return b"".join([chunk async for chunk in self.chunks()])


class Flights:
    """The exchanges in the air, by key."""

    def __init__(
        self,
        spawn: Callable[[Coroutine[object, object, None]], asyncio.Task[None]],
        *,
        window_bytes: int,
        keep_bytes: int,
    ) -> None:
        self._spawn = spawn
        self._window_bytes = window_bytes
        self._keep_bytes = keep_bytes
        self._by_key: dict[bytes, Flight] = {}
        self.aloft = 0
        self.unattended = 0

    def find(self, key: bytes) -> Flight | None:
        """Return the flight that a caller may join, or None."""
        flight = self._by_key.get(key)
        return flight if flight is not None and flight.joinable else None

    def open(
        self,
        key: bytes | None,
        form: object,
        exchange: Callable[[Flight], Awaitable[None]],
        query: Query | None = None,
    ) -> Reader:
        """Start an exchange as the leader and return its first reader. A key of None makes it private.

        `form` and `query`, the leader's, are compared by callers to see whether the bytes suit them. The flight can be
        found until `exchange` returns, so a caller who comes while the answer is being stored waits for that instead of
        asking the backend again.
        """
        flight = Flight(key, form, query, window_bytes=self._window_bytes, keep_bytes=self._keep_bytes)
        reader = flight.attach()
        if key is not None:
            self._by_key[key] = flight
        self.aloft += 1
        flight.task = self._spawn(self._run(flight, exchange))
        flight.task.add_done_callback(lambda _: self._land(flight))
        return reader

    def leave_alone(self, reader: Reader) -> None:
        """Let a flight go on to its end without anybody who waits for it; its failure is its own."""
        self.unattended += 1
        self._spawn(_read_out(reader)).add_done_callback(lambda _: self._attended(reader))

    def _attended(self, reader: Reader) -> None:
        # As a callback, this runs for a task that was cancelled before its first step, too.
        self.unattended -= 1
        reader.leave()

    def ground(self, flight: Flight) -> None:
        """Let nobody else join a flight, such as one whose backend answered with an error."""
        if flight.key is not None and self._by_key.get(flight.key) is flight:
            del self._by_key[flight.key]

    async def _run(self, flight: Flight, exchange: Callable[[Flight], Awaitable[None]]) -> None:
        try:
            await exchange(flight)
        except CacheProxyError as exc:
            self.ground(flight)  # before readers wake: one of them may open the next flight under this key
            flight.fail(exc)

    def _land(self, flight: Flight) -> None:
        # As a callback, this runs for a task that was cancelled before its first step, too.
        self.aloft -= 1
        self.ground(flight)
        flight.fail(UpstreamBroken("the shared request was cancelled"))
        flight.settle(flight.settlement)


async def _read_out(reader: Reader) -> None:
    with contextlib.suppress(CacheProxyError):
        async for _ in reader.chunks():
            pass
