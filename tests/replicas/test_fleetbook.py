"""Policies of replicas: one version in force at all, changed by one at a time, whoever has which pack on disk."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from cacheproxy.clock import SystemClock
from cacheproxy.errors import NotChanged, NotFound, VersionConflict
from cacheproxy.govern.audit import AuditLog
from cacheproxy.govern.book import Order, Records
from cacheproxy.govern.fleet import Fleet
from cacheproxy.govern.fleetbook import FleetBook
from cacheproxy.govern.maker import Means, PolicyMaker
from cacheproxy.govern.versions import VersionFile
from cacheproxy.model import Embedding
from cacheproxy.policy.edit import merged
from cacheproxy.policy.loader import pack_tree
from tests.support.fleet import linked
from tests.support.packs import changed_pack

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from cacheproxy.policy.pack import Pack
    from tests.support.redis import RedisServer


async def embed(texts: Sequence[str]) -> list[Embedding]:
    return [Embedding(vector=np.full(4, 0.5, dtype=np.float32), unseen=b"") for _ in texts]


class Replica:
    """A data directory with a pack on disk."""

    def __init__(self, folder: Path, name: str, ttl_s: float) -> None:
        self.folder = folder / name
        self.pack = self.folder / "pack"
        self.pack.mkdir(parents=True)
        self.put_on_disk(ttl_s)

    def put_on_disk(self, ttl_s: float) -> None:
        changed_pack(self.pack, ttl_s=ttl_s)

    @asynccontextmanager
    async def started(self, redis: RedisServer) -> AsyncIterator[FleetBook]:
        async with linked(redis) as (link, layout):
            clock = SystemClock()
            records = Records(
                VersionFile(self.folder / "policies.sqlite3"), AuditLog(self.folder / "audit.jsonl", clock)
            )
            maker = PolicyMaker(Means(epoch="e", tenant_of=str, embed_all=embed, fit=lambda *_: None))
            fleet = Fleet(link, layout, log_messages=1000)
            book = FleetBook(str(self.pack), records, maker, clock, fleet=fleet, seen=self.folder / "pack.seen")
            await book.open()
            yield book


def with_ttl(ttl_s: float) -> Callable[[Pack], dict[str, Any]]:
    return lambda pack: merged(pack_tree(pack), {"categories": {"default": {"ttl_s": ttl_s}}})


def ttl(book: FleetBook) -> float:
    return book().pack.categories["default"].ttl_s


def order(**more: Any) -> Order:
    return Order(actor="olga", **more)


async def test_a_change_at_one_replica_is_in_force_at_all_under_the_same_number(
    redis: RedisServer, tmp_path: Path
) -> None:
    one, other = Replica(tmp_path, "one", 100.0), Replica(tmp_path, "other", 100.0)
    async with one.started(redis) as first, other.started(redis) as second:
        assert first().etag == second().etag == '"1"'
        await first.change(with_ttl(7.0), order(if_match='"1"'))
        await second.catch_up()
        assert (second().version, ttl(second)) == (2, 7.0)
        told, _ = await AuditLog(other.folder / "audit.jsonl", SystemClock()).page()
        assert (told[0].actor, told[0].action, told[0].after["version"]) == ("olga", "policies.follow", 2)


async def test_of_two_changes_of_one_version_the_second_is_refused(redis: RedisServer, tmp_path: Path) -> None:
    one, other = Replica(tmp_path, "one", 100.0), Replica(tmp_path, "other", 100.0)
    async with one.started(redis) as first, other.started(redis) as second:
        done = await asyncio.gather(
            first.change(with_ttl(7.0), order(if_match='"1"')),
            second.change(with_ttl(8.0), order(if_match='"1"')),
            return_exceptions=True,
        )
        assert sorted(isinstance(one, VersionConflict) for one in done) == [False, True]
        await asyncio.gather(first.catch_up(), second.catch_up())
        assert first().version == second().version == 2
        assert ttl(first) == ttl(second)


async def test_changes_that_name_no_version_are_all_made_one_after_the_other(
    redis: RedisServer, tmp_path: Path
) -> None:
    one, other = Replica(tmp_path, "one", 100.0), Replica(tmp_path, "other", 100.0)
    async with one.started(redis) as first, other.started(redis) as second:
        await asyncio.gather(first.change(with_ttl(7.0), order()), second.change(with_ttl(8.0), order()))
        await asyncio.gather(first.catch_up(), second.catch_up())
        assert first().version == second().version == 3
        assert ttl(first) == ttl(second)


async def test_a_version_is_rolled_back_to_wherever_it_was_made(redis: RedisServer, tmp_path: Path) -> None:
    one, other = Replica(tmp_path, "one", 100.0), Replica(tmp_path, "other", 100.0)
    async with one.started(redis) as first, other.started(redis) as second:
        await first.change(with_ttl(7.0), order())
        await first.change(with_ttl(8.0), order())
        await second.rollback(2, order())
        await first.catch_up()
        assert (first().version, ttl(first)) == (4, 7.0)
        assert [version.n for version in await second.versions()] == [4, 3, 2, 1]
        with pytest.raises(NotFound):
            await second.rollback(17, order())


async def test_an_operators_version_outlives_restarts_with_the_old_pack_on_disk(
    redis: RedisServer, tmp_path: Path
) -> None:
    one = Replica(tmp_path, "one", 100.0)
    async with one.started(redis) as book:
        await book.change(with_ttl(7.0), order())
    async with one.started(redis) as book, Replica(tmp_path, "fresh", 100.0).started(redis) as fresh:
        assert (book().version, ttl(book), ttl(fresh)) == (2, 7.0, 7.0)


async def test_a_new_pack_is_loaded_once_and_replicas_with_the_old_one_do_not_take_it_back(
    redis: RedisServer, tmp_path: Path
) -> None:
    one, other = Replica(tmp_path, "one", 100.0), Replica(tmp_path, "other", 100.0)
    async with one.started(redis) as first, other.started(redis):
        pass
    one.put_on_disk(55.0)
    async with one.started(redis) as first:  # the first of a rolling upgrade
        assert (first().version, ttl(first)) == (2, 55.0)
        async with other.started(redis) as second:  # restarted, not yet upgraded
            assert (second().version, ttl(second)) == (2, 55.0)
        other.put_on_disk(55.0)
        async with other.started(redis) as second:  # upgraded
            assert (second().version, ttl(second)) == (2, 55.0)
        await first.catch_up()
        assert first().version == 2


async def test_a_rollback_of_the_deployment_counts_as_a_new_pack(redis: RedisServer, tmp_path: Path) -> None:
    one = Replica(tmp_path, "one", 100.0)
    for n, ttl_s in ((1, 100.0), (2, 55.0), (3, 100.0), (3, 100.0)):
        one.put_on_disk(ttl_s)
        async with one.started(redis) as book:
            assert (book().version, ttl(book)) == (n, ttl_s)


async def test_a_reload_puts_the_pack_on_disk_in_force_at_all(redis: RedisServer, tmp_path: Path) -> None:
    one, other = Replica(tmp_path, "one", 100.0), Replica(tmp_path, "other", 100.0)
    async with one.started(redis) as first, other.started(redis) as second:
        await first.change(with_ttl(7.0), order())
        assert await first.reload() is None  # the pack it was made over
        for replica in (one, other):
            replica.put_on_disk(9.0)
        assert await first.reload() is not None
        assert await second.reload() is None
        assert (second().version, ttl(second)) == (3, 9.0)


async def test_without_the_engine_policy_stays_and_nobody_changes_it(redis: RedisServer, tmp_path: Path) -> None:
    one = Replica(tmp_path, "one", 100.0)
    async with one.started(redis) as book:
        await book.change(with_ttl(7.0), order())
        await redis.kill()
        with pytest.raises(NotChanged, match="cannot be reached"):
            await book.change(with_ttl(8.0), order())
        assert (book().version, ttl(book)) == (2, 7.0)
    one.put_on_disk(55.0)
    async with one.started(redis) as book:  # what the replicas had last, whatever is on disk
        assert (book().version, ttl(book)) == (2, 7.0)
        assert [version.n for version in await book.versions()] == [2, 1]


async def test_an_emptied_engine_gets_the_newest_version_back(redis: RedisServer, tmp_path: Path) -> None:
    one, other = Replica(tmp_path, "one", 100.0), Replica(tmp_path, "other", 100.0)
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(one.started(redis))
        second = await stack.enter_async_context(other.started(redis))
        await first.change(with_ttl(7.0), order())  # the other one has not heard of it
        await redis.ask("FLUSHALL")
        await second.catch_up()
        await first.catch_up()
        await second.catch_up()
        assert (first().version, second().version) == (2, 2)
        assert ttl(first) == ttl(second) == 7.0
