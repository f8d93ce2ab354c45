"""An erasure asked for at one replica is done at all, also at one that was down; who has not answered is named."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import msgspec

from cacheproxy.clock import SystemClock
from cacheproxy.converging import told_elsewhere
from cacheproxy.erasure import Erasure, Part
from cacheproxy.errors import FeedbackUnavailable
from cacheproxy.forgetting import Forgetting
from cacheproxy.model import Selector
from cacheproxy.owing import Owed
from cacheproxy.settings import Replicas, Store
from cacheproxy.shared.control import Control
from cacheproxy.shared.erasures import TOPIC, Asked, Erasures
from cacheproxy.shared.layout import Layout
from cacheproxy.shared.link import Link
from cacheproxy.shared.members import Members
from cacheproxy.store.memory import MemoryStore
from cacheproxy.supervise import Supervisor
from tests.support.entries import make_entry
from tests.support.fleet import linked
from tests.support.polling import eventually_true

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection
    from pathlib import Path

    import pytest

    from tests.support.redis import RedisServer

TERMS = Replicas(timeout_ms=2000)
TENANT = make_entry("x").tenant


class Notes:
    """A part that remembers tenants, and may fail."""

    def __init__(self) -> None:
        self.told: list[tuple[str, tuple[str, ...]]] = []
        self.failures = 0

    async def forget(self, selector: Selector, ids: Collection[str]) -> int:
        if self.failures:
            self.failures -= 1
            raise FeedbackUnavailable("the disk is full")
        self.told.append((selector.tenant, tuple(ids)))
        return 1


class Replica:
    """What is erased at one replica."""

    def __init__(self, members: Members, forgetting: Forgetting, erasure: Erasure, notes: Notes) -> None:
        self.members = members
        self.forgetting = forgetting
        self.erasure = erasure
        self.notes = notes
        self.unindexed: list[str] = []

    @property
    def name(self) -> str:
        return self.members.replica


@asynccontextmanager
async def started(
    redis: RedisServer, folder: Path, *, follows: bool = True, collects: bool = True, wait_s: float = 10.0
) -> AsyncIterator[Replica]:
    """`wait_s` is how long it waits for the others.

    `collects`: it has a part that is told of purges, as a replica with training pairs has.
    """
    await asyncio.to_thread(folder.mkdir, exist_ok=True)
    async with AsyncExitStack() as stack:
        clock = SystemClock()
        link = await stack.enter_async_context(Link(Store(url=redis.url), TERMS, clock))
        layout = Layout("cacheproxy", link.shards)
        members = await stack.enter_async_context(Members(link, layout, TERMS, clock))
        supervisor = await stack.enter_async_context(Supervisor())

        async def alive() -> list[str]:
            return [member.replica for member in await members.listed() if member.state != "gone"]

        kept = Erasures(link, layout, log_messages=1000, replica=members.replica, seen=folder / "seen")
        forgetting = Forgetting(kept, members.replica, alive, supervisor.spawn, clock, wait_s=wait_s)
        notes, store, unindexed = Notes(), MemoryStore(Store(), clock), list[str]()
        await store.put(make_entry("x"), store.fence)

        def purged(ids: Collection[str]) -> int:
            unindexed.extend(f"purged {one}" for one in ids)
            return 0

        parts = [Part(name="notes", forget=notes.forget)]
        if collects:
            parts.append(Part(name="pairs", forget=lambda _, ids: purged(ids), purged=True))
        erasure = Erasure(
            store,
            lambda ids, *, scrub: unindexed.extend(ids),
            told_elsewhere(forgetting, parts),
            clock,
            folder / "journal.json",
            forgetting.answers,
        )
        forgetting.erasure = erasure
        control = Control(link, layout, members, log_messages=1000)
        control.on(TOPIC, forgetting.hear, forgetting.reload)
        supervisor.every(0.2, forgetting.tend, "forgetting")
        replica = Replica(members, forgetting, erasure, notes)
        replica.unindexed = unindexed
        if follows:
            supervisor.spawn(control.run())

            async def serving() -> bool:
                return members.serving("c")

            await eventually_true(serving, "it follows the control log")
        yield replica


async def test_every_replica_erases_and_the_answer_comes_when_all_have(redis: RedisServer, tmp_path: Path) -> None:
    async with started(redis, tmp_path / "one") as one, started(redis, tmp_path / "other") as other:
        erased = await one.erasure.erase(Selector(tenant=TENANT))
        told = {done.part: (done.removed, done.failed) for done in erased.parts}
        assert told["replicas"] == (1, "")
        assert erased.pending == ()
        [entry_id] = erased.ids
        assert one.notes.told == other.notes.told == [(TENANT, (entry_id,))]
        assert entry_id in other.unindexed
        assert one.erasure.owed == other.erasure.owed == 0


async def test_a_replica_whose_disk_fails_is_named_and_does_it_later(redis: RedisServer, tmp_path: Path) -> None:
    async with started(redis, tmp_path / "one", wait_s=1.0) as one, started(redis, tmp_path / "other") as other:
        other.notes.failures = 10**6
        erased = await one.erasure.erase(Selector(tenant=TENANT))
        assert erased.pending == ("replicas",)
        assert other.name in erased.parts[-1].failed
        assert one.erasure.owed == 0  # it is the other one's now
        assert other.erasure.owed == 1
        other.notes.failures = 0

        async def done() -> bool:
            return bool(other.notes.told) and other.erasure.owed == 0

        await eventually_true(done, "the other one has done it")


async def test_one_that_was_down_does_it_when_it_comes_back(redis: RedisServer, tmp_path: Path) -> None:
    async with started(redis, tmp_path / "late"):
        pass
    async with started(redis, tmp_path / "one") as one:
        await one.erasure.erase(Selector(tenant=TENANT))
        async with started(redis, tmp_path / "late") as late:

            async def done() -> bool:
                return [tenant for tenant, _ in late.notes.told] == [TENANT]

            await eventually_true(done, "it has done what it missed")
        async with started(redis, tmp_path / "new") as new:
            assert new.notes.told == []  # nothing is in a new data directory


async def test_one_that_was_down_does_it_also_where_the_engine_was_emptied_meanwhile(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with started(redis, tmp_path / "late"):
        pass
    async with started(redis, tmp_path / "one") as one:
        await one.erasure.erase(Selector(tenant=TENANT))
        await redis.ask("FLUSHALL")

        async def kept() -> bool:
            return bool(await redis.ask("ZCARD", "{cacheproxy:c}:erasures"))

        await eventually_true(kept, "it was told again")
        async with started(redis, tmp_path / "late") as late:

            async def done() -> bool:
                return bool(late.notes.told)

            await eventually_true(done, "it has done what it missed")


async def test_who_has_not_done_one_erasure_is_named_after_the_answers_to_another(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with started(redis, tmp_path / "one", wait_s=1.0) as one, started(redis, tmp_path / "other") as other:
        other.notes.failures = 10**6
        told = one.forgetting.parts()[0].tell
        assert told is not None
        for token in ("first", "second"):
            await told(Owed(asked_s=1.0, parts=(), ids=(), meant={"tenant": token}, token=token), ())
        assert await one.forgetting.answers("first") == (0, (other.name,))
        assert await one.forgetting.answers("second") == (0, (other.name,))


async def test_a_large_erasure_is_told_in_pieces_and_each_is_kept_once(redis: RedisServer, tmp_path: Path) -> None:
    async with started(redis, tmp_path / "one") as one, started(redis, tmp_path / "other") as other:
        ids = tuple(f"{number:032x}" for number in range(12_000))
        owed = Owed(asked_s=1.0, parts=("replicas",), ids=ids, meant={"tenant": TENANT}, token="t")
        told = one.forgetting.parts()[0].tell
        assert told is not None
        for _ in range(3):  # as when its reply was late
            await told(owed, ids)
        assert await redis.ask("ZCARD", "{cacheproxy:c}:erasures") == 3
        assert await one.forgetting.answers("t") == (1, ())
        assert set(ids) <= set(other.unindexed)
        assert len(other.unindexed) == len(ids)


async def test_an_engine_without_memory_takes_erasures_and_their_answers(redis: RedisServer, tmp_path: Path) -> None:
    async with started(redis, tmp_path / "one") as one, started(redis, tmp_path / "other") as other:
        await redis.fill()
        try:
            erased = await one.erasure.erase(Selector(tenant=TENANT))
            assert erased.pending == ()
            assert other.notes.told
        finally:
            await redis.drain()


async def test_what_is_asked_while_a_replica_joins_is_missed_and_done_next_time(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with linked(redis) as (link, layout):
        kept = [Erasures(link, layout, log_messages=10, replica=name, seen=tmp_path / "seen") for name in "ab"]
        assert await kept[0].missed() == []
        await kept[0].saw()
        assert await kept[0].missed() == []
        asked = Asked(token="t", by="c", asked_s=1.0, purges=False, ids=(), meant={"tenant": TENANT})
        await kept[0].ask(asked)
        await asyncio.sleep(1.2)  # longer than what is read twice in any case
        await kept[0].saw()
        assert await kept[1].missed() == [asked]


async def test_one_that_joins_has_erased_what_it_owes_before_it_tells_what_it_knows(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with (
        started(redis, tmp_path / "one", wait_s=1.0) as one,
        started(redis, tmp_path / "late", follows=False) as late,
    ):
        await late.forgetting.reload()
        await one.erasure.erase(Selector(tenant=TENANT))
        await late.forgetting.reload()
        assert [tenant for tenant, _ in late.notes.told] == [TENANT]
        late.notes.failures = 1
        assert "notes" in (await late.erasure.erase(Selector(tenant="own"), told=False)).pending
        await late.forgetting.reload()
        assert "own" in [tenant for tenant, _ in late.notes.told]
        assert late.erasure.owed == 0


async def test_what_could_not_be_told_is_told_once_the_engine_is_back(redis: RedisServer, tmp_path: Path) -> None:
    async with started(redis, tmp_path / "one", wait_s=1.0) as one, started(redis, tmp_path / "other") as other:
        await redis.kill()
        erased = await one.erasure.erase(Selector(tenant=TENANT))
        assert erased.pending == ("replicas",)
        assert one.notes.told
        assert one.erasure.owed == 1
        await redis.start()

        async def done() -> bool:
            await one.erasure.retry()
            return bool(other.notes.told) and one.erasure.owed == 0

        await eventually_true(done, "the other one was told")


async def test_two_that_erase_at_once_do_not_wait_for_each_other(redis: RedisServer, tmp_path: Path) -> None:
    async with started(redis, tmp_path / "one") as one, started(redis, tmp_path / "other") as other:
        found = await asyncio.gather(
            one.erasure.erase(Selector(tenant=TENANT)), other.erasure.erase(Selector(tenant="another"))
        )
        assert [erased.pending for erased in found] == [(), ()]


async def test_a_purge_reaches_the_parts_that_are_told_of_purges(redis: RedisServer, tmp_path: Path) -> None:
    async with started(redis, tmp_path / "one") as one, started(redis, tmp_path / "other") as other:
        entry_id = make_entry("x").id
        await one.erasure.purge(Selector(ids=(entry_id,)))

        async def done() -> bool:
            return f"purged {entry_id}" in other.unindexed

        await eventually_true(done, "the purge was told")
        assert other.notes.told == []


async def test_a_purge_is_told_also_by_one_that_collects_no_pairs_itself(redis: RedisServer, tmp_path: Path) -> None:
    async with (
        started(redis, tmp_path / "one", collects=False) as one,
        started(redis, tmp_path / "other") as other,
        started(redis, tmp_path / "third", collects=False) as third,
    ):
        entry_id = make_entry("x").id
        await one.erasure.purge(Selector(ids=(entry_id,)))

        async def done() -> bool:
            return f"purged {entry_id}" in other.unindexed

        await eventually_true(done, "the purge was told")
        assert third.unindexed == []
        assert not list((tmp_path / "third").glob("journal*"))  # nothing is owed where nothing is kept


async def test_a_restart_does_nothing_again_that_was_heard_and_seen(
    redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheproxy.forgetting._LOOK_S", 0.5)
    async with started(redis, tmp_path / "one") as one:
        async with started(redis, tmp_path / "other") as other:
            assert (await one.erasure.erase(Selector(tenant=TENANT))).pending == ()
            await asyncio.sleep(2.0)  # it looks again, and a second is read twice in any case
            assert [tenant for tenant, _ in other.notes.told] == [TENANT]  # not done again by looking
        async with started(redis, tmp_path / "other") as again:
            assert again.notes.told == []


async def test_what_no_message_told_is_done_after_a_while(
    redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheproxy.forgetting._LOOK_S", 0.2)
    async with started(redis, tmp_path / "one") as one, started(redis, tmp_path / "other") as other:
        asked = Asked(token="t", by=one.name, asked_s=1e9, purges=False, ids=(), meant={"tenant": "quiet"})
        await redis.ask("ZADD", "{cacheproxy:c}:erasures", int(time.time() * 1000), msgspec.msgpack.encode(asked))

        async def done() -> bool:
            return "quiet" in [tenant for tenant, _ in other.notes.told]

        await eventually_true(done, "it looked")


async def test_an_erasure_that_every_replica_does_by_itself_is_not_told(redis: RedisServer, tmp_path: Path) -> None:
    async with started(redis, tmp_path / "one") as one, started(redis, tmp_path / "other") as other:
        erased = await one.erasure.erase(Selector(tenant=TENANT), told=False)
        assert [done.part for done in erased.parts] == ["entries", "notes"]
        await asyncio.sleep(0.3)
        assert other.notes.told == []
