"""A bad network between two programs of this machine: a TCP proxy that delays, throttles, slices, cuts or swallows."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, cast

if TYPE_CHECKING:
    from types import TracebackType

HOST = "127.0.0.1"
_CHUNK = 65_536
_BETWEEN_SLICES_S = 0.001
"""Else the kernel would put them together again."""
_IN_FLIGHT = 256
"""Chunks of one direction that are on their way; more wait in the kernel."""


@dataclass(slots=True, kw_only=True)
class Weather:
    """How the way is, for both directions, from the next byte on."""

    delay_s: float = 0.0
    """Each way: a round trip takes twice that."""
    jitter_s: float = 0.0
    """Up to this much more, drawn anew for each chunk; order is kept, as TCP keeps it."""
    bytes_per_s: float = 0.0
    """0: no limit."""
    slice_bytes: int = 0
    """Pieces that arrive one by one; 0: as they were sent."""


class ChaosProxy:
    """The way to one port. Use as `async with ChaosProxy(port) as way`, and let the client connect to `way.port`."""

    def __init__(self, target_port: int, seed: int = 1) -> None:
        self.weather = Weather()
        self.accepted = 0
        """Connections since the start."""
        self._target_port = target_port
        self._random = random.Random(seed)
        self._open = asyncio.Event()
        self._open.set()
        self._refusing = False
        self._cut_after: tuple[int, bool] | None = None
        self._links: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self._server is not None
        return cast("int", self._server.sockets[0].getsockname()[1])

    @property
    def connections(self) -> int:
        """How many are open now."""
        return len(self._links)

    def partition(self) -> None:
        """Swallow everything, both ways: connections stay open and new ones open, but no byte arrives until `heal`."""
        self._open.clear()

    def heal(self) -> None:
        """Let bytes through again, those first that were held up; and new connections."""
        self._refusing = False
        self._cut_after = None
        self._open.set()

    def refuse(self) -> None:
        """Reset every connection, and each new one as soon as it comes, until `heal`."""
        self._refusing = True
        self.reset()

    def reset(self) -> None:
        """Reset every open connection, whatever is on its way."""
        for writer in list(self._writers):
            _reset(writer)

    def cut_replies(self, after_bytes: int, *, reset: bool = True) -> None:
        """End each connection once it has carried so many more bytes of replies, until `heal`: by RST or by FIN."""
        self._cut_after = (after_bytes, reset)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, HOST, 0, backlog=1024)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for link in list(self._links):
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)
        await self._server.wait_closed()

    async def _accept(self, client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self._refusing:
            _reset(client_writer)
            return
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        writers = {client_writer}
        try:
            await self._open.wait()
            reader, writer = await asyncio.open_connection(HOST, self._target_port)
            writers.add(writer)
            self._writers |= writers
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._carry(client_reader, writer, replies=False))
                ways.create_task(self._carry(reader, client_writer, replies=True))
        except* (OSError, asyncio.CancelledError):
            for writer in writers:
                _reset(writer)
        finally:
            self._links.discard(task)
            self._writers -= writers
            for writer in writers:
                writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool) -> None:
        """Carry one direction: take chunks as they come, deliver each when it is due."""
        way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_IN_FLIGHT)
        async with asyncio.TaskGroup() as both:
            both.create_task(self._take(reader, way))
            both.create_task(self._deliver(way, writer, replies=replies))

    async def _take(self, reader: asyncio.StreamReader, way: asyncio.Queue[tuple[float, bytes]]) -> None:
        due_s = 0.0
        data = b"?"
        while data:
            data = await reader.read(_CHUNK)
            late_s = self.weather.delay_s + self._random.uniform(0, self.weather.jitter_s)
            due_s = max(due_s, time.monotonic() + late_s)
            await way.put((due_s, data))

    async def _deliver(
        self, way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, *, replies: bool
    ) -> None:
        carried = 0
        while True:
            due_s, data = await way.get()
            if (wait_s := due_s - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            await self._open.wait()
            if not data:
                with contextlib.suppress(OSError):
                    writer.write_eof()
                return
            if replies and self._cut_after is not None:
                after, reset = self._cut_after
                data = data[: max(0, after - carried)]
                carried += len(data)
                await self._write(writer, data)
                if carried >= after:
                    _reset(writer) if reset else writer.close()
                    raise ConnectionAbortedError("cut on purpose")
                continue
            await self._write(writer, data)

    async def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        size = self.weather.slice_bytes or len(data) or 1
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            writer.write(piece)
            await writer.drain()
            if self.weather.bytes_per_s:
                await asyncio.sleep(len(piece) / self.weather.bytes_per_s)
            elif self.weather.slice_bytes:
                await asyncio.sleep(_BETWEEN_SLICES_S)


def _reset(writer: asyncio.StreamWriter) -> None:
    transport = writer.transport
    if transport.is_closing():
        return
    linger = struct.pack("ii", 1, 0)
    with contextlib.suppress(OSError):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    transport.abort()
