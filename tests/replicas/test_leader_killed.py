"""A replica that dies while it asks for others costs one more call, not an outage."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from tests.support.openai_wire import completion
from tests.support.polling import eventually_true
from tests.support.process import ServerProcess, serving
from tests.support.proxy import chat
from tests.support.redis import redis_server
from tests.support.upstream import Hold, answer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.upstream import ScriptedUpstream

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


async def ready(server: ServerProcess, text: str) -> None:
    async def keeps() -> bool:
        return (await server.proxy.ask(chat(text), key="sk-1")).outcome == "hit"

    await eventually_true(keeps, "it keeps and serves", within_s=30.0)


async def test_a_killed_leader_costs_one_more_call(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with redis_server() as redis, AsyncExitStack() as stack:
        given = ("--store", redis.url)
        leader, *others = [
            await stack.enter_async_context(serving(tmp_path / name, upstream.url, *given))
            for name in ("leader", "one", "other")
        ]
        for server in (leader, *others):
            await ready(server, "How long does an egg boil?")
        upstream.reset()
        never = asyncio.Event()
        upstream.play([Hold(never), *answer(completion("never"))])
        upstream.always(answer(completion("Jupiter.")))
        lost = asyncio.create_task(leader.proxy.ask(chat("Which planet is the largest?"), key="sk-1"))
        await upstream.received(1)
        waiting = [
            asyncio.create_task(server.proxy.ask(chat("Which planet is the largest?"), key="sk-1"))
            for server in others
            for _ in range(5)
        ]
        await asyncio.sleep(0.5)
        assert upstream.calls == 1
        await leader.kill()
        async with asyncio.timeout(10.0):  # a lease of 3 s, and the call
            answered = await asyncio.gather(*waiting)
        assert [one.status for one in answered] == [200] * 10
        assert {one.content for one in answered} == {"Jupiter."}
        assert upstream.calls == 2
        lost.cancel()
        await asyncio.gather(lost, return_exceptions=True)
