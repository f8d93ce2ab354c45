"""A replica that never knew the secret of the others passes requests on, and starts anew once it can learn it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cacheproxy.install import known_secret
from cacheproxy.shared.installs import Installs
from tests.support.fleet import linked
from tests.support.polling import eventually_true
from tests.support.process import serving
from tests.support.proxy import Proxy, chat
from tests.support.redis import RedisServer, redis_server

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.upstream import ScriptedUpstream

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

SECRET = b"1" * 32


async def test_a_replica_that_was_apart_drains_and_joins_by_itself(
    tmp_path: Path, module_upstream: ScriptedUpstream
) -> None:
    async with redis_server() as redis:
        await apart(redis, tmp_path, module_upstream)


async def apart(redis: RedisServer, tmp_path: Path, module_upstream: ScriptedUpstream) -> None:
    async with linked(redis) as (link, layout):
        await Installs(link, layout, by_file=False).agree(SECRET, ours=True)
    redis.pause()
    async with serving(tmp_path, module_upstream.url, "--store", redis.url) as server:
        answered = await server.proxy.ask(chat(), key="sk-1")
        assert (answered.status, answered.outcome) == (200, "miss")
        assert not await server.proxy.cached(chat(), key="sk-1")
        assert known_secret(tmp_path) is None
        redis.resume()

        def starts() -> list[dict[str, object]]:
            return [event for event in server.events if event["event"] == "server_started"]

        async def again() -> bool:
            return len(starts()) == 2

        await eventually_true(again, "it starts anew", within_s=60.0)
        assert known_secret(tmp_path) == SECRET
        told = starts()[1]
        assert told["replica"] != starts()[0]["replica"], "a new name at each start"
        joined = Proxy(url=f"http://127.0.0.1:{told['port']}", admin_url=f"http://127.0.0.1:{told['admin_port']}")

        async def keeps() -> bool:
            return (await joined.ask(chat(), key="sk-1")).outcome == "hit"

        await eventually_true(keeps, "it keeps and serves", within_s=20.0)
        assert not server.ended
