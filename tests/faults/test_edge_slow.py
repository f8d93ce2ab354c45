"""Limits of the edge: slow heads, slow bodies, and bytes out of turn."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
import uvloop

from tests.support.limits import CHAT, FILES, HASTY, MB, post
from tests.support.openai_wire import completion, encode, events
from tests.support.polling import eventually
from tests.support.proxy import QUESTION, Proxy, answered, chat, openai_error, proxy_settings, started
from tests.support.rawhttp import Connection, Truncated, request_bytes
from tests.support.upstream import Hold, answer, head, stream

if TYPE_CHECKING:
    from tests.support.rawhttp import Response
    from tests.support.upstream import ScriptedUpstream

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    # The hook that replaces this fixture counts for the whole session, not for one module.
    pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture:pytest.PytestDeprecationWarning"),
]
EVENTS = events("one two three four")


@pytest.fixture(scope="module")
def event_loop_policy() -> uvloop.EventLoopPolicy:
    """Flow control and half-closed connections are the loop's own: this is the one that `serve` runs on."""
    return uvloop.EventLoopPolicy()


async def trickle(connection: Connection, data: bytes, pause_s: float = 0.05) -> None:
    """Send byte by byte for as long as the server listens."""
    for position in range(len(data)):
        connection.send(data[position : position + 1])
        await asyncio.sleep(pause_s)
        if connection.heard:
            return


def assert_late(response: Response) -> None:
    assert response.status == 408, response.body
    assert openai_error(response, "request_timeout")["type"] == "invalid_request_error"
    assert response.get("connection") == "close"


# Row 9: slow heads.


@pytest.mark.parametrize("sent", [b"P", b"POST /v1/chat/completions HTT", b"GET /healthz HTTP/1.1\r\nhost: a\r\nx-"])
async def test_a_head_that_stops_is_a_408_and_the_end(hasty: Proxy, sent: bytes) -> None:
    async with await Connection.open(hasty.url) as connection:
        connection.send(sent)
        assert_late(await connection.read_response())
        await connection.wait_end()


async def test_a_head_that_trickles_is_a_408_and_the_end(hasty: Proxy, key: str) -> None:
    async with await Connection.open(hasty.url) as connection:
        await trickle(connection, post(CHAT, key, encode(chat())))
        assert_late(await connection.read_response())
        await connection.wait_end()


@pytest.mark.parametrize("sent", [b"", b"\r\n"])
async def test_a_connection_that_says_nothing_is_closed_without_a_word(hasty: Proxy, sent: bytes) -> None:
    async with await Connection.open(hasty.url, timeout_s=5) as connection:
        connection.send(sent)
        await connection.wait_end()
        assert connection.ended


async def test_a_later_request_has_a_deadline_of_its_own(hasty: Proxy, key: str) -> None:
    async with await Connection.open(hasty.url) as connection:
        for _ in range(4):
            await asyncio.sleep(0.2)
            connection.send(post(CHAT, key, encode(chat())))
            assert (await connection.read_response()).status == 200
        await asyncio.sleep(0.3)
        connection.send(b"POST /v1")
        assert_late(await connection.read_response())
        await connection.wait_end()


async def test_an_idle_connection_is_closed_without_a_word(hasty: Proxy) -> None:
    async with await Connection.open(hasty.url, timeout_s=5) as connection:
        connection.send(request_bytes("GET", "/healthz"))
        assert (await connection.read_response()).status == 200
        began_s = time.monotonic()
        await connection.wait_end()
        assert connection.ended
        assert time.monotonic() - began_s > HASTY["keep_alive_s"]


async def test_the_admin_port_has_the_same_deadlines(hasty: Proxy) -> None:
    async with await Connection.open(hasty.admin_url) as connection:
        connection.send(b"GET /metr")
        assert_late(await connection.read_response())
        await connection.wait_end()


# Row 9: slow bodies.


@pytest.mark.parametrize("target", [CHAT, FILES, "/v1/cache/feedback"])
async def test_a_body_that_stops_is_a_408_and_the_end(
    hasty: Proxy, upstream: ScriptedUpstream, key: str, target: str
) -> None:
    data = post(target, key, encode(chat()))
    async with await Connection.open(hasty.url) as connection:
        connection.send(data[:-5])
        assert_late(await connection.read_response())
        await connection.wait_end()
    assert upstream.calls == 0


@pytest.mark.parametrize("target", [CHAT, FILES])
async def test_a_body_that_trickles_is_a_408_and_the_end(
    hasty: Proxy, upstream: ScriptedUpstream, key: str, target: str
) -> None:
    start, _, body = post(target, key, encode(chat(QUESTION * 20))).partition(b"\r\n\r\n")
    async with await Connection.open(hasty.url) as connection:
        connection.send(start + b"\r\n\r\n")
        await trickle(connection, body)
        assert_late(await connection.read_response())
        await connection.wait_end()
    assert upstream.calls == 0


async def test_a_chunked_body_that_never_ends_is_a_408(hasty: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    async with await Connection.open(hasty.url) as connection:
        connection.send(f"POST {CHAT} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        await trickle(connection, b"1\r\n{\r\n" * 100, 0.01)
        assert_late(await connection.read_response())
        await connection.wait_end()


async def test_a_long_upload_at_a_steady_pace_is_no_fault(hasty: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    piece, count = b"u" * 8192, 24
    async with await Connection.open(hasty.url) as connection:
        connection.send(
            f"POST {FILES} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n"
            f"content-length: {len(piece) * count}\r\n\r\n".encode()
        )
        began_s = time.monotonic()
        for _ in range(count):
            await asyncio.sleep(0.06)
            connection.send(piece)
        response = await connection.read_response()
        assert time.monotonic() - began_s > 2 * HASTY["body_timeout_s"]
    assert (response.status, len(response.body)) == (200, len(piece) * count)


async def test_a_backend_that_takes_an_upload_slowly_is_not_the_callers_fault(
    tmp_path_factory: pytest.TempPathFactory, key: str
) -> None:
    size, taken = 4 * MB, 0

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        await reader.readuntil(b"\r\n\r\n")
        while taken < size:
            taken += len(await reader.read(128 * 1024))
            await asyncio.sleep(0.06)
        writer.write(head(200, [("content-length", "0")]))
        await writer.drain()
        writer.close()

    backend = await asyncio.start_server(take, "127.0.0.1", 0, limit=32 * 1024)
    port = backend.sockets[0].getsockname()[1]
    settings = proxy_settings(
        f"http://127.0.0.1:{port}/v1", tmp_path_factory.mktemp("data"), server=HASTY, store={"url": "memory://"}
    )
    async with backend, started(settings) as proxy, await Connection.open(proxy.url) as connection:
        began_s = time.monotonic()
        connection.send(post(FILES, key, b"u" * size))
        assert (await connection.read_response()).status == 200
        assert taken == size
        assert time.monotonic() - began_s > HASTY["body_timeout_s"]


async def test_a_body_we_have_not_asked_for_yet_is_not_late(
    upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory, key: str
) -> None:
    release = asyncio.Event()
    upstream.play([Hold(release), *answer(completion("First."))])
    settings = proxy_settings(
        upstream.url,
        tmp_path_factory.mktemp("data"),
        server=HASTY,
        upstream={"max_connections": 1},
        store={"url": "memory://"},
    )
    async with started(settings) as proxy:
        first = await proxy.post(chat(), key=key)
        await eventually(lambda: upstream.calls == 1, "the only connection is taken")
        async with await Connection.open(proxy.url) as second:
            headers = [("authorization", f"Bearer {key}"), ("content-type", "image/png"), ("expect", "100-continue")]
            data = request_bytes("POST", FILES, headers, b"u" * 1000)
            second.send(data[:-1000])
            await asyncio.sleep(1.5)
            assert not second.heard
            release.set()
            assert (await second.read_head()).status == 100
            second.send(data[-1000:])
            assert (await second.read_response()).status == 200
        assert (await first.read_response()).status == 200
        first.leave()


async def test_a_slow_answer_is_not_the_callers_fault(hasty: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    release = asyncio.Event()
    upstream.always(stream(EVENTS[0], Hold(release), *EVENTS[1:]))
    exchange = await hasty.begin(chat(stream=True), key=key)
    await exchange.until(EVENTS[0])
    await asyncio.sleep(1.2)  # longer than any of the caller's deadlines
    release.set()
    assert (await exchange.rest()).complete


@pytest.mark.parametrize("target", ["/healthz", "/nowhere"])
async def test_a_body_nobody_asked_for_does_not_hold_the_connection(hasty: Proxy, target: str) -> None:
    async with await Connection.open(hasty.url, timeout_s=5) as connection:
        connection.send(f"GET {target} HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n".encode())
        assert (await connection.read_response()).status in (200, 404)
        await trickle(connection, b"x" * 200)
        await connection.wait_end()


# Out of turn.


async def test_half_a_request_waits_for_the_answer_before_it(
    hasty: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    release = asyncio.Event()
    upstream.play(stream(EVENTS[0], Hold(release), *EVENTS[1:]))
    async with await Connection.open(hasty.url) as connection:
        connection.send(post(CHAT, key, encode(chat(stream=True))) + b"POST /v1/cha")
        first = await connection.exchange()
        await first.until(EVENTS[0])
        await asyncio.sleep(0.8)  # twice the time for a head
        release.set()
        whole = await first.rest()
        assert (whole.complete, whole.body) == (True, b"".join(EVENTS))
        assert_late(await connection.read_response())
        await connection.wait_end()


RUBBISH = {
    "no HTTP": b"\x00\x01rubbish\r\n\r\n",
    "two lengths": b"POST /v1/x HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "bad chunk": b"POST /v1/x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    "no host": b"GET /v1/x HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("rubbish", RUBBISH.values(), ids=RUBBISH)
async def test_a_refusal_never_overtakes_the_answer_before_it(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, rubbish: bytes
) -> None:
    release = asyncio.Event()
    upstream.play(stream(EVENTS[0], Hold(release), *EVENTS[1:]), answer(completion("Second.")))
    first, second = (post(CHAT, key, encode(one)) for one in (chat(stream=True), chat("And the second?")))
    async with await Connection.open(proxy.url) as connection:
        connection.send(first + second + rubbish + first)
        exchange = await connection.exchange()
        await exchange.until(EVENTS[0])
        release.set()
        assert (await exchange.rest()).body == b"".join(EVENTS)
        assert answered(await connection.read_response()).content == "Second."
        refused = await connection.read_response()
        assert refused.status == 400
        openai_error(refused)
        await connection.wait_end()
        assert connection.ended
    assert upstream.calls == 2


async def test_a_body_that_breaks_after_its_answer_began_breaks_the_answer(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    async with await Connection.open(proxy.url) as connection:
        connection.send(b"GET /healthz HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
        assert (await connection.read_response()).status == 200
        connection.send(b"zz\r\n\r\nGET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
        await connection.wait_end()
        assert connection.ended


async def test_leaving_with_requests_in_line_ends_the_one_being_answered(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    upstream.always(stream(EVENTS[0], Hold(asyncio.Event())))
    async with await Connection.open(proxy.url) as connection:
        one = post(CHAT, key, encode(chat(stream=True)))
        connection.send(one + one + one)
        exchange = await connection.exchange()
        await exchange.until(EVENTS[0])
    await eventually(lambda: upstream.requests[0].client_left_s is not None, "the backend is let go", within_s=1.0)
    assert upstream.calls == 1


async def test_requests_ahead_of_their_answers_have_a_limit(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    async with await Connection.open(proxy.url) as connection:
        connection.send(request_bytes("GET", "/v1/models", [("authorization", f"Bearer {key}")]) * 500)
        statuses = []
        try:
            while True:
                statuses.append((await connection.read_response("GET")).status)
        except Truncated:
            pass
    assert set(statuses[:-1]) == {200}
    assert 60 < len(statuses) < 70
    assert statuses[-1] == 400
    assert upstream.calls == len(statuses) - 1
