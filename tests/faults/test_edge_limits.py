"""Callers who are slow, many or out of turn: each is cut or refused in time, and nobody else notices."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, cast

import httpx2
import openai
import pytest
import pytest_asyncio
import uvloop

from tests.support.openai_wire import completion, encode, events
from tests.support.polling import eventually
from tests.support.proxy import QUESTION, Proxy, answered, chat, openai_error, proxy_settings, started
from tests.support.rawhttp import Connection, Truncated, request_bytes
from tests.support.upstream import Hold, Wait, answer, head, stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cacheproxy.http.protocol import CappedProtocol
    from tests.support.rawhttp import Response
    from tests.support.upstream import ScriptedUpstream, Step

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    # The hook that replaces this fixture counts for the whole session, not for one module.
    pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture:pytest.PytestDeprecationWarning"),
]

CHAT, FILES = "/v1/chat/completions", "/v1/files"
EVENTS = events("one two three four")
HASTY = {
    "header_timeout_s": 0.4,
    "body_timeout_s": 0.6,
    "min_body_bytes_per_s": 2000,
    "write_timeout_s": 0.8,
    "keep_alive_s": 0.7,
    "max_body_bytes": 4 * 1024 * 1024,
}
MB = 1024 * 1024


@pytest.fixture(scope="module")
def event_loop_policy() -> uvloop.EventLoopPolicy:
    """Flow control and half-closed connections are the loop's own: this is the one that `serve` runs on."""
    return uvloop.EventLoopPolicy()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hasty(module_upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Proxy]:
    """A proxy with little patience."""
    settings = proxy_settings(
        module_upstream.url, tmp_path_factory.mktemp("data"), server=HASTY, store={"url": "memory://"}
    )
    async with started(settings) as live:
        yield live


@pytest_asyncio.fixture(loop_scope="module")
async def narrow(upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Proxy]:
    """A proxy with room for few."""
    settings = proxy_settings(
        upstream.url,
        tmp_path_factory.mktemp("data"),
        server={"max_connections": 4, "max_requests": 2, "max_held_body_bytes": 100_000},
        store={"url": "memory://"},
    )
    async with started(settings) as live:
        yield live


def post(target: str, key: str, body: bytes, *headers: tuple[str, str]) -> bytes:
    sent = [("content-type", "application/json"), ("authorization", f"Bearer {key}"), *headers]
    return request_bytes("POST", target, sent, body)


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


# Row 10: readers who stall.


def endless(count: int, piece: bytes = b"data: " + b"x" * 65_000 + b"\n\n") -> list[Step]:
    return stream(Wait(0), *[piece] * count)


@pytest.mark.parametrize("target", [CHAT, "/v1/audio/speech"])
async def test_a_stream_nobody_reads_is_cut_and_the_backend_let_go(
    hasty: Proxy, upstream: ScriptedUpstream, key: str, target: str
) -> None:
    upstream.play(endless(1000))
    async with await Connection.open(hasty.url) as connection:
        connection.pause()
        connection.send(post(target, key, encode(chat(stream=True))))
        await eventually(lambda: upstream.calls == 1, "the backend is asked")
        await eventually(lambda: upstream.requests[0].client_left_s is not None, "the backend is let go", within_s=8.0)
        assert upstream.requests[0].taken_bytes < 24 * MB  # the kernel's buffers, mostly
        connection.resume()
        with pytest.raises(Truncated):
            await (await connection.exchange()).until(b"never")


@pytest.mark.parametrize("whole", [False, True], ids=["stream", "whole"])
async def test_no_more_than_256_kib_waits_for_one_reader(
    upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory, key: str, whole: bool
) -> None:
    from cacheproxy.serving import running

    upstream.play(answer(b"x" * 64 * MB, content_type="audio/mpeg") if whole else endless(1000))
    settings = proxy_settings(upstream.url, tmp_path_factory.mktemp("data"), store={"url": "memory://"})
    async with running(settings) as live, await Connection.open(live.url) as connection:
        connection.pause()
        connection.send(post("/v1/audio/speech" if whole else CHAT, key, encode(chat(stream=not whole))))
        [served] = live.house.edge.door.connections
        waiting = cast("CappedProtocol", served)
        most = 0
        began_s = time.monotonic()
        while time.monotonic() - began_s < 1.0:
            most = max(most, waiting.transport.get_write_buffer_size())
            await asyncio.sleep(0)
        assert waiting.flow.write_paused
        assert 0 < most <= 256 * 1024


async def test_a_whole_answer_nobody_reads_is_cut(hasty: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    upstream.always(answer(b"x" * 40 * MB, content_type="audio/mpeg"))
    async with await Connection.open(hasty.url) as connection:
        connection.pause()
        connection.send(post("/v1/audio/speech", key, b"{}", ("connection", "close")))
        await eventually(lambda: upstream.requests[:1] != [], "the backend is asked")
        await asyncio.sleep(2.0)
        connection.resume()
        response = await connection.read_response()
        assert not response.complete


async def test_a_reader_who_is_merely_slow_gets_everything(hasty: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    upstream.always(answer(b"x" * 12 * MB, content_type="audio/mpeg"))
    async with await Connection.open(hasty.url) as connection:
        connection.send(post("/v1/audio/speech", key, b"{}"))
        for _ in range(8):
            connection.pause()
            await asyncio.sleep(0.25)
            connection.resume()
            await asyncio.sleep(0.01)
        response = await connection.read_response()
        assert (response.complete, len(response.body)) == (True, 12 * MB)


# Row 5: a refusal is told to a caller who is still sending.


async def test_official_clients_see_the_413_of_a_body_they_are_still_sending(hasty: Proxy, key: str) -> None:
    async with openai.AsyncOpenAI(api_key=key, base_url=f"{hasty.url}/v1", max_retries=0, timeout=20) as client:
        for _ in range(3):
            with pytest.raises(openai.APIStatusError) as refused:
                await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "long " * (2 * MB)}]
                )
            assert refused.value.status_code == 413
    async with httpx2.AsyncClient() as plain:

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(200):
                yield b" " * 65_536

        refusal = await plain.post(f"{hasty.url}{CHAT}", content=pieces())
        assert refusal.status_code == 413


async def test_a_refused_caller_who_never_stops_sending_is_cut(hasty: Proxy) -> None:
    async with await Connection.open(hasty.url, timeout_s=8) as connection:
        connection.send(f"POST {CHAT} HTTP/1.1\r\nhost: a\r\ncontent-length: 999999999\r\n\r\n".encode())
        assert (await connection.read_response()).status == 413
        began_s = time.monotonic()
        while not connection.broken:
            connection.send(b"x" * 1000)
            await asyncio.sleep(0.02)
            assert time.monotonic() - began_s < 5


# Caps.


async def test_one_connection_too_many_is_refused_at_once(narrow: Proxy) -> None:
    connections = [await Connection.open(narrow.url) for _ in range(4)]
    for connection in connections:
        connection.send(request_bytes("GET", "/healthz"))
        assert (await connection.read_response("GET")).status == 200
    for _ in range(20):
        async with await Connection.open(narrow.url) as refused:
            response = await refused.read_response("GET")
            assert openai_error(response, "overloaded")
            assert (response.status, response.get("retry-after")) == (503, "1")
            await refused.wait_end()
    connections[0].leave()
    await eventually_served(narrow)
    for connection in connections:
        connection.leave()


async def eventually_served(proxy: Proxy) -> None:
    for _ in range(200):
        if (await proxy.call("GET", "/healthz")).status == 200:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("never served again")


async def test_one_request_too_many_is_shed_and_health_is_not(
    narrow: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    release = asyncio.Event()
    upstream.always([Hold(release), *answer(completion("At last."))])
    held = [await narrow.post(chat(f"Question {n}?"), key=key) for n in range(2)]
    await eventually(lambda: upstream.calls == 2, "two are on their way")
    for target in (CHAT, "/v1/models", "/v1/cache/feedback"):
        began_s = time.monotonic()
        shed = await narrow.ask(chat("One more?"), key=key, target=target)
        assert time.monotonic() - began_s < 0.5
        shed.assert_problem(503, "overloaded")
        assert shed.get("retry-after") == "1"
    for target in ("/healthz", "/readyz"):
        assert (await narrow.call("GET", target)).status == 200
    release.set()
    for connection in held:
        assert (await connection.read_response()).status == 200
        connection.leave()
    assert (await narrow.ask(chat("And now?"), key=key)).status == 200


async def test_bodies_beyond_the_memory_for_them_are_refused(
    narrow: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    release = asyncio.Event()
    upstream.play([Hold(release), *answer(completion("At last."))])
    first = await narrow.post(chat("a" * 60_000), key=key)
    await eventually(lambda: upstream.calls == 1, "the first is on its way")
    (await narrow.ask(chat("b" * 60_000), key=key)).assert_problem(503, "overloaded")
    assert (await narrow.ask(chat("c" * 20_000), key=key)).status == 200
    release.set()
    assert (await first.read_response()).status == 200
    first.leave()
    assert (await narrow.ask(chat("b" * 60_000), key=key)).status == 200


async def test_one_address_has_its_own_cap(
    upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = proxy_settings(
        upstream.url,
        tmp_path_factory.mktemp("data"),
        server={"max_connections_per_client": 2, "host": "0.0.0.0"},
        store={"url": "memory://"},
    )
    async with started(settings) as proxy:
        crowd = [await Connection.open(proxy.url) for _ in range(2)]
        for connection in crowd:
            connection.send(request_bytes("GET", "/healthz"))
            assert (await connection.read_response("GET")).status == 200
        async with await Connection.open(proxy.url) as refused:
            assert (await refused.read_response("GET")).status == 503
        port = int(proxy.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
        writer.write(request_bytes("GET", "/healthz", [("connection", "close")]))
        assert b" 200 " in await reader.readline()
        writer.close()
        for connection in crowd:
            connection.leave()


async def test_the_admin_page_counts_what_was_cut(hasty: Proxy) -> None:
    async with await Connection.open(hasty.url) as connection:
        connection.send(b"rubbish\r\n\r\n")
        await connection.read_response()
    async with await Connection.open(hasty.admin_url) as connection:
        connection.send(request_bytes("GET", "/metrics"))
        told = (await connection.read_response("GET")).body.decode()
    assert 'cacheproxy_connections_cut_total{reason="invalid_http"}' in told
    assert "cacheproxy_requests_in_flight 0.0" in told
    assert "cacheproxy_held_body_bytes 0.0" in told
