"""A replica without its engine answers from the backend and says so; it joins when the engine comes, or comes back."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.support.polling import eventually_true
from tests.support.redis import RedisServer
from tests.support.replicas import Caller, fleet

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.replicas import Replica


async def _hits(replica: Replica, text: str) -> bool:
    return (await replica.ask(text)).outcome == "hit"


async def _ready(replica: Replica, status: str) -> bool:
    """Whether both ports say that it is ready, and in what state."""
    told = []
    for url in (replica.server.proxy.url, replica.server.proxy.admin_url):
        caller = Caller(url)
        told.append(await caller.call("GET", "/readyz", {}, None))
        caller.leave()
    assert [one.status for one in told] == [200, 200], "a balancer keeps it"
    return all(one.json()["status"] == status for one in told)


async def _answers(replica: Replica, text: str) -> None:
    told = await replica.ask(text)
    assert (told.status, told.outcome) == (200, "miss")


@pytest.mark.slow
async def test_a_replica_outlives_its_engine_and_starts_before_it(tmp_path: Path) -> None:
    folder = tmp_path / "engine"
    folder.mkdir()
    engine = RedisServer(folder)
    async with fleet(tmp_path, [engine.url]) as found:
        [replica] = found.replicas
        try:
            assert await _ready(replica, "degraded")
            await _answers(replica, "what is the capital of Spain?")
            purge = await replica.operate("POST", "purge", {"ids": ["0" * 32]})
            assert purge.status == 202
            assert purge.json()["acked"] is False
            for _ in range(2):
                await engine.start()
                await eventually_true(partial(_ready, replica, "ok"), "it joined", within_s=20)
                await eventually_true(partial(_hits, replica, "what is the capital of Spain?"), "it keeps", within_s=20)
                await engine.kill()
                await eventually_true(partial(_ready, replica, "degraded"), "it noticed", within_s=10)
                await _answers(replica, "what is the capital of Spain?")
        finally:
            await engine.kill()
