"""One call for all replicas: who waits gets what was kept, and nobody waits for what is not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from cacheproxy.clock import SystemClock
from cacheproxy.ports import Turn
from cacheproxy.shared.flights import LEASE_MS, SharedFlights
from tests.support.fleet import linked
from tests.support.polling import eventually_true

if TYPE_CHECKING:
    from cacheproxy.shared.layout import Layout
    from cacheproxy.shared.link import Link
    from tests.support.redis import RedisServer

KEY, OTHER = b"k" * 32, b"o" * 32


def flights(link: Link, layout: Layout) -> SharedFlights:
    return SharedFlights(link, layout, SystemClock())


async def asked(redis: RedisServer, times: int) -> None:
    """Wait until whose turn it is was asked so many times."""

    async def done() -> bool:
        found: dict[str, dict[str, int]] = await redis.ask("INFO", "commandstats")
        return found.get("cmdstat_set", {}).get("calls", 0) >= times

    await eventually_true(done, f"{times} have asked")


async def test_one_leads_and_the_others_look_once_it_has_kept_its_answer(redis: RedisServer) -> None:
    async with linked(redis) as (link, layout):
        leader, *followers = (flights(link, layout) for _ in range(4))
        assert await leader.turn(KEY, 5.0) is Turn.LEAD
        waiting = [asyncio.create_task(one.turn(KEY, 5.0)) for one in followers]
        await asked(redis, 4)
        await asyncio.sleep(0.1)
        assert not any(one.done() for one in waiting)
        assert await flights(link, layout).turn(OTHER, 5.0) is Turn.LEAD
        await leader.release(KEY, kept=True)
        assert await asyncio.gather(*waiting) == [Turn.LOOK] * 3


async def test_nobody_waits_for_an_answer_that_is_not_kept(redis: RedisServer) -> None:
    async with linked(redis) as (link, layout):
        leader, *followers = (flights(link, layout) for _ in range(4))
        await leader.turn(KEY, 5.0)
        waiting = [asyncio.create_task(one.turn(KEY, 5.0)) for one in followers]
        await asked(redis, 4)
        await leader.release(KEY, kept=False)
        assert await asyncio.gather(*waiting) == [Turn.ALONE] * 3


async def test_a_leader_that_died_costs_one_more_call(redis: RedisServer) -> None:
    async with linked(redis) as (link, layout):
        leader, one, other = (flights(link, layout) for _ in range(3))
        await leader.turn(KEY, 5.0)
        waiting = [asyncio.create_task(each.turn(KEY, 10.0)) for each in (one, other)]
        done, rest = await asyncio.wait(waiting, timeout=2 * LEASE_MS / 1000, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result() for task in done] == [Turn.LEAD]
        await leader.release(KEY, kept=True)  # back from the dead: not its lease any more
        await asyncio.sleep(0.3)
        assert not any(task.done() for task in rest)
        await (one if waiting[0] in done else other).release(KEY, kept=True)
        assert await asyncio.gather(*rest) == [Turn.LOOK]


async def test_a_lease_is_renewed_while_its_exchange_goes_on(redis: RedisServer) -> None:
    async with linked(redis) as (link, layout):
        leader = flights(link, layout)
        await leader.turn(KEY, 5.0)
        await asyncio.sleep(1.0)
        before_ms = await redis.ask("PTTL", (await redis.ask("KEYS", "*flight*"))[0])
        await leader.tend()
        after_ms = await redis.ask("PTTL", (await redis.ask("KEYS", "*flight*"))[0])
        assert before_ms <= LEASE_MS - 900 < after_ms


async def test_a_second_flight_of_a_replica_does_not_wait_for_the_first(redis: RedisServer) -> None:
    async with linked(redis) as (link, layout):
        one = flights(link, layout)
        assert await one.turn(KEY, 5.0) is Turn.LEAD
        assert await one.turn(KEY, 5.0) is Turn.ALONE
        await one.release(KEY, kept=True)


async def test_a_lease_whose_caller_left_before_the_reply_is_given_back(redis: RedisServer) -> None:
    async with linked(redis) as (link, layout):
        one, other = flights(link, layout), flights(link, layout)
        await one.turn(OTHER, 1.0)  # connected
        redis.pause()
        leaving = asyncio.create_task(one.turn(KEY, 5.0))
        await asyncio.sleep(0.02)
        leaving.cancel()
        await asyncio.wait([leaving])
        await asyncio.sleep(0.02)
        redis.resume()
        assert await other.turn(KEY, 2.0) is Turn.LEAD  # long before the lease ends by itself


async def test_a_wait_ends_when_it_was_long_enough(redis: RedisServer) -> None:
    async with linked(redis) as (link, layout):
        leader, follower = flights(link, layout), flights(link, layout)
        await leader.turn(KEY, 5.0)
        clock = SystemClock()
        begun_s = clock.monotonic()
        assert await follower.turn(KEY, 0.2) is Turn.ALONE
        assert 0.2 <= clock.monotonic() - begun_s < 2.0


@pytest.mark.quiet
async def test_without_the_engine_everybody_is_alone_at_once(redis: RedisServer) -> None:
    async with linked(redis) as (link, layout):
        one = flights(link, layout)
        await redis.kill()
        clock = SystemClock()
        for _ in range(5):  # and the breaker opens
            assert await one.turn(KEY, 5.0) is Turn.ALONE
        begun_s = clock.monotonic()
        assert await one.turn(KEY, 5.0) is Turn.ALONE
        assert clock.monotonic() - begun_s < 0.1
        await one.release(KEY, kept=True)
