"""Two replicas' stores over one engine: how puts, purges, erasures and losses meet."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from cacheproxy.errors import StoreUnavailable
from cacheproxy.model import ALIAS_TAG, Selector
from cacheproxy.replicated import SharedReplicas
from cacheproxy.shared.layout import Layout
from cacheproxy.store.codec import encode
from cacheproxy.store.redis.documents import Documents
from tests.support.entries import EPOCH, entry_id, make_entry, same
from tests.support.polling import eventually, eventually_true
from tests.support.redis import redis_server
from tests.support.shared_store import joined_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from cacheproxy.model import Entry, Partition
    from cacheproxy.store.redis.documents import Raised
    from tests.support.redis import RedisServer
    from tests.support.shared_store import Joined

KEYS = Layout("cacheproxy", 1)


def fresh(key: str, version: int = 0, **parts: Any) -> Entry:
    """Return an entry made just now: stores and engine go by the machine's clock."""
    return replace(make_entry(key, version=version, created_s=time.time()), **parts)


@pytest.fixture
async def pair(redis: RedisServer, tmp_path: Path) -> AsyncIterator[tuple[Joined, Joined]]:
    async with joined_store(redis.url, tmp_path / "a") as one, joined_store(redis.url, tmp_path / "b") as other:
        yield one, other


async def has(joined: Joined, key: str) -> bool:
    try:
        return await joined.store.get(entry_id(key)) is not None
    except StoreUnavailable:
        return False


async def lacks(joined: Joined, key: str) -> bool:
    return not await has(joined, key)


async def keep(joined: Joined, entry: Entry) -> bool:
    return await joined.store.put(entry, joined.store.fence)


class Index:
    """A listener that remembers what it was told."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}

    def came(self, partition: Partition, entry_id: str, vector: NDArray[np.float32]) -> None:
        """Hold a vector."""
        assert partition.epoch == EPOCH
        self.held[entry_id] = vector.tobytes()

    def went(self, entry_ids: Collection[str]) -> None:
        """Let go."""
        for one in entry_ids:
            self.held.pop(one, None)


class _Failing(Index):
    fails = True

    def went(self, entry_ids: Collection[str]) -> None:
        """Fail when something goes."""
        if self.fails and entry_ids:
            raise RuntimeError("told to")
        super().went(entry_ids)


async def test_what_one_kept_the_other_reads_whole_and_finds(pair: tuple[Joined, Joined]) -> None:
    one, other = pair
    index = Index()
    other.store.listen(index)
    entry = fresh("paris")
    assert await keep(one, entry)
    await eventually_true(lambda: has(other, "paris"), "it is there")
    assert same(await other.store.get(entry.id), entry)
    assert entry.vector is not None
    await eventually(lambda: index.held == {entry.id: entry.vector.tobytes()}, "its vector was told")  # type: ignore[union-attr]  # asserted above
    await one.store.purge([entry.id])
    await eventually(lambda: index.held == {}, "it left the index")


async def test_an_acknowledged_purge_is_of_nothing_that_any_replica_serves(pair: tuple[Joined, Joined]) -> None:
    one, other = pair
    for turn in range(30):
        await keep(one, fresh("paris", turn))
        await eventually_true(lambda: has(other, "paris"), "it is there")
        reading = [asyncio.create_task(has(other, "paris")) for _ in range(random.randrange(8))]
        assert await other.store.purge([entry_id("paris")]) == 1
        assert (await other.members.acknowledged({0: other.store.positions[0]}, 5.0)).everybody
        assert not await has(one, "paris")
        assert not await has(other, "paris")
        await asyncio.gather(*reading)
        assert not await has(other, "paris")


async def test_what_was_read_before_a_purge_was_acknowledged_is_not_held_after_it(pair: tuple[Joined, Joined]) -> None:
    one, other = pair
    await keep(one, fresh("paris"))
    await eventually_true(lambda: has(other, "paris"), "it is there")
    fence, read = other.store.fence, await other.store.get(entry_id("paris"))
    assert read is not None
    assert other.store.still_holds(read, fence)
    await one.store.purge([entry_id("paris")])
    await one.members.acknowledged({0: one.store.positions[0]}, 5.0)
    assert not other.store.still_holds(read, fence)
    assert await keep(other, fresh("paris", version=2))
    assert not other.store.still_holds(read, fence)


async def test_what_repeats_an_answer_is_not_held_once_that_was_purged_at_another_replica(
    pair: tuple[Joined, Joined],
) -> None:
    one, other = pair
    await keep(one, fresh("paris"))
    await keep(one, fresh("alias", tags=(f"{ALIAS_TAG}{entry_id('paris')}",)))
    await eventually_true(lambda: has(other, "alias"), "it is there")
    fence, read = other.store.fence, await other.store.get(entry_id("alias"))
    assert read is not None
    assert other.store.still_holds(read, fence)
    await one.store.purge([entry_id("paris")])
    assert (await one.members.acknowledged({0: one.store.positions[0]}, 5.0)).everybody
    assert not other.store.still_holds(read, fence)
    assert await keep(other, fresh("paris", version=2))
    assert not other.store.still_holds(read, fence)


async def test_a_purge_waits_for_its_own_shards_and_not_for_those_of_purges_before(
    pair: tuple[Joined, Joined], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    held, handle = asyncio.Event(), other.store.follow

    async def late(shard: int, messages: Sequence[Any]) -> None:
        await held.wait()
        await handle(shard, messages)

    monkeypatch.setattr(other.store._following, "handle", late)
    replicas = SharedReplicas(one.store, one, timeout_s=0.2)  # type: ignore[arg-type]  # all that it asks of a replica
    asked = replicas.asked()
    await one.store.purge([entry_id("paris")])
    assert (await replicas.acknowledged(asked)).laggards == (other.members.replica,)
    assert (await replicas.acknowledged(replicas.asked())).everybody
    held.set()
    monkeypatch.undo()


async def test_a_purge_is_waited_for_though_an_earlier_ones_reply_comes_later(
    pair: tuple[Joined, Joined], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    for key in ("early", "late"):
        assert await keep(one, fresh(key))
    await eventually_true(lambda: has(other, "early"), "it is there")
    purge, released = Documents.purge, asyncio.Event()

    async def delivered(self: Documents, shard: int, ids: Sequence[str], bound: int | None = None) -> Raised:
        raised = await purge(self, shard, ids, bound)
        if entry_id("early") in ids:
            await released.wait()
        return raised

    monkeypatch.setattr(Documents, "purge", delivered)
    early = asyncio.create_task(one.store.purge([entry_id("early")]))
    await eventually_true(lambda: lacks(other, "early"), "the engine did it")
    await one.store.purge([entry_id("late")])
    last = one.store.positions[0]
    released.set()
    await early
    assert one.store.positions[0] == last


async def test_a_fill_that_began_before_a_purge_at_another_replica_is_refused(pair: tuple[Joined, Joined]) -> None:
    one, other = pair
    began = one.store.fence
    await other.store.purge([entry_id("paris")])
    assert not await one.store.put(fresh("paris"), began), "whether this replica has heard of it, or not yet"
    assert await one.store.put(fresh("rome"), began)
    await other.members.acknowledged({0: other.store.positions[0]}, 5.0)
    assert not await one.store.put(fresh("paris"), began)
    assert await keep(one, fresh("paris"))


async def test_puts_and_purges_of_two_replicas_end_in_the_same_state(pair: tuple[Joined, Joined]) -> None:
    rng = random.Random(7)

    async def act(joined: Joined, number: int) -> None:
        key = rng.choice("abc")
        if rng.random() < 0.6:
            await keep(joined, fresh(key, number))
        else:
            await joined.store.purge([entry_id(key)])

    for number in range(40):
        await asyncio.gather(*(act(pair[turn % 2], number * 8 + turn) for turn in range(8)))
    await keep(pair[0], fresh("end"))
    await eventually_true(lambda: has(pair[1], "end"), "all was followed")
    for key in "abc":
        assert same(await pair[0].store.get(entry_id(key)), await pair[1].store.get(entry_id(key)))
    assert await pair[0].store.reconcile() == 0
    assert await pair[1].store.reconcile() == 0
    one, other = (sorted(map(repr, joined.store.holdings())) for joined in pair)
    assert one == other


async def test_of_two_puts_of_one_id_the_last_one_is_served_everywhere(pair: tuple[Joined, Joined]) -> None:
    one, other = pair
    for version in range(20):
        await asyncio.gather(keep(one, fresh("paris", version)), keep(other, fresh("paris", version + 1000)))
    await keep(one, fresh("end"))
    await eventually_true(lambda: has(other, "end"), "all was followed")
    assert same(await one.store.get(entry_id("paris")), await other.store.get(entry_id("paris")))


async def test_an_erasure_hides_on_every_replica_and_refuses_their_fills(pair: tuple[Joined, Joined]) -> None:
    one, other = pair
    for key in "abc":
        await keep(one, fresh(key, tenant="t1" if key != "c" else "t2"))
    await eventually_true(lambda: has(other, "c"), "all is there")
    began = other.store.fence
    assert sorted(await one.store.erase(Selector(tenant="t1"))) == sorted([entry_id("a"), entry_id("b")])
    assert (await one.members.acknowledged({0: one.store.positions[0]}, 5.0)).everybody
    for joined in pair:
        assert [await has(joined, key) for key in "abc"] == [False, False, True]
    assert not await other.store.put(fresh("late", tenant="t1"), began)
    assert await keep(other, fresh("new", tenant="t1"))


async def test_what_was_hidden_by_a_replica_that_died_stays_hidden_and_is_removed_by_another(
    redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with joined_store(redis.url, tmp_path / "a") as one:
        await keep(one, fresh("a", tenant="t1"))

        async def dies(*_: object) -> int:
            raise StoreUnavailable("the process ends here")

        monkeypatch.setattr(one.store._documents, "purge", dies)
        with pytest.raises(StoreUnavailable):
            await one.store.erase(Selector(tenant="t1"))
    assert await redis.ask("EXISTS", KEYS.key(0, "doc", entry_id("a"))) == 1
    monkeypatch.undo()
    async with joined_store(redis.url, tmp_path / "b") as other:
        assert not await has(other, "a")
        assert len(other.store) == 0
        await eventually(lambda: other.election.leads, "it leads", within_s=10)
        await other.store.reconcile()
        assert await redis.ask("EXISTS", KEYS.key(0, "doc", entry_id("a"))) == 0


async def test_an_emptied_engine_is_a_purge_of_all_and_takes_no_fill_from_before(
    redis: RedisServer, pair: tuple[Joined, Joined]
) -> None:
    one, other = pair
    await keep(one, fresh("paris"))
    await eventually_true(lambda: has(other, "paris"), "it is there")
    began = one.store.fence
    await redis.ask("FLUSHALL")
    with contextlib.suppress(StoreUnavailable):
        assert not await one.store.put(fresh("late"), began)
    for joined in pair:
        await eventually(lambda joined=joined: len(joined.store) == 0, "it is empty")  # type: ignore[misc]  # bound now
        await eventually(lambda joined=joined: not joined.store.degraded(), "it serves")  # type: ignore[misc]  # bound now
    assert not await one.store.put(fresh("late"), began)
    assert await keep(one, fresh("rome"))
    await eventually_true(lambda: has(other, "rome"), "they go on")


async def test_a_log_cut_behind_a_replica_is_noticed_and_everything_is_read_again(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with joined_store(redis.url, tmp_path / "a") as one, joined_store(redis.url, tmp_path / "b") as other:
        await keep(one, fresh("before"))
        await eventually_true(lambda: has(other, "before"), "it is there")
        async with redis.client() as client, client.pipeline(transaction=True) as whole:
            whole.execute_command("DEL", KEYS.key(0, "doc", entry_id("before")))
            whole.execute_command("HDEL", KEYS.key(0, "dir"), entry_id("before"))
            whole.execute_command("DEL", KEYS.stream(0))
            await whole.execute()
        await eventually(lambda: sum(other.store.resyncs.values()) >= 2, "it was noticed")
        await eventually(lambda: not other.store.degraded(), "it serves")
        assert not await has(other, "before")
        assert entry_id("before") not in [found[1] async for found in other.store.scan(EPOCH)]


async def test_a_purge_that_the_engine_lost_is_applied_again(redis: RedisServer, tmp_path: Path) -> None:
    """As a failover does: the document is back in its old version, the log and the tomb know nothing."""
    async with joined_store(redis.url, tmp_path / "a") as one, joined_store(redis.url, tmp_path / "b") as other:
        await keep(one, fresh("paris"))
        await eventually_true(lambda: has(other, "paris"), "it is there")
        document, line = KEYS.key(0, "doc", entry_id("paris")), KEYS.key(0, "dir")
        dumped, listed = await redis.ask("DUMP", document), await redis.ask("HGET", line, entry_id("paris"))
        await one.store.purge([entry_id("paris")])
        await one.members.acknowledged({0: one.store.positions[0]}, 5.0)
        await redis.ask("RESTORE", document, 0, dumped)
        await redis.ask("HSET", line, entry_id("paris"), listed)
        await redis.ask("DEL", KEYS.stream(0))
        for joined in (one, other):
            await eventually(lambda joined=joined: sum(joined.store.resyncs.values()) >= 2, "noticed")  # type: ignore[misc]  # bound now
            await eventually(lambda joined=joined: not joined.store.degraded(), "it serves")  # type: ignore[misc]  # bound now
            assert not await has(joined, "paris")
        assert await redis.ask("EXISTS", document) == 0
        # And after a restart of the replica that asked for it, by its journal.
        await redis.ask("RESTORE", document, 0, dumped)
        await redis.ask("HSET", line, entry_id("paris"), listed)
    async with joined_store(redis.url, tmp_path / "a") as again:
        assert not await has(again, "paris")
        assert await redis.ask("EXISTS", document) == 0


async def test_an_engine_that_lost_a_purge_takes_no_fill_from_before_it(
    redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is back, as it was saved before the purge, while a replica still holds its lease and has a fill in the air."""
    async with (
        joined_store(redis.url, tmp_path / "a", lease_ms=6000) as one,
        joined_store(redis.url, tmp_path / "b", lease_ms=6000) as other,
    ):
        await _lost_purge(redis, (one, other), monkeypatch)


async def _lost_purge(redis: RedisServer, pair: tuple[Joined, Joined], monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = pair
    following = other.store._following
    began, held, handle = other.store.fence, asyncio.Event(), following.handle

    async def late(shard: int, messages: Sequence[Any]) -> None:
        await held.wait()
        await handle(shard, messages)

    monkeypatch.setattr(following, "handle", late)  # the purge has not reached it when the engine ends
    await redis.ask("SAVE")
    await one.store.purge([entry_id("paris")])
    await redis.kill()
    await redis.start()
    assert other.members.serving(0)
    with contextlib.suppress(StoreUnavailable):
        assert not await other.store.put(fresh("paris"), began)
    held.set()
    for joined in pair:
        await eventually(lambda joined=joined: sum(joined.store.resyncs.values()) >= 2, "noticed")  # type: ignore[misc]  # bound now
        await eventually(lambda joined=joined: not joined.store.degraded(), "it serves")  # type: ignore[misc]  # bound now
        assert not await has(joined, "paris")
    assert not await other.store.put(fresh("paris"), began)
    assert await keep(other, fresh("paris"))


async def test_a_reconcile_mends_what_differs_and_counts_it(redis: RedisServer, pair: tuple[Joined, Joined]) -> None:
    one, other = pair
    for key in "abcd":
        await keep(one, fresh(key))
    await eventually_true(lambda: has(other, "d"), "all is there")
    directory = other.store._directory
    directory.lose(entry_id("a"), 2**60)
    await redis.ask("DEL", KEYS.key(0, "doc", entry_id("b")))
    await redis.ask("HDEL", KEYS.key(0, "dir"), entry_id("b"))
    assert await other.store.reconcile() == 2
    assert [await has(other, key) for key in "abcd"] == [True, False, True, True]
    assert await other.store.reconcile() == 0


async def test_a_missing_document_is_a_miss_and_leaves_index_and_directory_of_all(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with (
        joined_store(redis.url, tmp_path / "a", hot_bytes=0) as one,
        joined_store(redis.url, tmp_path / "b") as other,
    ):
        index = Index()
        other.store.listen(index)
        await keep(one, fresh("paris"))
        await eventually(lambda: entry_id("paris") in index.held, "it is found")
        await redis.ask("DEL", KEYS.key(0, "doc", entry_id("paris")))
        assert not await has(one, "paris")
        await eventually(lambda: len(one.store) == len(other.store) == 0 and not index.held, "all let go of it")
        assert await redis.ask("HLEN", KEYS.key(0, "dir")) == 0


HOSTILE = {
    "another kind of key": ("SET", b"text"),
    "bad msgpack": ("HSET", b"r", b"\xc1\xc1", b"m", b"\xc1", b"ver", b"9"),
    "pickle": ("HSET", b"r", b"\x80\x04cos\nsystem\n(S'true'\ntR.", b"m", b"\x80\x04.", b"ver", b"9"),
    "no version": ("HSET", b"r", b"x", b"ver", b"soon"),
    "a huge value": ("HSET", b"r", b"x" * 32_000_000, b"ver", b"9"),
    "another entry's record": ("HSET", b"r", encode(make_entry("other")).record, b"ver", b"9"),
}


@pytest.mark.parametrize("bad", HOSTILE.values(), ids=HOSTILE)
async def test_what_no_proxy_wrote_is_never_served_and_counted(
    redis: RedisServer, tmp_path: Path, bad: tuple[Any, ...]
) -> None:
    """Row 83 of reliability."""
    async with joined_store(redis.url, tmp_path / "a", hot_bytes=0) as one:
        await keep(one, fresh("paris"))
        document = KEYS.key(0, "doc", entry_id("paris"))
        await redis.ask("DEL", document)
        await redis.ask(bad[0], document, *bad[1:])
        await redis.ask("HSET", KEYS.key(0, "dir"), "not an id", "not a version")
        assert not await has(one, "paris")
        await one.store.reconcile()
        assert one.store.foreign + one.store.corrupt_records > 0
        assert not await has(one, "paris")
        assert await keep(one, fresh("rome"))


@pytest.mark.parametrize("unknown", [("wither",), ("purge", "ids"), ("hide", "sel", "gone")])
async def test_a_message_of_a_later_version_has_everything_read_again(
    redis: RedisServer, pair: tuple[Joined, Joined], unknown: tuple[str, ...]
) -> None:
    """Row 101 of reliability: what it did to the documents is found by looking, and nothing is served before."""
    one, other = pair
    await keep(one, fresh("paris"))
    await eventually_true(lambda: has(other, "paris"), "it is there")
    await redis.ask("DEL", KEYS.key(0, "doc", entry_id("paris")))
    await redis.ask("HDEL", KEYS.key(0, "dir"), entry_id("paris"))
    op, field, value = (*unknown, "id", "x")[:3]
    await redis.ask("XADD", KEYS.stream(0), "*", "op", op, field, value)
    await eventually(lambda: len(one.store) == len(other.store) == 0, "both looked")
    assert other.store.foreign == 1
    for joined in pair:
        assert joined.store.resyncs["failed"] == 1
        await eventually(lambda joined=joined: not joined.store.degraded(), "it serves")  # type: ignore[misc]  # bound now
    assert await keep(one, fresh("rome"))
    await eventually_true(lambda: has(other, "rome"), "they go on")
    assert other.store.resyncs["failed"] == 1


async def test_a_shard_with_an_erasure_that_cannot_be_read_is_not_served_before_that_is_gone(
    redis: RedisServer, pair: tuple[Joined, Joined]
) -> None:
    one, _ = pair
    await keep(one, fresh("paris"))
    await redis.ask("HSET", KEYS.key(0, "hidden"), "of a later version", b"9|\xc1")
    one.members.lose(0, "failed")
    await asyncio.sleep(1.0)
    assert one.store.degraded()
    assert not await has(one, "paris")
    await redis.ask("HDEL", KEYS.key(0, "hidden"), "of a later version")
    await eventually_true(lambda: has(one, "paris"), "it is served again", within_s=10)


@pytest.mark.quiet
async def test_without_a_lease_nothing_is_served_or_kept_and_nothing_waits(redis: RedisServer, tmp_path: Path) -> None:
    async with joined_store(redis.url, tmp_path / "a", lease_ms=400) as one:
        await keep(one, fresh("paris"))
        redis.pause()
        try:
            await eventually(lambda: bool(one.store.degraded()), "its lease has ended", within_s=2)
            began_s = time.monotonic()
            for call in (one.store.get(entry_id("paris")), keep(one, fresh("rome"))):
                with pytest.raises(StoreUnavailable):
                    await call
            assert time.monotonic() - began_s < 0.1
            assert one.store.health() == ""
        finally:
            redis.resume()
        await eventually_true(lambda: has(one, "paris"), "it serves again", within_s=10)


async def test_a_purge_while_the_engine_is_away_hides_here_and_is_done_when_it_is_back(
    redis: RedisServer, pair: tuple[Joined, Joined]
) -> None:
    one, other = pair
    await keep(one, fresh("paris"))
    await eventually_true(lambda: has(other, "paris"), "it is there")
    document = KEYS.key(0, "doc", entry_id("paris"))
    port, flags = redis.port, redis.flags
    del port, flags
    redis.pause()
    purging = asyncio.create_task(one.store.purge([entry_id("paris")]))
    try:
        with pytest.raises(StoreUnavailable):
            await purging
    finally:
        redis.resume()
    assert not await has(one, "paris")

    async def swept() -> bool:
        with contextlib.suppress(StoreUnavailable):
            await one.store.sweep()
        return not await redis.ask("EXISTS", document)

    await eventually_true(swept, "it was tried again", within_s=10)
    await eventually(lambda: len(other.store) == 0, "all followed")


async def test_a_purge_whose_listener_failed_is_owed_and_holds_up_nobody(redis: RedisServer, tmp_path: Path) -> None:
    async with joined_store(redis.url, tmp_path / "a") as one:
        await keep(one, fresh("paris"))
        index = _Failing()
        one.store.listen(index)
        with pytest.raises(RuntimeError):
            await one.store.purge([entry_id("paris")])
        assert not await has(one, "paris")
        index.fails = False
        async with asyncio.timeout(10):
            assert await keep(one, fresh("paris", version=2))
        assert await has(one, "paris")


async def test_two_replicas_that_erase_the_same_hide_it_each_by_itself(
    redis: RedisServer, pair: tuple[Joined, Joined], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = set[str]()
    for joined in pair:
        documents = joined.store._documents
        hide = documents.hide

        async def noted(shard: int, name: str, selector: Selector, hide: Any = hide) -> Any:
            names.add(name)
            return await hide(shard, name, selector)

        monkeypatch.setattr(documents, "hide", noted)
    await asyncio.gather(*(joined.store.erase(Selector(category="default")) for joined in pair))
    assert len(names) == 2
    assert await redis.ask("HLEN", KEYS.key(0, "hidden")) == 0


async def test_a_full_engine_takes_purges_and_no_entries(tmp_path: Path) -> None:
    """Row 74 of reliability."""
    async with redis_server("--maxmemory", "6mb", "--maxmemory-policy", "noeviction") as redis:  # noqa: SIM117 - the url
        async with joined_store(redis.url, tmp_path / "a") as one:
            refused = False
            for number in range(400):
                try:
                    await keep(one, fresh(str(number), 0, text="x" * 50_000))
                except StoreUnavailable:
                    refused = True
                    break
            assert refused
            assert await one.store.purge([entry_id("0"), entry_id("1")]) == 2
            assert (await one.members.acknowledged({0: one.store.positions[0]}, 5.0)).everybody
            assert not await has(one, "0")
            await one.store.erase(Selector(before_s=time.time() + 1))
            assert len(one.store) == 0
            assert await keep(one, fresh("again"))


async def test_the_elected_one_makes_room_by_what_was_used_anywhere(redis: RedisServer, tmp_path: Path) -> None:
    async with (
        joined_store(redis.url, tmp_path / "a", max_entries=10) as one,
        joined_store(redis.url, tmp_path / "b", max_entries=10) as other,
    ):
        await eventually(lambda: one.election.leads or other.election.leads, "one leads", within_s=10)
        leader, follower = (one, other) if one.election.leads else (other, one)
        for number in range(12):
            await keep(leader, fresh(str(number)))
        await eventually(lambda: len(follower.store) == 12, "all is there")
        for number in range(3):
            assert await has(follower, str(number))
        await follower.store._using.tell()
        directory = leader.store._directory
        await eventually(lambda: directory.least_recently_used(1)[0][0] == entry_id("3"), "its uses were told")
        assert not follower.store.over_cap
        assert await follower.store.sweep() == []
        assert leader.store.over_cap
        assert sorted(await leader.store.sweep()) == sorted([entry_id("3"), entry_id("4")])
        await eventually(lambda: len(follower.store) == 10, "all followed")
        assert await redis.ask("HLEN", KEYS.key(0, "dir")) == 10


async def test_entries_leave_the_engine_by_themselves_when_they_are_gone(redis: RedisServer, tmp_path: Path) -> None:
    async with joined_store(redis.url, tmp_path / "a") as one:
        short = replace(make_entry("brief", created_s=time.time(), ttl_s=2.0), stale_until_s=0.0)
        await keep(one, short)
        left_ms = await redis.ask("PTTL", KEYS.key(0, "doc", short.id))
        assert 0 < left_ms <= 2000
        await asyncio.sleep(max(0.0, short.gone_s - time.time()) + 0.05)
        assert await redis.ask("EXISTS", KEYS.key(0, "doc", short.id)) == 0
        assert not await has(one, "brief")
        assert await one.store.sweep() == [short.id]


async def test_pages_are_the_same_on_every_replica(pair: tuple[Joined, Joined]) -> None:
    one, other = pair
    for number in range(7):
        await keep(pair[number % 2], fresh(str(number)))
    await eventually(lambda: len(one.store) == len(other.store) == 7, "all is there")
    first = await one.store.page(Selector(), limit=3)
    assert first.after is not None
    rest = await other.store.page(Selector(), after=first.after, limit=10)
    assert [entry.id for entry in (*first.entries, *rest.entries)] == [entry_id(str(number)) for number in range(7)]
