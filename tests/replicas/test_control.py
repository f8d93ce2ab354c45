"""The control log: told once to everybody who follows, and read anew by everybody who may have missed something."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from cacheproxy.clock import SystemClock
from cacheproxy.errors import ConfigError, SharedUnavailable
from cacheproxy.settings import Replicas, Store
from cacheproxy.shared.control import Control
from cacheproxy.shared.layout import Layout
from cacheproxy.shared.link import Link
from cacheproxy.shared.members import Members
from tests.support.polling import eventually_true

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.redis import RedisServer

TERMS = Replicas(timeout_ms=2000)


class Listener:
    """One replica's control, with one topic."""

    def __init__(self, link: Link, layout: Layout, members: Members) -> None:
        self.members = members
        self.control = Control(link, layout, members, log_messages=1000)
        self.heard: list[bytes] = []
        self.reloads = 0
        self.failing = False
        self.control.on("broken", self.breaks, self.nothing)
        self.control.on("notes", self.hear, self.reload)

    async def hear(self, payload: bytes) -> None:
        self.heard.append(payload)

    async def reload(self) -> None:
        if self.failing:
            raise SharedUnavailable("not now", fault="test")
        self.reloads += 1

    async def breaks(self, _: bytes) -> None:
        raise ConfigError("it cannot be read")

    async def nothing(self) -> None:
        raise ConfigError("it cannot be read")

    @property
    def serving(self) -> bool:
        return self.members.serving("c")


@asynccontextmanager
async def listening(redis: RedisServer) -> AsyncIterator[Listener]:
    async with AsyncExitStack() as stack:
        clock = SystemClock()
        link = await stack.enter_async_context(Link(Store(url=redis.url), TERMS, clock))
        layout = Layout("cacheproxy", link.shards)
        members = await stack.enter_async_context(Members(link, layout, TERMS, clock))
        listener = Listener(link, layout, members)
        task = asyncio.create_task(listener.control.run())
        try:
            yield listener
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def until(condition: object, what: str) -> None:
    async def holds() -> bool:
        return bool(condition())  # type: ignore[operator]  # a plain function

    await eventually_true(holds, what)


async def test_what_is_told_is_heard_by_all_and_by_who_told_it(redis: RedisServer) -> None:
    async with listening(redis) as one, listening(redis) as other:
        await until(lambda: one.serving and other.serving, "both follow")
        await one.control.tell("broken", b"-")
        await one.control.tell("of a later version", b"?")
        for number in range(3):
            await one.control.tell("notes", b"%d" % number)
        await until(lambda: one.heard == other.heard == [b"0", b"1", b"2"], "all of it is heard")
        assert (one.reloads, other.reloads) == (1, 1)


async def test_who_may_have_missed_something_reads_everything_again_before_it_serves(redis: RedisServer) -> None:
    async with listening(redis) as one:
        await until(lambda: one.serving, "it follows")
        one.failing = True
        await redis.ask("FLUSHALL")
        await until(lambda: not one.serving, "it serves nothing")
        await asyncio.sleep(0.5)
        assert not one.serving
        one.failing = False
        await until(lambda: one.serving, "it follows again")
        assert one.reloads >= 2
        await one.control.tell("notes", b"again")
        await until(lambda: one.heard == [b"again"], "it hears what is new")
