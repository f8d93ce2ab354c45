"""An engine that hangs: a request waits for it once, whatever it asks of it, and is answered by the backend."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from cacheproxy.clock import SystemClock
from cacheproxy.errors import SharedUnavailable
from cacheproxy.settings import Replicas, Store
from cacheproxy.shared import patience
from cacheproxy.shared.link import Link
from tests.support.polling import eventually_true
from tests.support.replicas import fleet

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.redis import RedisServer

TIMEOUT_S = 0.6
"""Of one call to the engine; long, so that a busy machine does not look like a second one."""


async def faults_of(link: Link, calls: int, least_s: float = 0.0) -> list[str]:
    """Begin a request, call the engine, and return how each call failed."""
    patience.begin(least_s)
    seen: list[str] = []
    for _ in range(calls):
        try:
            await link.call("PING")
            seen.append("")
        except SharedUnavailable as exc:
            seen.append(exc.fault)
    return seen


async def met(link: Link) -> None:
    """Wait until the engine has answered in time, and no deadline that a busy machine missed counts any more."""

    async def answers() -> bool:
        return await faults_of(link, 2) == ["", ""]

    await eventually_true(answers, "the engine answers")


async def test_each_request_waits_for_one_deadline_however_often_it_asks(redis: RedisServer) -> None:
    async with Link(Store(url=redis.url), Replicas(timeout_ms=200), SystemClock()) as link:
        await met(link)
        redis.pause()
        try:
            first, second = await asyncio.gather(*(asyncio.create_task(faults_of(link, 4)) for _ in range(2)))
        finally:
            redis.resume()
        assert first == second == ["timeout", "in-vain", "in-vain", "in-vain"]


async def test_who_waited_in_vain_is_patient_again_after_a_while(redis: RedisServer) -> None:
    async with Link(Store(url=redis.url), Replicas(timeout_ms=1000), SystemClock()) as link:
        await met(link)
        redis.pause()
        assert await faults_of(link, 2) == ["timeout", "in-vain"]
        redis.resume()
        with pytest.raises(SharedUnavailable):
            await link.call("PING")
        await asyncio.sleep(patience.LOST_S)
        assert await link.call("PING") == b"PONG"


async def test_who_waited_in_vain_is_patient_again_once_the_engine_answers_anybody(redis: RedisServer) -> None:
    """One late answer is no hung engine: what a request gets from the backend meanwhile is kept."""
    async with Link(Store(url=redis.url), Replicas(timeout_ms=1000), SystemClock()) as link:
        await met(link)
        redis.pause()
        assert await faults_of(link, 2) == ["timeout", "in-vain"]
        redis.resume()
        assert await link.slow("PING", timeout_s=5) == b"PONG"  # a heartbeat, or another request
        assert await link.call("PING") == b"PONG"


async def test_an_operators_work_outwaits_what_fails_callers(redis: RedisServer) -> None:
    async with Link(Store(url=redis.url), Replicas(timeout_ms=100), SystemClock()) as link:
        await met(link)
        redis.pause()
        callers = [await asyncio.create_task(faults_of(link, 1)) for _ in range(4)]
        assert callers[-1] == ["open"]

        async def work() -> bytes:
            patience.begin(30.0)
            found: bytes = await link.call("PING")
            return found

        working = asyncio.create_task(work())
        await asyncio.sleep(0.5)
        redis.resume()
        assert await working == b"PONG"


async def test_an_operators_work_does_not_wait_twice_for_an_engine_that_is_gone(redis: RedisServer) -> None:
    async with Link(Store(url=redis.url), Replicas(timeout_ms=100), SystemClock()) as link:
        await met(link)
        redis.pause()
        try:
            assert await faults_of(link, 3, least_s=0.3) == ["timeout", "in-vain", "in-vain"]
        finally:
            redis.resume()


@pytest.mark.slow
async def test_answers_that_are_warmed_are_kept_by_an_engine_that_is_late(redis: RedisServer, tmp_path: Path) -> None:
    terms = {"CACHEPROXY_REPLICAS__TIMEOUT_MS": "75", "CACHEPROXY_REPLICAS__LEASE_MS": "30000"}
    items = [
        {"text": f"What is {uuid4().hex}?", "model": "m", "answer": "This.", "tenant": "0" * 64} for _ in range(40)
    ]
    async with fleet(tmp_path, [redis.url], **terms) as found:
        [replica] = found.replicas
        await found.spread("What is known?")
        redis.pause()
        warming = asyncio.create_task(replica.operate("POST", "warm", {"items": items}))
        await asyncio.sleep(0.7)
        redis.resume()
        told = (await warming).json()
        assert told["stored"] == len(items), told["items"][0]


@pytest.mark.slow
@pytest.mark.quiet
async def test_a_miss_and_a_hit_wait_for_a_hung_engine_once(redis: RedisServer, tmp_path: Path) -> None:
    """Row 71 over HTTP: a lookup, whose turn it is and keeping the answer would be a deadline each."""
    settings = {
        "CACHEPROXY_REPLICAS__TIMEOUT_MS": str(int(TIMEOUT_S * 1000)),
        "CACHEPROXY_REPLICAS__LEASE_MS": "30000",  # longer than the engine hangs: nothing but deadlines ends a wait
        "CACHEPROXY_STORE__HOT_BYTES": "0",
    }
    async with fleet(tmp_path, [redis.url], **settings) as found:
        [replica] = found.replicas
        known, new = f"What is {uuid4().hex}?", f"What is {uuid4().hex}?"
        await found.spread(known)
        redis.pause()
        try:
            took_s = []
            for text in (known, new):
                began_s = time.monotonic()
                told = await replica.ask(text)
                took_s.append(time.monotonic() - began_s)
                assert (told.status, told.outcome) == (200, "miss")
        finally:
            redis.resume()
        assert max(took_s) < 1.7 * TIMEOUT_S
        assert min(took_s) > 0.9 * TIMEOUT_S  # the breaker was not open yet
