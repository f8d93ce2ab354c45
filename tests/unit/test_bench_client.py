from __future__ import annotations

import asyncio
import time

import pytest

from cacheproxy.bench.asking import Ask, encode
from cacheproxy.bench.client import Connections, Target, read_target
from cacheproxy.bench.upstream import Pace, Upstream
from cacheproxy.errors import ConfigError
from tests.support.upstream import RESET, ScriptedUpstream, Wait, stream


def target(port: int) -> Target:
    return Target(host="127.0.0.1", port=port, path="/v1/chat/completions")


def request(*, streamed: bool = False, tokens_out: int = 0) -> bytes:
    ask = Ask(meant="", text="?", stream=streamed)
    return encode(ask, host="x", path="/v1/chat/completions", key="k", tokens_out=tokens_out, more={})


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_scripted_backend_answers_whole_and_streamed_over_one_connection(streamed: bool) -> None:
    async with Upstream(Pace()) as upstream:
        connections = Connections(target(upstream.port), timeout_s=5)
        for _ in range(3):
            answer = await connections.ask(request(streamed=streamed))
            assert (answer.status, answer.error) == (200, "")
        assert len(upstream.connections) == 1
        connections.close()


async def test_the_scripted_backend_takes_its_time() -> None:
    async with Upstream(Pace(ttft_ms=60, token_ms=10, tokens=12, spread=0.0)) as upstream:
        connections = Connections(target(upstream.port), timeout_s=5)
        began = time.perf_counter()
        answer = await connections.ask(request(streamed=True))
        assert 0.055 <= answer.first_s - began < answer.done_s - began - 0.08
        connections.close()


async def test_the_scripted_backend_answers_as_long_as_it_is_told_in_so_many_slots() -> None:
    async with Upstream(Pace(token_ms=5, spread=0.0, slots=1)) as upstream:
        connections = Connections(target(upstream.port), timeout_s=5)
        began = time.perf_counter()
        await asyncio.gather(*(connections.ask(request(tokens_out=11)) for _ in range(4)))
        assert time.perf_counter() - began >= 4 * 0.05
        connections.close()


async def test_failures_have_kinds() -> None:
    async with ScriptedUpstream() as backend:
        port = backend.port
        connections = Connections(target(port), timeout_s=0.1)
        backend.play(stream(b"data: x\n\n", RESET), stream(b"data: x\n\n", Wait(5)))
        assert (await connections.ask(request())).error == "closed"
        assert (await connections.ask(request())).error == "timeout"
        assert (await connections.ask(request())).status == 200
        connections.close()
    assert (await Connections(target(port), timeout_s=0.1).ask(request())).error == "connect"


def test_only_this_machine_is_a_target_unless_one_insists() -> None:
    assert read_target("http://127.0.0.1:8080/v1", anywhere=False) == target(8080)
    assert read_target("http://localhost:8080", anywhere=False).path == "/v1/chat/completions"
    with pytest.raises(ConfigError, match="--allow-remote"):
        read_target("https://api.example.org/v1", anywhere=False)
    assert read_target("https://api.example.org/v1", anywhere=True).port == 443


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://127.0.0.1/", "http://", "http://127.0.0.1:99999/v1"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="is no http"):
        read_target(url, anywhere=False)


async def test_the_scripted_backend_tells_what_it_was_asked_for() -> None:
    async with Upstream(Pace()) as upstream:
        connections = Connections(target(upstream.port), timeout_s=5)
        for streamed in (False, True):
            await connections.ask(request(streamed=streamed))
        assert upstream.answered == 2
        assert (await connections.ask(b"GET /answered HTTP/1.1\r\nhost: x\r\n\r\n")).status == 200
        assert upstream.answered == 2
        connections.close()
