"""A whole answer is sent in one piece past the framework: byte for byte what it would have been otherwise."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest
from uvicorn.server import ServerState

from cacheproxy import settings
from cacheproxy.http.door import Door
from cacheproxy.http.exchange import AT_ONCE, Exchange
from cacheproxy.http.listener import listener

if TYPE_CHECKING:
    from cacheproxy.http.headers import Headers
    from cacheproxy.http.protocol import CappedProtocol

GET = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"
JSON = (b"content-type", b"application/json")


class Wire:
    """A transport that keeps what is written, piece by piece."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.pieces.append(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def can_write_eof(self) -> bool:
        return False

    def get_extra_info(self, _: str, default: Any = None) -> Any:
        return default

    def resume_reading(self) -> None:
        pass

    pause_reading = resume_reading


class Port:
    """One connection to an application that gives one answer, at once where it may unless `usual`."""

    def __init__(self, headers: Headers, body: bytes = b"{}", status: int = 200, *, usual: bool = False) -> None:
        self.at_once: list[bool] = []
        self._answer = status, headers, body
        self._usual = usual
        limits = settings.Server()
        self._door = Door(limits, 8)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await self._answer_one(scope, receive, send)

        config = listener(app, limits, self._door, drain_s=1).config
        config.load()
        self.wire = Wire()
        made = cast("Any", config.http_protocol_class)(config=config, server_state=ServerState(), app_state={})
        self.protocol: CappedProtocol = made
        self.protocol.connection_made(cast("asyncio.Transport", self.wire))

    async def _answer_one(self, scope: Any, receive: Any, send: Any) -> None:
        begun: list[object] = []

        async def sending(message: Any) -> None:
            begun.append(message)
            await send(message)

        if self._usual:
            scope.pop(AT_ONCE, None)
        status, headers, body = self._answer
        try:
            await Exchange(scope, receive, sending, self._door).send_whole(status, list(headers), body)
        finally:
            self.at_once.append(not begun)

    async def ask(self, *requests: bytes) -> bytes:
        """Return all that is answered."""
        self.wire.pieces.clear()
        self.protocol.data_received(b"".join(requests))
        for _ in range(20):
            await asyncio.sleep(0)
        return b"".join(self.wire.pieces)


ANSWERS: dict[str, tuple[Headers, bytes, int]] = {
    "an answer": ([JSON, (b"x-cacheproxy-outcome", b"hit")], b'{"id":1}', 200),
    "a refusal": ([JSON, (b"retry-after", b"1")], b'{"error":{}}', 503),
    "no body": ([JSON], b"", 200),
    "names in capitals": ([(b"X-Request-Id", b"a b\tc")], b"{}", 200),
    "a header twice": ([(b"set-cookie", b"a"), (b"set-cookie", b"b")], b"{}", 200),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_a_whole_answer_is_the_same_bytes_in_one_piece(answer: tuple[Headers, bytes, int]) -> None:
    one, usual = Port(*answer), Port(*answer, usual=True)
    assert await one.ask(GET) == await usual.ask(GET)
    assert (one.at_once, usual.at_once) == ([True], [False])
    assert len(one.wire.pieces) == 1
    assert not one.wire.closed


OTHERWISE: dict[str, tuple[Headers, bytes]] = {
    "the caller parts": ([JSON], b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"),
    "the answer parts": ([JSON, (b"connection", b"close")], GET),
    "HEAD": ([JSON], b"HEAD /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"),
    "HTTP/1.0": ([JSON], b"GET /v1/models HTTP/1.0\r\n\r\n"),
    "beyond ASCII": ([(b"x-name", "Zo\u00eb".encode("latin-1"))], GET),
}


@pytest.mark.parametrize(("headers", "request_"), OTHERWISE.values(), ids=OTHERWISE)
async def test_what_needs_more_than_bytes_goes_the_usual_way(headers: Headers, request_: bytes) -> None:
    one, usual = Port(headers), Port(headers, usual=True)
    assert await one.ask(request_) == await usual.ask(request_)
    assert one.at_once == [False]
    assert one.wire.closed == usual.wire.closed


async def test_a_status_that_is_none_ends_the_connection() -> None:
    one = Port([JSON], b"{}", 600)
    assert await one.ask(GET) == b""
    assert (one.at_once, one.wire.closed) == ([False], True)


async def test_a_request_is_not_held_by_itself_beyond_its_answer() -> None:
    one = Port([JSON], b"{}", 200)
    await one.ask(GET)
    assert AT_ONCE not in one.protocol.cycle.scope


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\r", b"\0"], ids=["crlf", "lf", "cr", "nul"])
async def test_no_header_can_begin_another_one(value: bytes) -> None:
    port = Port([JSON, (b"x-name", value)])
    assert await port.ask(GET) == b""
    assert port.wire.closed


async def test_who_does_not_read_is_waited_for() -> None:
    port = Port([JSON])
    port.protocol.pause_writing()
    assert await port.ask(GET) == b""
    port.protocol.resume_writing()
    for _ in range(20):
        await asyncio.sleep(0)
    assert b"".join(port.wire.pieces).startswith(b"HTTP/1.1 200")


async def test_who_left_is_told_nothing() -> None:
    port = Port([JSON])
    port.protocol.data_received(GET)
    port.wire.closed = True
    port.protocol.connection_lost(None)
    for _ in range(20):
        await asyncio.sleep(0)
    assert port.wire.pieces == []
    assert port.at_once == [False]


async def test_a_large_answer_goes_out_as_it_is_taken() -> None:
    port = Port([JSON], b"x" * 200_000)
    said = await port.ask(GET)
    assert said.endswith(b"x" * 200_000)
    assert port.at_once == [False]


async def test_requests_ahead_of_their_answers_are_answered_in_order() -> None:
    port = Port([JSON])
    said = await port.ask(GET, GET, GET)
    assert said.count(b"HTTP/1.1 200") == 3
    assert port.at_once == [True] * 3


async def test_a_server_that_stops_closes_behind_the_answer() -> None:
    port = Port([JSON])
    port.protocol.data_received(GET)
    port.protocol.shutdown()
    for _ in range(20):
        await asyncio.sleep(0)
    assert b"".join(port.wire.pieces).startswith(b"HTTP/1.1 200")
    assert port.wire.closed
