"""What a proxy does by itself: each duty once, without waiting for its turn."""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest
from msgspec import structs

from cacheproxy import settings
from cacheproxy.erasure import Erased, Removed
from cacheproxy.errors import IndexUnavailable, PiiUnavailable, StoreUnavailable
from cacheproxy.model import Selector
from cacheproxy.policy.active import Policy
from cacheproxy.policy.adapt import LoadWatch
from cacheproxy.policy.rules import Rules
from cacheproxy.store.memory import MemoryStore
from cacheproxy.supervise import Supervisor
from cacheproxy.telemetry import Telemetry
from cacheproxy.upkeep import Snapshots, Upkeep
from cacheproxy.upstream.backend import State
from tests.support.clock import FakeClock
from tests.support.entries import make_entry
from tests.support.house import PACK
from tests.support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Coroutine
    from pathlib import Path

    from cacheproxy.policy.pack import Pack

BUSY = State(
    name="default",
    state="ok",
    running=3,
    waiting=1,
    limit=4,
    shed=0,
    ejections=0,
    retries=0,
    first_byte_ms=10.0,
    p95_ms=500.0,
)


@dataclass
class Shelf:
    """An index that only tells what it was asked, and cannot be written where `reason` is given."""

    reason: str = ""
    removed: list[str] = field(default_factory=list)
    written: list[tuple[str, Path]] = field(default_factory=list)

    def remove(self, ids: Collection[str]) -> None:
        self.removed += ids

    async def save(self, directory: Path) -> None:
        if self.reason:
            raise IndexUnavailable(self.reason)
        self.written.append(("saved", directory))

    async def scrub(self, directory: Path) -> None:
        self.written.append(("scrubbed", directory))


@dataclass
class Gate:
    """A gate that notes the kinds it is to be ready for; without its library it says so."""

    missing: bool = False
    kinds: list[Collection[str]] = field(default_factory=list)

    async def prepare(self, kinds: Collection[str]) -> None:
        self.kinds.append(kinds)
        if self.missing:
            raise PiiUnavailable("presidio-analyzer is not installed")


@dataclass
class Tending:
    """The policy of one pack, or any other part to be tended."""

    pack: Pack = PACK
    tended: int = 0

    def __call__(self) -> Policy:
        return Policy(pack=self.pack, rules=Rules(self.pack.categories, str))

    async def tend(self) -> None:
        self.tended += 1


@dataclass
class Erasing:
    """An erasure of entries by their ids, in which one part may be left to do."""

    failing: bool = False
    retried: int = 0

    async def erase(self, selector: Selector, *, told: bool = True) -> Erased:
        assert not told  # other replicas go by the same policy
        failed = "the disk is full" if self.failing else ""
        return Erased(ids=selector.ids, parts=(Removed(part="feedback", removed=0, failed=failed),))

    async def retry(self) -> None:
        self.retried += 1


class Listed:
    """Tasks that are named and not run."""

    def __init__(self) -> None:
        self.every_s: dict[str, float] = {}
        self.once: list[str] = []

    def spawn(self, work: Coroutine[object, object, None]) -> None:
        assert inspect.iscoroutine(work)
        self.once.append(work.cr_code.co_name)
        work.close()

    def every(self, interval_s: float, work: Callable[[], Awaitable[None]], name: str) -> None:
        self.every_s[name] = interval_s


class Rig:
    """An upkeep over a store in memory."""

    def __init__(self, folder: Path, *, keys: bool = False, failing: bool = False, missing: bool = False) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore(settings.Store(), self.clock)
        self.index, self.gate, self.book, self.keeper = Shelf(), Gate(missing), Tending(), Tending()
        self.load = LoadWatch(settings.Load())
        self.crowded, self.erasure = asyncio.Event(), Erasing(failing)
        self.telemetry = Telemetry()

        self.upkeep = Upkeep(
            store=self.store,
            index=self.index,  # type: ignore[arg-type] # only what is removed matters here
            crowded=self.crowded,
            snapshots=Snapshots(self.index, folder / "index"),
            snapshot_interval_s=60.0,
            book=self.book,
            erasure=self.erasure,
            backends=lambda: [BUSY],
            load=self.load,
            gate=self.gate,
            keeper=self.keeper if keys else None,
            telemetry=self.telemetry,
            clock=self.clock,
        )

    async def keep(self, key: str) -> str:
        entry = make_entry(key, created_s=self.clock.now() - 1)
        await self.store.put(entry, self.store.fence)
        return entry.id


def packed(*kinds: str) -> Pack:
    categories = {name: structs.replace(rules, pii=kinds) for name, rules in PACK.categories.items()}
    return structs.replace(PACK, categories=categories)


@pytest.mark.parametrize("keys", [False, True])
async def test_every_duty_is_begun_and_the_keys_only_where_there_are_some(tmp_path: Path, keys: bool) -> None:
    tasks = Listed()
    Rig(tmp_path, keys=keys).upkeep.start(tasks)
    duties = {"sweep": 0, "policies": 0, "erasure": 30.0, "load": 0.5, "snapshot": 60.0}
    assert tasks.every_s == duties | ({"keys": 0.5} if keys else {})
    assert tasks.once == ["retry", "prepare"]


async def test_a_supervisor_does_what_is_due(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    async with Supervisor() as supervisor:
        rig.upkeep.start(supervisor)
        await eventually(
            lambda: rig.book.tended > 0 and rig.erasure.retried > 0, "the book is tended, what a stop cut short is done"
        )
    assert supervisor.failures == 0


async def test_what_is_gone_leaves_store_and_index_as_soon_as_it_is_crowded(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    gone = await rig.keep("x")
    rig.clock.advance(1e9)
    rig.crowded.set()
    await rig.upkeep.sweep()
    assert (len(rig.store), rig.index.removed) == (0, [gone])
    assert rig.telemetry.registry.get_sample_value("cacheproxy_entries_removed_total") == 1
    assert not rig.crowded.is_set()


async def test_who_remembers_entries_is_told_of_those_that_went(tmp_path: Path) -> None:
    rig, told = Rig(tmp_path), list[str]()
    gone = await rig.keep("x")
    rig.clock.advance(1e9)
    rig.crowded.set()
    await replace(rig.upkeep, gone=told.extend).sweep()
    assert told == [gone]


async def test_requests_that_run_and_that_wait_are_both_load(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    await rig.upkeep.watch_load()
    sample = rig.load.readings["default"].sample
    assert (sample.in_flight, sample.limit, sample.p95_s) == (4, 4, 0.5)


async def test_an_erasure_tells_how_many_entries_went(tmp_path: Path) -> None:
    assert await Rig(tmp_path).upkeep.erase(Selector(ids=("x", "y"))) == 2


async def test_an_erasure_that_is_not_finished_names_the_part(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="feedback"):
        await Rig(tmp_path, failing=True).upkeep.erase(Selector(ids=("x",)))


@pytest.mark.parametrize(("kinds", "asked"), [((), []), (("US_SSN",), [{"US_SSN"}])])
async def test_recognisers_are_loaded_only_where_a_pack_asks_for_them(
    tmp_path: Path, kinds: tuple[str, ...], asked: list[set[str]]
) -> None:
    rig = Rig(tmp_path)
    await rig.upkeep.prepare(packed(*kinds))
    assert rig.gate.kinds == asked


async def test_a_missing_recogniser_does_not_end_the_start(tmp_path: Path) -> None:
    rig = Rig(tmp_path, missing=True)
    await rig.upkeep.prepare(packed("US_SSN"))
    assert rig.gate.kinds == [{"US_SSN"}]


async def test_a_last_snapshot_that_fails_does_not_keep_the_proxy_from_ending(tmp_path: Path) -> None:
    snapshots = Snapshots(Shelf(reason="the disk is full"), tmp_path)
    with pytest.raises(IndexUnavailable):
        await snapshots.save()
    await snapshots.save_last()


async def test_snapshots_are_written_to_and_scrubbed_in_one_directory(tmp_path: Path) -> None:
    shelf = Shelf()
    snapshots = Snapshots(shelf, tmp_path)
    await snapshots.save_last()
    assert await snapshots.scrub() == 1
    assert shelf.written == [("saved", tmp_path), ("scrubbed", tmp_path)]
