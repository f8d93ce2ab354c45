"""A replica's store that was cut off, and what it serves once it has read again what it missed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cacheproxy.errors import StoreUnavailable
from tests.support.chaos import HOST, ChaosProxy
from tests.support.entries import entry_id, make_entry
from tests.support.polling import eventually, eventually_true
from tests.support.replica_child import opened

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.redis import RedisServer
    from tests.support.replica_child import Opened


async def version(replica: Opened) -> int | None:
    """Return the version it serves; None where it serves none."""
    try:
        entry = await replica.store.get(entry_id("a"))
    except StoreUnavailable:
        return None
    return None if entry is None else int(entry.reply.body["version"])


async def test_a_version_that_was_read_again_takes_the_place_of_the_one_in_memory(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with (
        ChaosProxy(redis.port) as way,
        opened(redis.url, tmp_path, "one", lease_ms=400) as one,
        opened(f"redis://{HOST}:{way.port}/0", tmp_path, "two", lease_ms=400) as two,
    ):

        async def serves(wanted: int) -> bool:
            return await version(two) == wanted

        assert await one.store.put(make_entry("a", version=1), one.store.fence)
        await eventually_true(lambda: serves(1), "the other one serves it")
        way.partition()
        await eventually(lambda: not two.members.serving(0), "its lease has ended")
        assert await one.store.put(make_entry("a", version=2), one.store.fence)
        way.heal()
        await eventually_true(lambda: serves(2), "it serves what it missed", within_s=10)
