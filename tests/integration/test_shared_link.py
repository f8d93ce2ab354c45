"""The link to the engine, against a real one: deadlines, refusals, cancelled callers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

import pytest

from cacheproxy.clock import SystemClock
from cacheproxy.errors import ConfigError, SharedUnavailable
from cacheproxy.settings import Replicas, Store
from cacheproxy.shared.link import Link
from cacheproxy.shared.script import Script
from tests.support.polling import eventually_true
from tests.support.ports import free_port
from tests.support.redis import redis_server

if TYPE_CHECKING:
    from tests.support.redis import RedisServer


def link_to(url: str, **replicas: object) -> Link:
    given = {"timeout_ms": 2000, **replicas}  # a busy machine is not what is tested
    return Link(Store(url=url), Replicas(**given), SystemClock())  # type: ignore[arg-type]  # each test's own


async def answers(link: Link) -> bool:
    try:
        return bool(await link.call("PING") == b"PONG")
    except SharedUnavailable:
        return False


async def test_commands_pipelines_and_scripts_are_answered_in_plain_bytes(redis: RedisServer) -> None:
    async with link_to(redis.url) as link:
        assert await link.call("SET", "{a}:1", b"\x00\xff") == b"OK"
        assert await link.pipe([("GET", "{a}:1"), ("EXISTS", "{a}:2")]) == [b"\x00\xff", 0]
        script = Script("return {KEYS[1], ARGV[1], redis.call('GET', KEYS[1])}")
        for _ in range(2):  # by its text, then by its digest
            assert await link.run(script, ["{a}:1"], [7]) == [b"{a}:1", b"7", b"\x00\xff"]
        assert await link.slow("GET", "{a}:2", timeout_s=1) is None
        assert link.health() == "ok"


async def test_one_refused_command_of_a_pipeline_raises_and_the_connection_goes_on(redis: RedisServer) -> None:
    async with link_to(redis.url) as link:
        await link.call("SET", "a", "text")
        with pytest.raises(SharedUnavailable) as refused:
            await link.pipe([("GET", "a"), ("LPUSH", "a", "1"), ("GET", "a")])
        assert refused.value.fault == "WRONGTYPE"
        assert await link.call("GET", "a") == b"text"
        assert len(await redis.ask("CLIENT", "LIST", "TYPE", "normal")) > 0


async def test_a_hung_engine_costs_one_deadline_and_at_first(redis: RedisServer) -> None:
    async with link_to(redis.url, timeout_ms=200) as link:
        await eventually_true(lambda: answers(link), "it answers")
        redis.pause()
        took_s = []
        for _ in range(3):
            began_s = time.monotonic()
            with pytest.raises(SharedUnavailable) as failed:
                await link.call("PING")
            took_s.append(time.monotonic() - began_s)
            assert failed.value.fault == "timeout"
        assert max(took_s) < 2.0  # 0.2 on a quiet machine
        redis.resume()
        await eventually_true(lambda: answers(link), "the breaker closes again")


async def test_entering_waits_for_no_engine_and_joins_when_it_comes() -> None:
    port = free_port()
    async with link_to(f"redis://127.0.0.1:{port}") as link:
        assert not await answers(link)
        assert link.health() != "ok"
        async with redis_server(port=port):
            await eventually_true(lambda: answers(link), "the link finds the engine")
            assert link.health() == "ok"


@pytest.mark.parametrize(
    ("flags", "credentials", "says"),
    [
        (("--requirepass", "right-word"), "", "wants a password"),
        (("--requirepass", "right-word"), ":wrong-word@", "does not take this user and password"),
        ((), ":wrong-word@", "has no password"),
        (("--maxmemory", "20mb", "--maxmemory-policy", "allkeys-lru"), "", "maxmemory-policy allkeys-lru"),
        (("--maxmemory-policy", "volatile-ttl"), "", "set noeviction"),
        (("--cluster-enabled", "yes"), "", "is a Cluster"),
    ],
)
async def test_what_the_operator_must_change_stops_the_start(
    flags: tuple[str, ...], credentials: str, says: str
) -> None:
    async with redis_server(*flags) as server:
        with pytest.raises(ConfigError) as stopped:
            async with link_to(f"redis://{credentials}127.0.0.1:{server.port}"):
                pass
        assert says in stopped.value.message
        assert "-word" not in stopped.value.message


async def test_a_user_who_may_not_do_what_is_needed_stops_the_start(redis: RedisServer) -> None:
    await redis.ask("ACL", "SETUSER", "someone", "on", ">a-word", "~*", "+ping", "+client|setname")
    with pytest.raises(ConfigError, match="does not let this user") as stopped:
        async with link_to(f"redis://someone:a-word@127.0.0.1:{redis.port}"):
            pass
    assert "someone" not in stopped.value.message


async def test_eviction_may_be_allowed_and_a_missing_database_is_named(redis: RedisServer) -> None:
    await redis.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    async with link_to(redis.url, allow_eviction=True) as link:
        assert await answers(link)
    with pytest.raises(ConfigError, match="no database"):
        async with link_to(f"redis://127.0.0.1:{redis.port}/99", allow_eviction=True):
            pass


async def test_a_full_engine_refuses_writes_alone(redis: RedisServer) -> None:
    async with link_to(redis.url) as link:
        await link.call("SET", "a", "x")
        await redis.ask("CONFIG", "SET", "maxmemory", "1")
        for _ in range(5):
            with pytest.raises(SharedUnavailable) as full:
                await link.call("SET", "b", "x")
            assert full.value.fault == "OOM"
        assert await link.call("GET", "a") == b"x"
        assert link.breaker_openings == 0
        assert "no memory" in link.health()


async def test_a_cancelled_command_leaves_no_reply_to_the_next(redis: RedisServer) -> None:
    async with link_to(redis.url, timeout_ms=2000, max_connections=1) as link:
        for number in range(20):
            await link.call("SET", f"a{number}", f"reply of a{number}")
        await redis.ask("SET", "b", "reply of b")
        for number in range(20):
            async with redis.client() as other:
                await other.execute_command("CLIENT", "PAUSE", "30", "ALL")
            asked = asyncio.create_task(link.call("GET", f"a{number}"))
            await asyncio.sleep(0.001 * number)
            asked.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asked
            assert await link.call("GET", "b") == b"reply of b"


async def test_who_waits_for_a_connection_gets_one_when_another_is_given_back_or_lost(redis: RedisServer) -> None:
    async with link_to(redis.url, timeout_ms=3000, max_connections=1) as link:
        for lost in (True, False):
            first = asyncio.create_task(link.call("BLPOP", "nothing", "0.2"))
            await asyncio.sleep(0.1)
            waiting = [asyncio.create_task(link.call("PING")) for _ in range(5)]
            await asyncio.sleep(0.01)
            if lost:
                first.cancel()
            began_s = time.monotonic()
            assert await asyncio.gather(*waiting) == [b"PONG"] * 5
            assert time.monotonic() - began_s < 2.5  # not until its deadline
            await asyncio.gather(first, return_exceptions=True)


async def test_no_free_connection_is_a_miss_and_says_nothing_of_the_engine(redis: RedisServer) -> None:
    async with link_to(redis.url, timeout_ms=200, max_connections=1) as link:
        first = asyncio.create_task(link.slow("PING", timeout_s=1))  # connections apart
        assert await first == b"PONG"
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_refused(link, "timeout", "BLPOP", "nothing", "1"))
            await asyncio.sleep(0.05)
            with pytest.raises(SharedUnavailable) as full:
                async with asyncio.timeout(5):
                    await link._hot([("PING",)], 0.1)
        assert full.value.fault == "pool"
        assert link.breaker_openings == 0


async def _refused(link: Link, fault: str, *command: str) -> None:
    with pytest.raises(SharedUnavailable) as refused:
        await link.call(*command)
    assert refused.value.fault == fault


async def test_a_server_that_became_a_replica_is_left(redis: RedisServer) -> None:
    async with redis_server() as master, link_to(redis.url) as link:
        await link.call("SET", "a", "1")
        await redis.ask("REPLICAOF", "127.0.0.1", master.port)
        with pytest.raises(SharedUnavailable) as demoted:
            await link.call("SET", "a", "2")
        assert demoted.value.fault == "READONLY"
        with pytest.raises(SharedUnavailable) as demoted:
            await link.call("GET", "a")  # on a new connection, which finds that out before anything is read
        assert demoted.value.fault == "READONLY"


async def test_another_process_behind_the_address_is_noticed_with_the_first_answer(redis: RedisServer) -> None:
    async with link_to(redis.url) as link:
        await link.call("PING")
        before = link.identity("a")
        assert before is not None
        await redis.kill()
        await redis.start()
        await eventually_true(lambda: answers(link), "the link comes back")
        assert link.identity("a") not in {None, before}


async def test_closing_leaves_neither_tasks_nor_connections(redis: RedisServer) -> None:
    before = asyncio.all_tasks()
    async with link_to(redis.url) as link:
        await asyncio.gather(*(link.call("PING") for _ in range(40)), link.slow("PING", timeout_s=1))
        clients = (await redis.ask("CLIENT", "LIST")).decode().count("name=cacheproxy-cacheproxy-")
        assert clients > 1
    assert asyncio.all_tasks() == before

    async def gone() -> bool:
        return b"name=cacheproxy-" not in await redis.ask("CLIENT", "LIST")

    await eventually_true(gone, "connections are gone")
