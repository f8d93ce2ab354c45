"""Callers of HTTP/1.0: answers grow at their own pace, end with the connection, and a cut is not taken for the end."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from cacheproxy.http.exchange import _PIECE_BYTES
from tests.support.openai_wire import encode, events
from tests.support.polling import eventually
from tests.support.proxy import CHAT, chat
from tests.support.rawhttp import Connection, request_bytes
from tests.support.upstream import CUT, Hold, Send, Wait, answer, head, stream

if TYPE_CHECKING:
    from tests.support.proxy import Proxy
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

FILE = "/v1/files/f/content"
MIB = b"x" * (1 << 20)


def old(method: str, target: str, key: str, body: bytes | None = None) -> bytes:
    headers = [("authorization", f"Bearer {key}"), ("content-type", "application/json"), ("connection", "keep-alive")]
    return request_bytes(method, target, headers, body).replace(b"HTTP/1.1\r\n", b"HTTP/1.0\r\n", 1)


@pytest.mark.parametrize("target", [FILE, CHAT])
async def test_a_stream_comes_as_it_grows_and_ends_with_the_connection(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, target: str
) -> None:
    hold, parts = asyncio.Event(), events("Voilà 🗼")
    upstream.always(stream(parts[0], Hold(hold), *parts[1:]))
    async with await Connection.open(proxy.url) as connection:
        connection.send(old("POST", target, key, encode(chat(stream=True))))
        exchange = await connection.exchange()
        assert await exchange.until(b"\n\n") == parts[0]
        hold.set()
        live = await exchange.rest()
    assert (live.status, live.body) == (200, b"".join(parts))
    assert (live.get("transfer-encoding"), live.get("content-length"), live.get("connection")) == (None, None, "close")


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("status", [200, 204, 304])
async def test_an_answer_without_a_body_ends_at_once(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, method: str, status: int
) -> None:
    upstream.always([Send(head(status, [("connection", "close")])), CUT])
    async with await Connection.open(proxy.url) as connection:
        connection.send(old(method, FILE, key))
        live = await connection.read_response(method)
        assert (live.status, live.body, live.get("transfer-encoding")) == (status, b"", None)
        await connection.wait_end()


async def test_a_long_body_is_not_held(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    upstream.always(stream(*[MIB] * 64, Wait(0)))
    async with await Connection.open(proxy.url) as connection:
        connection.send(old("GET", FILE, key))
        exchange = await connection.exchange("GET")
        connection.pause()
        await asyncio.sleep(0.5)
        assert 0 < upstream.requests[0].taken_bytes < 32 << 20, "the backend waits for the caller"
        connection.resume()
        assert len((await exchange.rest()).body) == 64 << 20


class Reader(asyncio.Protocol):
    """Tells how a connection ended: None for a FIN, else the error."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set_result(exc)


@pytest.mark.parametrize("target", [FILE, CHAT])
async def test_a_cut_of_unknown_length_is_a_reset(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, target: str
) -> None:
    hold = asyncio.Event()
    upstream.always(stream(events("one")[0], Hold(hold), CUT))
    host, _, port = proxy.url.removeprefix("http://").rpartition(":")
    transport, reader = await asyncio.get_running_loop().create_connection(Reader, host, int(port))
    transport.write(old("POST", target, key, encode(chat(stream=True))))
    await eventually(lambda: b"data:" in reader.data, "the first event")
    hold.set()
    assert isinstance(await asyncio.wait_for(reader.ended, 5), ConnectionResetError)


async def test_a_known_length_is_kept_and_tells_a_cut(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    upstream.always([*answer(MIB, content_type="audio/mpeg", length=len(MIB) + 1), CUT])
    async with await Connection.open(proxy.url) as connection:
        connection.send(old("GET", FILE, key))
        live = await connection.read_response("GET")
    assert (live.get("content-length"), live.complete) == (str(len(MIB) + 1), False)
    assert len(live.body) > len(MIB) - 4 * _PIECE_BYTES


async def test_an_answer_that_is_broken_off_is_no_error_of_the_server(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.always(stream(events("one")[0], CUT))
    with caplog.at_level(logging.WARNING):
        for target in (FILE, CHAT):
            live = await proxy.ask(chat(stream=True), key=key, target=target)
            assert (live.status, live.complete) == (200, False)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("uvicorn")] == []
