"""More comes than can be answered: who is told so, and who is served all the same. The tests make the loop late."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
import uvloop

from tests.support.openai_wire import completion, encode
from tests.support.polling import eventually, eventually_true
from tests.support.proxy import QUESTION, Proxy, answered, chat, proxy_settings, started
from tests.support.rawhttp import Connection, request_bytes
from tests.support.upstream import Hold, answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.rawhttp import Response
    from tests.support.upstream import ScriptedUpstream

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture:pytest.PytestDeprecationWarning"),
]

CROWD = 20
MAX_LAG_MS = 50
SHED = ("bypass", "overloaded")


@pytest.fixture(scope="module")
def event_loop_policy() -> uvloop.EventLoopPolicy:
    """The loop that `serve` runs on."""
    return uvloop.EventLoopPolicy()


@pytest_asyncio.fixture(loop_scope="module")
async def proxy(upstream: ScriptedUpstream, tmp_path: Path) -> AsyncIterator[Proxy]:
    settings = proxy_settings(upstream.url, tmp_path, server={"max_lag_ms": MAX_LAG_MS}, store={"url": "memory://"})
    async with started(settings) as live:
        yield live


def post(text: str, key: str, *headers: tuple[str, str]) -> bytes:
    sent = [("content-type", "application/json"), ("authorization", f"Bearer {key}"), *headers]
    return request_bytes("POST", "/v1/chat/completions", sent, encode(chat(text)))


async def make_late(times: int) -> None:
    """Hold the event loop up, again and again."""
    for _ in range(times):
        time.sleep(3 * MAX_LAG_MS / 1000)  # noqa: ASYNC251 - the lateness that is to be seen
        await asyncio.sleep(0.001)


async def crowd(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> tuple[list[Connection], asyncio.Event]:
    """Keep one question and have many others wait for the backend, until the event is set."""
    release = asyncio.Event()
    upstream.always(answer(completion("Kept.")))
    assert (await proxy.ask(chat(QUESTION), key=key)).outcome == "miss"
    before = upstream.calls
    upstream.always([Hold(release), *answer(completion("At last."))])
    held = [await proxy.post(chat(f"Who built the bridge number {n}?"), key=key) for n in range(CROWD)]
    await eventually(lambda: upstream.calls == before + CROWD, "all are on their way")
    return held, release


def assert_shed(response: Response) -> None:
    found = answered(response)
    found.assert_problem(503, "overloaded")
    assert (found.get("retry-after"), found.get("retry-after-ms")) == ("1", "1000")
    assert (found.outcome, found.reason) == SHED
    assert found.cache_status.cache == "cacheproxy"


async def test_misses_are_turned_away_first_and_kept_answers_served(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    held, release = await crowd(proxy, upstream, key)
    calls = upstream.calls
    again, *asked = [await Connection.open(proxy.url) for _ in range(7)]
    await make_late(3)
    for number, connection in enumerate(asked):
        connection.send(post(f"What is the river number {number}?", key))
    again.send(post(QUESTION, key))
    assert answered(await again.read_response()).tier == "exact"
    release.set()
    answers = [answered(await connection.read_response()) for connection in asked]
    shed = [one for one in answers if one.status == 503]
    for one in shed:
        assert_shed(one)
    assert 0 < len(shed) < len(answers)
    assert upstream.calls == calls + len(answers) - len(shed), "who is turned away costs the backend nothing"
    for connection in held:
        assert (await connection.read_response()).status == 200
    for connection in (*held, *asked, again):
        connection.leave()


async def test_then_whatever_comes_is_before_its_body_is_read_and_its_connection_goes_on(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    held, release = await crowd(proxy, upstream, key)
    async with await Connection.open(proxy.url) as connection:
        await make_late(12)
        whole = post(QUESTION, key)
        connection.send(whole[:-10])  # the body is not whole
        assert_shed(await connection.read_response())
        connection.send(whole[-10:])
        for target in ("/healthz", "/readyz"):
            assert (await proxy.call("GET", target)).status == 200
        release.set()
        assert (await proxy.call("GET", "/v1/models")).status == 200
        for one in held:
            assert (await one.read_response()).status == 200
            one.leave()

        async def served() -> bool:
            connection.send(whole)
            return answered(await connection.read_response()).status == 200

        await eventually_true(served, "all is let in again", within_s=10)


async def test_a_request_that_ends_its_connection_is_told_with_its_connection_ended(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    held, release = await crowd(proxy, upstream, key)
    async with await Connection.open(proxy.url) as connection:
        await make_late(12)
        connection.send(post("What is new?", key, ("connection", "close")))
        assert answered(await connection.read_response()).status == 503
        await connection.wait_end()
    release.set()
    for one in held:
        assert (await one.read_response()).status == 200
        one.leave()
