"""A process under pressure at its edge: slow crowds, endless bodies, too few files, too little processor."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.openai_wire import completion, encode
from tests.support.polling import eventually, eventually_true
from tests.support.process import serving
from tests.support.proxy import Proxy, answered, chat, openai_error
from tests.support.rawhttp import Connection, Truncated, request_bytes
from tests.support.upstream import Hold, Wait, answer, head, stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.process import ServerProcess
    from tests.support.rawhttp import Response
    from tests.support.upstream import ScriptedUpstream

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc and sets Linux limits"),
]

CHAT = "/v1/chat/completions"
MB = 1024 * 1024


def post(target: str, key: str, body: bytes) -> bytes:
    headers = [("content-type", "application/json"), ("authorization", f"Bearer {key}")]
    return request_bytes("POST", target, headers, body)


async def paces(proxy: Proxy, key: str, count: int = 300) -> list[float]:
    """Ask for the same hit again and again on one connection; return the seconds each took, sorted."""
    data, taken = post(CHAT, key, encode(chat())), []
    async with await Connection.open(proxy.url) as connection:
        for _ in range(count):
            began_s = time.perf_counter()
            connection.send(data)
            response = answered(await connection.read_response())
            assert (response.status, response.outcome) == (200, "hit")
            taken.append(time.perf_counter() - began_s)
    return sorted(taken)


def p99(taken: list[float]) -> float:
    return statistics.quantiles(taken, n=100)[98]


# Row 9.


@pytest.mark.quiet
async def test_five_hundred_slow_callers_are_ended_and_nobody_else_notices(
    upstream: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    environ = {"CACHEPROXY_SERVER__HEADER_TIMEOUT_S": "4", "CACHEPROXY_SERVER__BODY_TIMEOUT_S": "6"}
    whole = post(CHAT, key, encode(chat()))
    starts = [b"POST ", whole[:60], whole[:-20], post("/v1/files", key, b"x" * 1000)[:-900], b""]

    async def dawdle(connection: Connection, start: bytes) -> Response | None:
        connection.send(start)
        while start and not connection.heard:
            await asyncio.sleep(1.0)
            connection.send(b"x")
        with contextlib.suppress(Truncated):
            return await connection.read_response()
        return None

    async with serving(tmp_path, upstream.url, "--store", "memory://", environ=environ) as server:
        await server.proxy.fill(chat(), key=key)
        before = await paces(server.proxy, key)
        slow = [await Connection.open(server.proxy.url, timeout_s=30) for _ in range(500)]
        began_s = time.monotonic()
        ends = asyncio.gather(*(dawdle(one, starts[n % len(starts)]) for n, one in enumerate(slow)))
        during = await paces(server.proxy, key)
        refusals = await ends
        assert time.monotonic() - began_s < 14
        for n, refusal in enumerate(refusals):
            if starts[n % len(starts)]:
                assert refusal is not None
                assert refusal.status == 408
                openai_error(refusal, "request_timeout")
        assert p99(during) <= 2 * p99(before) + 0.02, (p99(before), p99(during))
        assert "Traceback" not in server.said


# Row 5.

PIECE = b"100000\r\n" + b" " * MB + b"\r\n"
CHUNKED = b"POST %b HTTP/1.1\r\nhost: a\r\nauthorization: Bearer sk-pour\r\ntransfer-encoding: chunked\r\n\r\n"


async def pour(url: str, start: bytes, count: int) -> tuple[bytes, int]:
    """Send up to `count` chunks of a megabyte, until the server answers; return that answer and how many went out."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    told, sent = asyncio.create_task(reader.read(65536)), 0
    try:
        with contextlib.suppress(ConnectionError):
            writer.write(start)
            while sent < count and not told.done():
                writer.write(PIECE)
                await writer.drain()
                sent += 1
            if sent == count:
                writer.write(b"0\r\n\r\n")
        async with asyncio.timeout(30):
            return await told, sent
    finally:
        told.cancel()
        writer.close()


class Watch:
    """The highest memory a process was seen at, above where it was."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._before = server.memory_bytes
        self.most = 0

    async def __aenter__(self) -> Watch:
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._task.cancel()

    async def _look(self) -> None:
        while True:
            self.most = max(self.most, self._server.memory_bytes - self._before)
            await asyncio.sleep(0.02)


async def test_endless_bodies_hold_no_more_memory_than_their_limit(
    upstream: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    environ = {"CACHEPROXY_SERVER__MAX_HELD_BODY_BYTES": str(96 * MB)}
    declared = CHUNKED.replace(b"transfer-encoding: chunked", b"content-length: 1073741824") % CHAT.encode()
    async with serving(tmp_path, upstream.url, "--store", "memory://", environ=environ) as server:
        url = server.proxy.url
        await server.proxy.fill(chat(), key=key)
        async with Watch(server) as one:
            answer, sent = await pour(url, CHUNKED % CHAT.encode(), 1024)
            assert b" 413 " in answer
            assert sent < 64
        assert one.most < 2 * 32 * MB + 16 * MB
        async with Watch(server) as refused:
            answer, sent = await pour(url, declared, 1024)
            assert b" 413 " in answer
        assert refused.most < 16 * MB
        async with Watch(server) as many:
            told = await asyncio.gather(*(pour(url, CHUNKED % CHAT.encode(), 40) for _ in range(12)))
        assert {one.split(b" ", 2)[1] for one, _ in told} <= {b"413", b"503"}
        assert many.most < 2 * 96 * MB + 32 * MB
        assert (await server.proxy.ask(chat(), key=key)).outcome == "hit"
    assert upstream.calls == 1


async def test_a_large_upload_passes_through_without_being_held(tmp_path: Path) -> None:
    taken = 0

    async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        await reader.readuntil(b"\r\n\r\n")
        tail = b""
        while not tail.endswith(b"0\r\n\r\n"):
            piece = await reader.read(MB)
            taken += len(piece)
            tail = (tail + piece)[-5:]
        writer.write(head(200, [("content-length", "2")]) + b"ok")
        await writer.drain()
        writer.close()

    backend = await asyncio.start_server(sink, "127.0.0.1", 0, limit=4 * MB)
    url = f"http://127.0.0.1:{backend.sockets[0].getsockname()[1]}/v1"
    async with backend, serving(tmp_path, url, "--store", "memory://") as server:
        async with Watch(server) as watch:
            answer, sent = await pour(server.proxy.url, CHUNKED % b"/v1/files", 1000)
        assert b" 200 " in answer
        assert sent == 1000
        assert taken >= 1000 * MB
        assert watch.most < 32 * MB


# Row 10.


@pytest.mark.quiet
async def test_many_readers_who_stall_hold_little_memory(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.always(stream(Wait(0), *[b"data: " + b"x" * 65_000 + b"\n\n"] * 1000))
    environ = {"CACHEPROXY_SERVER__WRITE_TIMEOUT_S": "4"}
    async with serving(tmp_path, upstream.url, "--store", "memory://", environ=environ) as server:
        readers = []
        async with Watch(server) as watch:
            for n in range(40):
                reader = await Connection.open(server.proxy.url)
                reader.pause()
                target = (CHAT, "/v1/audio/speech")[n % 2]
                reader.send(post(target, f"sk-{n}", encode(chat(f"Question {n}?", stream=True))))
                readers.append(reader)
            await eventually_true(
                lambda: all_left(upstream, 40), "all are cut and their backends let go", within_s=20.0
            )
        assert watch.most / 40 < 2.5 * MB  # the window of a flight, one piece being sent, and the transports' buffers
        for reader in readers:
            reader.leave()


async def all_left(upstream: ScriptedUpstream, count: int) -> bool:
    return sum(request.client_left_s is not None for request in upstream.requests) == count


# Row 14.

WORDS = {
    "one word of 1 MB": "a" * 1_000_000,
    "one word of 1 MB, not ASCII": "\u6a21" * 350_000,
    "100,000 tokens": "token " * 100_000,
    "1 MB of blanks": " " * 1_000_000,
    "1 MB of punctuation": "(" * 1_000_000,
}


@pytest.mark.quiet
@pytest.mark.parametrize("text", WORDS.values(), ids=WORDS)
async def test_an_endless_prompt_holds_up_nobody(upstream: ScriptedUpstream, tmp_path: Path, text: str) -> None:
    async with serving(tmp_path, upstream.url, "--store", "memory://") as server:
        assert (await server.proxy.ask(chat("Warm up."), key="sk-a")).status == 200
        asking = asyncio.create_task(server.proxy.ask(chat(text), key="sk-a"))
        waits: list[float] = []
        async with await Connection.open(server.proxy.url) as connection:
            while not asking.done() or len(waits) < 50:
                began_s = time.perf_counter()
                connection.send(request_bytes("GET", "/healthz"))
                assert (await connection.read_response("GET")).status == 200
                waits.append(time.perf_counter() - began_s)
                await asyncio.sleep(0.005)
        answered = await asking
        assert (answered.status, answered.outcome) == (200, "miss")
        assert float(answered.get("x-cacheproxy-lookup-ms") or "inf") < 3000 + 500
        assert p99(sorted(waits)) < 0.15, sorted(waits)[-5:]  # 0.05 on two quiet cores


# Load shedding.


@pytest.mark.quiet
async def test_what_is_shed_is_shed_at_once(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    release = asyncio.Event()
    upstream.always([Hold(release), *answer(completion("At last."))])
    environ = {"CACHEPROXY_SERVER__MAX_REQUESTS": "50"}
    async with serving(tmp_path, upstream.url, "--store", "memory://", environ=environ) as server:
        held = [await server.proxy.post(chat(f"Question {n}?"), key="sk-a") for n in range(50)]
        await eventually(lambda: upstream.calls == 50, "all permits are taken")
        data, taken = post(CHAT, "sk-a", encode(chat("One more?"))), list[float]()
        async with await Connection.open(server.proxy.url) as connection:
            for _ in range(300):
                began_s = time.perf_counter()
                connection.send(data)
                response = await connection.read_response()
                taken.append(time.perf_counter() - began_s)
                assert (response.status, response.get("retry-after")) == (503, "1")
        assert p99(sorted(taken)) <= 0.05
        release.set()
        assert {(await one.read_response()).status for one in held} == {200}
        for one in held:
            one.leave()


# Row 63.


async def test_too_few_files_for_the_crowd_is_a_refusal_and_passes(
    upstream: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    under = ("sh", "-c", 'ulimit -n 256; exec "$@"', "sh")
    async with serving(tmp_path, upstream.url, under=under) as server:
        proxy = server.proxy
        await proxy.fill(chat(), key=key)
        crowd = [await Connection.open(proxy.url) for _ in range(400)]
        await eventually(lambda: sum(connection.heard for connection in crowd) > 250, "most are told")
        await asyncio.sleep(1.0)
        refused = [connection for connection in crowd if connection.heard]
        assert 250 < len(refused) < 350
        for connection in refused:
            response = await connection.read_response("GET")
            assert (response.status, response.get("retry-after")) == (503, "1")
            openai_error(response, "overloaded")
        cpu_s, began_s = server.cpu_s, time.monotonic()
        await asyncio.sleep(2.0)
        assert server.cpu_s - cpu_s < 0.5 * (time.monotonic() - began_s), "it spins"
        for connection in [one for one in crowd if one not in refused][:40]:
            connection.send(post(CHAT, key, encode(chat(f"While it is full, {id(connection)}?"))))
            assert (await connection.read_response()).status == 200
        for connection in crowd:
            connection.leave()
        await asyncio.sleep(0.5)
        assert (await proxy.ask(chat(), key=key)).outcome == "hit"
        assert "Traceback" not in server.said


# Row 64.


@pytest.mark.quiet
async def test_a_starved_process_answers_or_sheds_and_health_stays(
    upstream: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    if shutil.which("taskset") is None:
        pytest.skip("needs taskset")
    upstream.always(answer(encode({"object": "list"}), headers=[]))
    core = str(min(os.sched_getaffinity(0)))
    environ = {"CACHEPROXY_SERVER__MAX_REQUESTS": "64"}
    async with (
        serving(
            tmp_path, upstream.url, "--store", "memory://", environ=environ, under=("taskset", "-c", core)
        ) as server,
        busy(core, 4),
    ):
        proxy = server.proxy

        async def waves() -> list[Any]:
            """Ask 300 at once, three times: health is asked a few times in each."""
            answers: list[Any] = []
            for wave in range(3):
                asked = (proxy.ask(chat(f"Question {wave} {n}?", stream=n % 2 == 0), key=key) for n in range(300))
                answers += await asyncio.gather(*asked, return_exceptions=True)
            return answers

        load = asyncio.create_task(waves())
        healthy, shed_s = 0, 0.0
        while not load.done():
            began_s = time.monotonic()
            assert (await proxy.call("GET", "/healthz")).status == 200
            healthy, shed_s = healthy + 1, max(shed_s, time.monotonic() - began_s)
            await asyncio.sleep(0.05)
        answers = await load
        assert healthy > 3
        assert shed_s < 10
        assert {getattr(one, "status", repr(one)) for one in answers} <= {200, 503}
        assert any(getattr(one, "status", 0) == 200 for one in answers)


@contextlib.asynccontextmanager
async def busy(core: str, count: int) -> AsyncIterator[None]:
    """Keep one core busy, for a minute at most."""
    loop = "import time; end = time.monotonic() + 60\nwhile time.monotonic() < end: pass"
    hogs = [
        await asyncio.create_subprocess_exec("taskset", "-c", core, sys.executable, "-c", loop) for _ in range(count)
    ]
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            await hog.wait()
