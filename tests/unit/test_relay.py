"""Relay: bytes go to who waits for them before anything is done that keeps them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cacheproxy.dialect.streams import StreamFold
from cacheproxy.flight import Flights, Head
from cacheproxy.relay import pass_on

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cacheproxy.flight import Flight, Reader
    from cacheproxy.model import Reply

STREAM = Head(status=200, headers=(("content-type", "text/event-stream"),))
BODY = Head(status=200, headers=(("content-type", "application/json"),))


class Account:
    """Notes when an event is read."""

    spoken = False

    def __init__(self, told: list[str]) -> None:
        self._told = told

    def take(self, raw: bytes) -> None:
        self._told.append("read")

    def reply(self) -> Reply | str:
        return "nothing"


async def _order(head: Head) -> list[str]:
    """Return what happened in order, where the backend's whole answer came at once."""
    told: list[str] = []
    fold = StreamFold(Account(told), limit=1024)

    async def chunks() -> AsyncIterator[bytes]:
        yield b"data: all of it\n\n"

    async def exchange(flight: Flight) -> None:
        flight.begin(head)
        await pass_on(chunks(), fold, flight)
        fold.reply()
        told.append("kept")

    async def call(reader: Reader) -> None:
        await reader.head()
        async for _ in reader.chunks():
            told.append("bytes")
        told.append("end")

    flights = Flights(asyncio.get_running_loop().create_task, window_bytes=1024, keep_bytes=1024)
    reader = flights.open(None, "form", exchange)
    await call(reader)
    assert reader.flight.task is not None
    await reader.flight.task
    reader.leave()
    return told


async def test_a_streams_reader_has_all_of_it_before_it_is_read_and_kept() -> None:
    assert await _order(STREAM) == ["bytes", "end", "read", "kept"]


async def test_who_reads_a_whole_body_waits_for_no_turns_of_the_event_loop() -> None:
    assert await _order(BODY) == ["read", "kept", "bytes", "end"]
