"""Connections are taken as they come, a crowd within a few turns; where the system has no more, later."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from typing import TYPE_CHECKING, ClassVar, cast

import pytest
import structlog
import uvloop

from cacheproxy.http import accepting
from cacheproxy.http.accepting import Acceptor
from cacheproxy.http.listener import bind
from tests.support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

CROWD = 300


class _Echo(asyncio.Protocol):
    """Counts those that were opened, and says what it hears."""

    all: ClassVar[list[asyncio.Transport]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.all.append(self._transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


def opened() -> int:
    return len(_Echo.all)


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with bind("127.0.0.1", 0, "server.port") as found:
        yield found


@contextlib.asynccontextmanager
async def accepted(listening: socket.socket, room: Callable[[], int] = lambda: 1000) -> AsyncIterator[Acceptor]:
    _Echo.all.clear()
    acceptor = Acceptor(listening, _Echo, room)
    try:
        yield acceptor
    finally:
        acceptor.close()
        await acceptor.wait_closed()
        for transport in _Echo.all:
            transport.abort()
        await asyncio.sleep(0.01)  # for those to be closed


def crowd(listening: socket.socket, many: int) -> list[socket.socket]:
    """Return so many connections that wait in the kernel's queue, each with something said."""
    callers = [socket.create_connection(listening.getsockname()) for _ in range(many)]
    for caller in callers:
        caller.sendall(b"hello")
    return callers


async def turns_until(done: Callable[[], bool], most: int = 1000) -> int:
    for number in range(most):
        if done():
            return number
        await asyncio.sleep(0)
    raise AssertionError(f"not within {most} turns")


async def few_turns(listening: socket.socket) -> None:
    callers = await asyncio.to_thread(crowd, listening, CROWD)
    async with accepted(listening):
        assert await turns_until(lambda: opened() == CROWD) <= 12
        loop = asyncio.get_running_loop()
        for caller in callers:
            caller.setblocking(False)
        async with asyncio.timeout(10):
            assert {await loop.sock_recv(caller, 10) for caller in callers} == {b"hello"}
    for caller in callers:
        caller.close()


async def test_a_crowd_is_taken_within_a_few_turns(listening: socket.socket) -> None:
    await few_turns(listening)


def test_a_crowd_is_taken_within_a_few_turns_of_uvloop(listening: socket.socket) -> None:
    uvloop.run(few_turns(listening))


async def test_where_there_is_no_room_only_few_are_taken_in_a_turn(listening: socket.socket) -> None:
    callers = await asyncio.to_thread(crowd, listening, 64)
    async with accepted(listening, room=lambda: 0):
        before = 0
        while opened() < 64:
            await asyncio.sleep(0)
            assert opened() - before <= 16
            before = opened()
    for caller in callers:
        caller.close()


async def test_those_that_were_taken_go_on_after_the_end(listening: socket.socket) -> None:
    async with accepted(listening) as acceptor:
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        await turns_until(lambda: opened() == 1)
        acceptor.close()
        await acceptor.wait_closed()
        late = socket.create_connection(listening.getsockname())
        writer.write(b"still here")
        async with asyncio.timeout(5):
            assert await reader.readexactly(10) == b"still here"
        assert opened() == 1, "nobody is taken after the end"
        late.close()
        writer.close()


class _Full:
    """A listening socket of a system that has no files left: that cannot be brought about for this process alone."""

    def __init__(self, real: socket.socket, flaws: list[OSError]) -> None:
        self.flaws = flaws
        self.asked = 0
        self._real = real

    def accept(self) -> tuple[socket.socket, object]:
        self.asked += 1
        if self.flaws:
            raise self.flaws.pop(0)
        return self._real.accept()

    def fileno(self) -> int:
        return self._real.fileno()

    def setblocking(self, blocking: bool) -> None:
        self._real.setblocking(blocking)


async def test_no_files_left_is_told_once_and_tried_again_later(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepting, "_PAUSE_S", 0.1)
    full = _Full(listening, [OSError(errno.EMFILE, "Too many open files")])
    caller = await asyncio.to_thread(socket.create_connection, listening.getsockname())
    with structlog.testing.capture_logs() as logs:
        async with accepted(full):  # type: ignore[arg-type] # see _Full
            await asyncio.sleep(0.05)
            assert (full.asked, opened()) == (1, 0), "it does not try in each turn"
            await eventually(lambda: opened() == 1, "it tries again")
    assert [line["event"] for line in logs] == ["connections_not_taken"]
    caller.close()


async def test_who_went_before_he_was_taken_holds_up_nobody(listening: socket.socket) -> None:
    gone = _Full(listening, [ConnectionAbortedError(), OSError(errno.EPROTO, "Protocol error")])
    caller = await asyncio.to_thread(socket.create_connection, listening.getsockname())
    async with accepted(gone):  # type: ignore[arg-type] # see _Full
        await turns_until(lambda: opened() == 1)
    caller.close()


async def test_an_end_while_it_pauses_is_an_end(listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "_PAUSE_S", 0.02)
    full = _Full(listening, [OSError(errno.ENFILE, "Too many open files in system")])
    caller = await asyncio.to_thread(socket.create_connection, listening.getsockname())
    async with accepted(full) as acceptor:  # type: ignore[arg-type] # see _Full
        await turns_until(lambda: full.asked == 1)
        acceptor.close()
        await asyncio.sleep(0.1)
    assert (full.asked, opened()) == (1, 0)
    caller.close()
