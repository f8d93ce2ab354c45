"""Row 94: what was stored together does not end together, and its end is no storm on the backend."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cacheproxy import settings
from cacheproxy.policy.jitter import jittered
from cacheproxy.serving import running
from cacheproxy.store.memory import MemoryStore
from tests.support.clock import FakeClock
from tests.support.entries import make_entry
from tests.support.openai_wire import encode
from tests.support.packs import changed_pack
from tests.support.polling import eventually
from tests.support.proxy import CHAT, Proxy, answered, chat, proxy_settings
from tests.support.rawhttp import Connection, request_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.proxy import Answered
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

TTL_S, JITTER, STEP_S = 1000.0, 0.1, 10.0
KEYS = {"ttl_s": TTL_S, "max_stale_s": 60, "stale_while_revalidate_s": 60}


async def test_ten_thousand_entries_of_one_moment_are_reaped_evenly_over_the_window() -> None:
    clock = FakeClock()
    async with MemoryStore(settings.Store(), clock) as store:
        for number in range(10_000):
            entry = make_entry(str(number), dim=0, created_s=clock.now())
            expires_s = clock.now() + jittered(TTL_S, JITTER, entry.fingerprint)
            entry = replace(entry, expires_s=expires_s, stale_until_s=0.0, revalidate_s=0.0, on_error_s=0.0)
            await store.put(entry, store.fence)
        clock.advance(TTL_S * (1 - JITTER) - 0.001)
        assert await store.sweep() == []
        steps: list[int] = []
        while len(store):
            clock.advance(STEP_S)
            steps.append(0)
            while removed := await store.sweep():
                steps[-1] += len(removed)
    assert sum(steps) == 10_000
    assert len(steps) in (10, 11)
    assert max(steps) <= 2 * 10_000 / 10


@pytest.mark.slow
@pytest.mark.parametrize("jitter", [JITTER, 0.0], ids=["with jitter", "without, all at once"])
async def test_a_mass_expiry_costs_one_refresh_each_spread_over_the_window_and_nobody_waits(
    upstream: ScriptedUpstream, tmp_path: Path, jitter: float
) -> None:
    """Five hundred questions, each asked every ten seconds. Without jitter they would be refreshed in one step."""
    folder = changed_pack(tmp_path, semantic=False, ttl_jitter=jitter, **KEYS)
    clock, questions = FakeClock(), [f"What is number {number}?" for number in range(500)]
    config = proxy_settings(upstream.url, tmp_path / "data", policies={"pack": str(folder)}, store={"url": "memory://"})
    async with running(config, clock) as live:
        proxy = Proxy(url=live.url, admin_url=live.admin_url)
        assert {one.outcome for one in await ask_all(proxy, questions)} == {"miss"}
        assert upstream.calls == len(questions)
        clock.advance(TTL_S * (1 - JITTER) - STEP_S)
        steps: list[int] = []
        for _ in range(13):
            before = upstream.calls
            assert {one.outcome for one in await ask_all(proxy, questions)} == {"hit"}, "nobody waits"
            await eventually(lambda: all(request.answered for request in upstream.requests), "the refreshes")
            steps.append(upstream.calls - before)
            clock.advance(STEP_S)
    busy, most = [calls for calls in steps if calls], 2 * len(questions)
    assert upstream.calls <= most, "one fill and at most one refresh each"
    if jitter:
        assert max(steps) <= 2 * len(questions) / (TTL_S * JITTER / STEP_S), steps
        assert len(busy) >= 10
    else:
        assert max(steps) > len(questions) / 4, steps


async def ask_all(proxy: Proxy, questions: list[str]) -> list[Answered]:
    """Ask every question, 16 at once."""

    async def some(mine: list[str]) -> list[Answered]:
        found = []
        async with await Connection.open(proxy.url) as connection:
            for question in mine:
                headers = [("content-type", "application/json"), ("authorization", "Bearer sk-mass")]
                connection.send(request_bytes("POST", CHAT, headers, encode(chat(question))))
                found.append(answered(await connection.read_response()))
        return found

    parts = await asyncio.gather(*(some(questions[start::16]) for start in range(16)))
    return [one for part in parts for one in part]
