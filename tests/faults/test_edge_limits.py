"""Limits of the edge: readers who stall, refusals while a body is still being sent, caps."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, cast

import httpx2
import openai
import pytest
import pytest_asyncio
import uvloop

from tests.support.limits import CHAT, MB, post
from tests.support.openai_wire import completion, encode
from tests.support.polling import eventually
from tests.support.proxy import Proxy, chat, openai_error, proxy_settings, started
from tests.support.rawhttp import Connection, Truncated, request_bytes
from tests.support.upstream import Hold, Wait, answer, stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cacheproxy.http.protocol import CappedProtocol
    from tests.support.upstream import ScriptedUpstream, Step

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    # The hook that replaces this fixture counts for the whole session, not for one module.
    pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture:pytest.PytestDeprecationWarning"),
]


@pytest.fixture(scope="module")
def event_loop_policy() -> uvloop.EventLoopPolicy:
    """Flow control and half-closed connections are the loop's own: this is the one that `serve` runs on."""
    return uvloop.EventLoopPolicy()


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
