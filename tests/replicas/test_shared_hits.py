"""Several proxies over one engine: what one keeps all serve, and what one removes nobody serves."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.support.polling import eventually_true
from tests.support.redis import redis_server
from tests.support.replicas import fleet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.replicas import Fleet, Replica

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = {"CACHEPROXY_REPLICAS__TIMEOUT_MS": "2000"}
"""A busy machine is not what is tested here."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    directory = tmp_path_factory.mktemp("replicas")
    async with redis_server() as server, fleet(directory, [server.url, server.url], **SETTINGS) as found:
        for replica in found.replicas:
            await eventually_true(partial(_serves, replica), "every replica serves", within_s=20)
        yield found


async def _serves(replica: Replica) -> bool:
    told = (await replica.operate("GET", "replicas")).json()
    return told["lease_s"] > 0 and [one["state"] for one in told["members"]] == ["serving"] * 2


async def _hits(replica: Replica, text: str, **headers: str) -> bool:
    told = await replica.ask(text, {"cache-control": "only-if-cached", **headers})
    return told.status == 200


async def test_an_answer_that_one_replica_kept_another_one_serves(pair: Fleet) -> None:
    one, other = pair.replicas
    first = await one.ask("what is the capital of France?")
    assert first.outcome == "miss"
    await eventually_true(partial(_hits, other, "what is the capital of France?"), "the other one has it")
    told = await other.ask("what is the capital of France?")
    assert (told.outcome, told.content) == ("hit", first.content)


async def test_what_another_replica_kept_is_found_by_similarity(pair: Fleet) -> None:
    one, other = pair.replicas
    await one.ask("What is the capital of Portugal?", {})
    await eventually_true(partial(_hits, other, "what's the capital city of Portugal?"), "it is found by similarity")
    told = await other.ask("what's the capital city of Portugal?", {})
    assert (told.outcome, told.get("x-cacheproxy-tier")) == ("hit", "semantic")


async def test_what_one_replica_purged_nobody_serves(pair: Fleet) -> None:
    one, other = pair.replicas
    text = "which planet is the largest?"
    await one.ask(text)
    await eventually_true(partial(_hits, other, text), "the other one has it")
    told = await other.purge(text)
    assert told.status == 200
    assert told.json()["acked"] is True
    assert (told.json()["purged"], told.json()["laggards"]) == (1, [])
    assert not await _hits(one, text)
    assert not await _hits(other, text)
    assert (await one.ask(text)).outcome == "miss"
