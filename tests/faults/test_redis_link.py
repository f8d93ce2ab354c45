"""The way to the engine under real faults: hung, slow, cut, full, failed over, resharded (rows 71-74, 76-79)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import time
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from redis.exceptions import RedisError

from cacheproxy.clock import SystemClock
from cacheproxy.errors import ConfigError, SharedUnavailable
from cacheproxy.settings import Replicas, Store
from cacheproxy.shared.link import Link
from cacheproxy.shared.script import Script
from tests.support.chaos import ChaosProxy
from tests.support.polling import eventually_true
from tests.support.ports import HOST
from tests.support.redis import redis_server, valkey
from tests.support.redis_groups import DOWN_AFTER_MS, redis_cluster, sentinel_group

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.redis import RedisServer

TIMEOUT_S = 0.075
LATE_S = 0.1
"""What a machine that does nothing else may add to a deadline."""
BUSY_S = 0.5
"""What a busy one may."""
PATIENT_MS = 2000
"""A deadline where deadlines are not what is tested."""
OPEN_S = 0.005


@asynccontextmanager
async def linked(url: str, **replicas: Any) -> AsyncIterator[Link]:
    async with Link(Store(url=url), Replicas(**replicas), SystemClock()) as link:
        yield link


@asynccontextmanager
async def behind(redis: RedisServer) -> AsyncIterator[tuple[ChaosProxy, Link]]:
    """A link whose way to the server can be made bad."""
    async with ChaosProxy(redis.port) as way, linked(f"redis://{HOST}:{way.port}/0") as link:
        yield way, link


async def fault(link: Link, *command: Any) -> tuple[str, float]:
    """Send a command that must fail; return which fault that was and how long it took."""
    began_s = time.monotonic()
    with pytest.raises(SharedUnavailable) as told:
        await link.call(*command)
    return told.value.fault, time.monotonic() - began_s


async def works(link: Link) -> bool:
    return bool(await told(link, "SET", "{a}", "1") == b"OK")


async def told(link: Link, *command: Any) -> Any:
    """Return the reply, or the name of the fault."""
    try:
        return await link.call(*command)
    except SharedUnavailable as exc:
        return exc.fault


async def waits_s(link: Link, for_s: float) -> list[float]:
    """Ask 20 times a second, in vain, and return how long each waited, the shortest first."""
    async with asyncio.TaskGroup() as tasks:
        asked = []
        for _ in range(int(20 * for_s)):
            asked.append(tasks.create_task(fault(link, "GET", "{a}")))
            await asyncio.sleep(0.05)
    return sorted(task.result()[1] for task in asked)


async def test_a_hung_server_costs_some_deadlines_and_then_nearly_nothing(redis: RedisServer) -> None:
    async with linked(redis.url) as link:
        await eventually_true(lambda: works(link), "the link works")
        redis.pause()
        assert (await waits_s(link, 1.0))[-1] < TIMEOUT_S + BUSY_S
        took_s = await waits_s(link, 4.0)
        assert took_s[-2] < OPEN_S, "no request waits for a trial"  # p99 of 80
        opened = link.breaker_openings
        assert opened > 2, "trials go on"
        redis.resume()
        await eventually_true(lambda: works(link), "the link works again", 5)
        assert link.breaker_openings - opened < 5


@pytest.mark.slow
async def test_a_hung_cluster_costs_some_deadlines_and_then_nearly_nothing() -> None:
    async with redis_cluster() as cluster, linked(cluster.url) as link:
        await eventually_true(lambda: works(link), "the link works")
        for node in cluster.nodes:
            node.pause()
        assert (await waits_s(link, 1.0))[-1] < TIMEOUT_S + BUSY_S
        took_s = await waits_s(link, 4.0)
        assert took_s[-2] < OPEN_S, "no request waits for a trial, or for a new map"
        for node in cluster.nodes:
            node.resume()
        await eventually_true(lambda: works(link), "the link works again", 10)


async def test_a_killed_server_is_noticed_at_once_and_found_again(redis: RedisServer) -> None:
    async with linked(redis.url, timeout_ms=PATIENT_MS) as link:
        assert await works(link)
        await redis.kill()
        assert (await fault(link, "GET", "{a}"))[1] < BUSY_S
        await redis.start()
        await eventually_true(lambda: works(link), "the link works again", 5)
        assert await link.call("GET", "{a}") == b"1"


WEATHERS: dict[str, dict[str, Any]] = {
    "late": {"delay_s": 0.2},
    "uneven": {"delay_s": 0.01, "jitter_s": 0.08},
    "narrow": {"bytes_per_s": 10_000},
    "sliced": {"slice_bytes": 3},
}


@pytest.mark.quiet
@pytest.mark.parametrize("weather", WEATHERS)
async def test_a_bad_way_gives_the_right_reply_in_time_or_none(redis: RedisServer, weather: str) -> None:
    for number in range(50):
        await redis.ask("SET", f"{{a}}:{number}", f"value {number}" * 20)
    async with behind(redis) as (way, link):
        assert await works(link)
        for name, value in WEATHERS[weather].items():
            setattr(way.weather, name, value)

        async def read(number: int) -> bool:
            began_s = time.monotonic()
            try:
                found = await link.call("GET", f"{{a}}:{number}")
            except SharedUnavailable:
                found = None
            assert time.monotonic() - began_s < TIMEOUT_S + LATE_S
            assert found in (None, f"value {number}".encode() * 20)
            return found is not None

        for start in range(0, 50, 5):
            await asyncio.gather(*(read(number) for number in range(start, start + 5)))
        way.weather = type(way.weather)()
        await eventually_true(lambda: works(link), "the link works again", 5)
        assert await read(7)


@pytest.mark.parametrize("after", [0, 1, 2, 7, 30, 100])
async def test_a_reply_cut_anywhere_is_no_reply(redis: RedisServer, after: int) -> None:
    await redis.ask("SET", "{a}", "x" * 64)
    async with behind(redis) as (way, link):
        await eventually_true(lambda: works(link), "the link works")
        await redis.ask("SET", "{a}", "x" * 64)
        way.reset()
        way.cut_replies(after)
        for _ in range(4):
            assert await told(link, "GET", "{a}") in {b"x" * 64, "unreachable", "timeout", "open", "protocol"}
        way.heal()
        await eventually_true(lambda: works(link), "the link works again", 5)


@pytest.mark.quiet
async def test_a_cancelled_command_leaves_its_reply_to_nobody(redis: RedisServer) -> None:
    async with behind(redis) as (way, link):
        await link.pipe([("SET", f"{{a}}:{number}", str(number)) for number in range(100)])
        way.weather.delay_s = 0.005
        wrong = cancelled = right = 0

        async def read(number: int) -> None:
            nonlocal wrong, right
            try:
                found = await link.call("GET", f"{{a}}:{number}")
            except SharedUnavailable:
                return
            wrong += found != str(number).encode()
            right += found == str(number).encode()

        for round_ in range(40):
            tasks = [asyncio.create_task(read(number)) for number in range(round_ % 50, round_ % 50 + 10)]
            await asyncio.sleep(round_ * 0.0005)
            for task in tasks[::2]:
                cancelled += task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert cancelled > 50
        assert right > 50
        assert wrong == 0


REMOVES = Script(
    "redis.call('DEL', KEYS[1]); redis.call('INCR', KEYS[2]); return redis.call('XADD', KEYS[3], '*', 'a', 1)"
)


@pytest.mark.parametrize("program", ["redis", "valkey"])
async def test_a_full_server_refuses_what_grows_and_carries_out_what_removes_first(program: str) -> None:
    async with (
        redis_server(program=valkey() if program == "valkey" else "") as redis,
        linked(redis.url, timeout_ms=PATIENT_MS) as link,
    ):
        await link.call("SET", "{a}:kept", "x")
        await redis.fill()
        assert (await fault(link, "XADD", "{a}:log", "*", "a", "1"))[0] == "OOM"
        assert await link.run(REMOVES, ["{a}:kept", "{a}:gen", "{a}:log"], [])
        assert await link.call("EXISTS", "{a}:kept") == 0
        assert await link.call("XLEN", "{a}:log") == 1
        for _ in range(5):  # a full server is not taken for a dead one
            assert (await fault(link, "SET", "{a}", "x"))[0] == "OOM"
        assert await link.call("XLEN", "{a}:log") == 1
        await redis.drain()
        assert await works(link)


async def _misconf(redis: RedisServer) -> None:
    await redis.ask("CONFIG", "SET", "save", "3600 1")
    shutil.rmtree(redis.directory)

    async def refused() -> bool:
        with contextlib.suppress(RedisError):  # one save at a time
            await redis.ask("BGSAVE")
        return "rdb_last_bgsave_status:err" in str(await redis.ask("INFO", "persistence")).replace("': '", ":")

    await eventually_true(refused, "the server cannot save", 10)


async def _noreplicas(redis: RedisServer) -> None:
    await redis.ask("CONFIG", "SET", "min-replicas-to-write", "3")


async def _readonly(redis: RedisServer) -> None:
    await redis.ask("REPLICAOF", HOST, "1")


async def _noperm(redis: RedisServer) -> None:
    await redis.ask("ACL", "SETUSER", "default", "-set")


FAULTS = {"MISCONF": _misconf, "NOREPLICAS": _noreplicas, "READONLY": _readonly, "NOPERM": _noperm}


@pytest.mark.parametrize("name", FAULTS)
async def test_what_a_server_refuses_is_told_apart(redis: RedisServer, name: str) -> None:
    async with linked(redis.url, timeout_ms=PATIENT_MS) as link:
        assert await works(link)
        await FAULTS[name](redis)
        assert (await fault(link, "SET", "{a}", "2"))[0] in {name, "unreachable"}  # a new replica drops its clients
        seen = {(await fault(link, "SET", "{a}", "2"))[0] for _ in range(3)}
        assert seen & {name, "open"}
        assert link.health() != "ok"


async def test_a_server_busy_with_a_script_is_away(redis: RedisServer) -> None:
    async with linked(redis.url) as link:
        await eventually_true(lambda: works(link), "the link works")
        await redis.ask("CONFIG", "SET", "busy-reply-threshold", "50")
        endless = asyncio.create_task(redis.ask("EVAL", "while true do end", "0"))
        seen: set[object] = set()

        async def busy() -> bool:
            seen.add(await told(link, "GET", "{a}"))
            return "BUSY" in seen

        await eventually_true(busy, "the server says that it is busy", 10)
        assert seen <= {b"1", "timeout", "BUSY", "open"}
        await redis.ask("SCRIPT", "KILL")
        with pytest.raises(RedisError, match="killed"):
            await endless
        await eventually_true(lambda: works(link), "the link works again", 5)


async def test_no_connection_left_is_a_miss(redis: RedisServer) -> None:
    await redis.ask("CONFIG", "SET", "maxclients", "10")
    taken = [await asyncio.open_connection(HOST, redis.port) for _ in range(12)]
    async with linked(redis.url, timeout_ms=PATIENT_MS) as link:
        assert (await fault(link, "GET", "{a}"))[0] in {"clients", "unreachable"}
        for _, writer in taken:
            writer.transport.abort()
        await eventually_true(lambda: works(link), "the link works", 5)


@pytest.mark.parametrize(
    ("flags", "url", "says"),
    [
        (("--requirepass", "right"), "redis://:wrong@{place}/0", "password"),
        (("--requirepass", "right"), "redis://{place}/0", "password"),
        ((), "redis://nobody:wrong@{place}/0", "password"),
        ((), "redis://{place}/77", "database"),
    ],
)
async def test_what_the_operator_must_change_refuses_the_start(flags: tuple[str, ...], url: str, says: str) -> None:
    async with redis_server(*flags) as redis:
        with pytest.raises(ConfigError, match=says) as told:
            async with linked(url.format(place=f"{HOST}:{redis.port}"), timeout_ms=PATIENT_MS):
                pass
        assert "wrong" not in str(told.value)


async def test_a_server_that_is_not_there_does_not_refuse_the_start(redis: RedisServer) -> None:
    await redis.kill()
    async with linked(redis.url) as link:
        assert link.health() != "ok"
        await redis.start()
        await eventually_true(lambda: works(link), "the link works", 5)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_a_failover_is_followed(how: str) -> None:
    async with sentinel_group() as group, linked(group.url) as link:
        await eventually_true(lambda: works(link), "the link works")
        old = await group.master()
        began_s = time.monotonic()
        if how == "kill":
            await old.kill()
        else:
            old.pause()
        new = await group.failed_over(old)
        known_s = time.monotonic()
        await eventually_true(lambda: works(link), "the link found the new master", 10)
        assert time.monotonic() - known_s < 2 + 2 * BUSY_S
        assert time.monotonic() - began_s < DOWN_AFTER_MS / 1000 + 12
        if how == "kill":
            await old.start()
        else:
            old.resume()  # it takes itself for the master still, until a Sentinel tells it
        for number in range(200):
            try:
                await link.call("SET", f"{{a}}:{number}", "new")
            except SharedUnavailable:
                continue
            assert await new.ask("GET", f"{{a}}:{number}") == b"new"
            await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_a_cluster_that_moves_slots_answers_all_the_while() -> None:
    async with redis_cluster() as cluster, linked(cluster.url, timeout_ms=PATIENT_MS) as link:
        tags = [f"{{t{number}}}" for number in range(64)]
        for tag in tags:
            await link.pipe([("SET", f"{tag}:a", tag), ("SET", f"{tag}:b", tag)])
        masters = {(await cluster.owner(tag)).port: await cluster.owner(tag) for tag in tags}
        one, two, *_ = masters.values()
        failed: list[str] = []
        read = 0
        done = False

        async def reading() -> None:
            nonlocal read
            for tag in itertools.cycle(tags):
                if done:
                    return
                try:
                    found = await link.pipe([("GET", f"{tag}:a"), ("GET", f"{tag}:b")])
                    assert found == [tag.encode()] * 2
                    read += 1
                    await asyncio.sleep(0.001)
                except SharedUnavailable as exc:
                    failed.append(exc.fault)
                    await asyncio.sleep(0.005)

        readers = [asyncio.create_task(reading()) for _ in range(2)]
        await cluster.move(800, one, two)
        await cluster.move(800, two, one)
        done = True
        await asyncio.gather(*readers)
        assert read > 100
        assert len(failed) <= read / 10, Counter(failed)
        assert "CROSSSLOT" not in failed


@pytest.mark.slow
async def test_a_lost_node_of_a_cluster_is_replaced() -> None:
    async with redis_cluster() as cluster, linked(cluster.url, timeout_ms=PATIENT_MS) as link:
        assert await works(link)
        owner = await cluster.owner("{a}")
        elsewhere = "{a}"
        while await cluster.owner(elsewhere) is owner:
            elsewhere = f"{{{uuid4().hex}}}"
        await owner.kill()
        began_s = time.monotonic()
        assert await link.call("SET", elsewhere, "1") == b"OK"
        await eventually_true(lambda: works(link), "its replica took over", 20)
        assert time.monotonic() - began_s < 15
