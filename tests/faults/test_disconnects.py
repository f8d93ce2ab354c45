"""Ten thousand callers leave at any moment: the backend is let go within a second, nothing is kept, nothing stays."""

from __future__ import annotations

import asyncio
import re
import time
from random import Random
from typing import TYPE_CHECKING

import pytest

from tests.support.openai_wire import encode, events
from tests.support.polling import eventually_true
from tests.support.process import serving
from tests.support.proxy import chat
from tests.support.rawhttp import Connection, Truncated, request_bytes
from tests.support.upstream import Hold, ScriptedUpstream, Send, answer, head, stream

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.support.proxy import Proxy
    from tests.support.upstream import Received, Step

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

CALLERS, AT_ONCE = 10_000, 10  # with more at once, most would have left before the backend heard of them
CANCELLED_WITHIN_S = 1.0
EVENTS = events("Nobody will hear the end of this answer.")
TARGETS = ("/v1/chat/completions", "/v1/chat/completions", "/v1/completions", "/v1/threads/runs")
GAUGES = ("flights", "tasks", "connections", "requests_in_flight", "held_body_bytes", "store_entries")


def unfinished(request: Received) -> Sequence[Step]:
    """An answer that never ends: no byte, half a head, half a body, or some events."""
    seed = Random(request.header("x-mark"))
    never = Hold(asyncio.Event())
    match seed.randrange(4):
        case 0:
            return [never]
        case 1:
            return [Send(b"HTTP/1.1 200 OK\r\ncontent-"), never]
        case 2:
            start = head(200, [("content-type", "application/json"), ("content-length", "5000")])
            return [Send(start + b'{"choices": ['), never]
    return stream(*EVENTS[: seed.randrange(1, len(EVENTS) - 1)], never)


async def leave(proxy: Proxy, mark: int, left_s: dict[str, float]) -> None:
    """Ask, and go away at a random point by FIN or RST."""
    seed = Random(mark)
    target = seed.choice(TARGETS)
    body = chat(stream=seed.random() < 0.7) | {"prompt": "x"}
    # Two callers in a row share a flight where both ask a cached route.
    headers = [("authorization", "Bearer sk-gone"), ("x-cacheproxy-namespace", f"n{mark // 2}"), ("x-mark", str(mark))]
    data = request_bytes("POST", target, [*headers, ("content-type", "application/json")], encode(body))
    connection = await Connection.open(proxy.url)
    match seed.randrange(4):
        case 0:
            connection.send(data[: seed.randrange(1, len(data) - 1)])
            await asyncio.sleep(seed.random() * 0.01)
        case 1:
            connection.send(data)
            await asyncio.sleep(seed.random() * 0.05)
        case _:
            connection.send(data)
            try:
                async with asyncio.timeout(0.02 + seed.random() * 0.1):
                    await connection.take(seed.randrange(1, 2000))
            except (TimeoutError, Truncated):
                pass
    left_s[str(mark)] = time.monotonic()
    connection.leave(reset=seed.random() < 0.5)


async def gauges(proxy: Proxy) -> dict[str, float]:
    async with await Connection.open(proxy.admin_url) as connection:
        connection.send(request_bytes("GET", "/metrics"))
        text = (await connection.read_response("GET")).body.decode()
    told = {name: float(value) for name, value in re.findall(r"^cacheproxy_(\w+) (\S+)$", text, re.MULTILINE)}
    running = re.findall(r"^cacheproxy_upstream_running\{.*\} (\S+)$", text, re.MULTILINE)
    return {name: told[name] for name in GAUGES} | {"running": sum(map(float, running))}


@pytest.mark.quiet
async def test_ten_thousand_callers_who_leave_leave_nothing_behind(tmp_path: Path) -> None:
    left_s: dict[str, float] = {}
    async with ScriptedUpstream() as upstream, serving(tmp_path, upstream.url) as server:
        proxy = server.proxy
        upstream.play(answer(b"{}"))
        await proxy.call("GET", "/v1/models")  # what is made once, is made
        before = await gauges(proxy)
        upstream.reset()
        upstream.always(unfinished)
        marks = iter(range(CALLERS))

        async def lane() -> None:
            for mark in marks:
                await leave(proxy, mark, left_s)

        await asyncio.gather(*(lane() for _ in range(AT_ONCE)))

        async def settled() -> bool:
            return await gauges(proxy) == before

        await eventually_true(settled, f"the figures are again {before}", within_s=5.0)
        assert len(left_s) == CALLERS
        assert upstream.calls > CALLERS / 3
        for request in upstream.requests:
            assert request.client_left_s is not None
            mark = int(request.header("x-mark") or 0)
            # Whoever shared the answer may have left later.
            last_s = max(left_s[str(one)] for one in (mark, mark ^ 1))
            assert request.client_left_s - max(last_s, request.at_s) <= CANCELLED_WITHIN_S
        assert not [event for event in server.events if event.get("level") in ("error", "critical")]
