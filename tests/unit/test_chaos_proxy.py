"""The bad network that fault tests use does what it says: a test that trusts it would else pass for nothing."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.support.chaos import HOST, ChaosProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SAID = bytes(range(256)) * 40


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(4096):
        writer.write(data)
    writer.close()


@asynccontextmanager
async def way() -> AsyncIterator[ChaosProxy]:
    """A way to a server that says everything again."""
    async with (
        await asyncio.start_server(_echo, HOST, 0) as server,
        ChaosProxy(server.sockets[0].getsockname()[1]) as way,
    ):
        yield way


@asynccontextmanager
async def connected(way: ChaosProxy) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(HOST, way.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def took_s(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> float:
    """Say something and return how long its echo took, which must be equal."""
    began_s = time.monotonic()
    writer.write(data)
    assert await reader.readexactly(len(data)) == data
    return time.monotonic() - began_s


async def test_fair_weather_changes_nothing() -> None:
    async with way() as way_, connected(way_) as (reader, writer):
        assert await took_s(reader, writer, SAID) < 1
        writer.write_eof()
        assert await reader.read() == b""


async def test_delay_is_paid_once_each_way_however_much_is_sent() -> None:
    async with way() as way_, connected(way_) as (reader, writer):
        way_.weather.delay_s = 0.05
        assert 0.1 <= await took_s(reader, writer, SAID) < 0.6


async def test_jitter_keeps_the_order() -> None:
    async with way() as way_, connected(way_) as (reader, writer):
        way_.weather.jitter_s = 0.02
        for number in range(20):
            writer.write(b"%03d" % number)
            await asyncio.sleep(0.001)
        assert await reader.readexactly(60) == b"".join(b"%03d" % number for number in range(20))


async def test_a_narrow_way_takes_its_time() -> None:
    async with way() as way_, connected(way_) as (reader, writer):
        way_.weather.bytes_per_s = 20_000
        way_.weather.slice_bytes = 500
        assert await took_s(reader, writer, SAID[:4000]) > 0.15


async def test_slices_arrive_one_by_one() -> None:
    async with way() as way_, connected(way_) as (reader, writer):
        way_.weather.slice_bytes = 1
        writer.write(b"abc")
        assert await reader.read(3) == b"a"


@pytest.mark.parametrize("reset", [True, False])
async def test_replies_are_cut_at_the_byte(reset: bool) -> None:
    async with way() as way_, connected(way_) as (reader, writer):
        way_.cut_replies(5, reset=reset)
        writer.write(b"abcdefgh")
        seen = b""
        try:
            seen = await reader.readexactly(5)
            assert await reader.read() == b""
            assert not reset
        except ConnectionResetError:
            assert reset
        assert seen in (b"abcde", b"")  # a reset may overtake what it follows
        way_.heal()
        async with connected(way_) as again:
            await took_s(*again, SAID)


async def test_a_partition_holds_up_what_is_sent_and_new_connections() -> None:
    async with way() as way_, connected(way_) as (reader, writer):
        way_.partition()
        writer.write(b"late")
        async with connected(way_) as (other_reader, other_writer):
            other_writer.write(b"later")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.1)
            way_.heal()
            assert await reader.readexactly(4) == b"late"
            assert await other_reader.readexactly(5) == b"later"


async def test_refused_connections_are_reset_until_healed() -> None:
    async with way() as way_, connected(way_) as (reader, writer):
        await took_s(reader, writer, b"hello")
        way_.refuse()
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        async with connected(way_) as (other, _):
            with pytest.raises(ConnectionResetError):
                await other.read(1)
        way_.heal()
        async with connected(way_) as again:
            await took_s(*again, b"hello")
