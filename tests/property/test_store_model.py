"""Any sequence of calls leaves a store agreeing with a dict."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cacheproxy.model import Selector
from cacheproxy.settings import Store as Limits
from cacheproxy.store.memory import MemoryStore
from cacheproxy.store.sqlite import SqliteStore
from tests.support.clock import FakeClock
from tests.support.entries import EPOCH, entry_id, make_entry, same

if TYPE_CHECKING:
    from cacheproxy.model import Entry

KEYS = tuple("abcdefgh")
CAP = 5


class StoreModel(RuleBasedStateMachine):
    """A store beside a dict of what was acknowledged; `used` orders the dict's keys by their last use.

    `purged` holds the fence that the last purge of an id raised; what began below `refused_below` is refused anyway.
    """

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = FakeClock()
        self.model: dict[str, Entry] = {}
        self.used: dict[str, float] = {}
        self.old_fence = 0
        self.refused_below = 0
        self.purged: dict[str, int] = {}
        self.version = 0

    @initialize()
    def start(self) -> None:
        self.store = self.make()
        self.runner.run(self.store.__aenter__())

    def make(self) -> MemoryStore | SqliteStore:
        return MemoryStore(Limits(max_entries=CAP), self.clock)

    def live(self) -> dict[str, Entry]:
        return {id_: entry for id_, entry in self.model.items() if self.clock.now() < entry.gone_s}

    @rule(
        key=st.sampled_from(KEYS),
        ttl_s=st.sampled_from([1, 5, 1000]),
        stale_s=st.sampled_from([0, 2, 10]),
        dim=st.sampled_from([0, 8]),
    )
    def put(self, key: str, ttl_s: float, stale_s: float, dim: int) -> None:
        entry = self.newer(key, ttl_s=ttl_s, stale_s=stale_s, dim=dim)
        assert self.runner.run(self.store.put(entry, self.store.fence))
        self.keep(entry)
        self.used[entry.id] = self.clock.now()

    def keep(self, entry: Entry) -> None:
        self.model.pop(entry.id, None)  # the dict is in the order of coming
        self.model[entry.id] = entry

    def newer(self, key: str, **more: Any) -> Entry:
        self.clock.advance(0.001)
        self.version += 1
        return make_entry(key, version=self.version, created_s=self.clock.now(), **more)

    @precondition(lambda self: self.old_fence < self.store.fence)
    @rule(key=st.sampled_from(KEYS))
    def late_put(self, key: str) -> None:
        entry = self.newer(key)
        admitted = self.old_fence >= max(self.refused_below, self.purged.get(entry.id, 0))
        assert self.runner.run(self.store.put(entry, self.old_fence)) == admitted
        if admitted:
            self.keep(entry)
            self.used[entry.id] = self.clock.now()

    @rule(key=st.sampled_from(KEYS))
    def get(self, key: str) -> None:
        self.clock.advance(0.001)
        expected = self.live().get(entry_id(key))
        assert same(self.runner.run(self.store.get(entry_id(key))), expected)
        if expected is not None:
            self.used[expected.id] = self.clock.now()

    @rule(keys=st.sets(st.sampled_from(KEYS), max_size=3))
    def purge(self, keys: set[str]) -> None:
        self.old_fence = self.store.fence
        ids = {entry_id(key) for key in keys}
        assert self.runner.run(self.store.purge(ids)) == len(ids & self.model.keys())
        assert self.store.fence > self.old_fence
        self.purged |= dict.fromkeys(ids, self.store.fence)
        self.model = {id_: entry for id_, entry in self.model.items() if id_ not in ids}

    @rule(keys=st.sets(st.sampled_from(KEYS), min_size=1, max_size=3), tenants=st.booleans(), dry_run=st.booleans())
    def erase(self, keys: set[str], tenants: bool, dry_run: bool) -> None:
        """By ids, or all that one tenant has and anybody's of a few seconds ago."""
        if tenants:
            selector = Selector(tenant=make_entry(min(keys)).tenant)
            meant = {entry_id(min(keys))}
        else:
            before_s = self.clock.now() - 2
            selector = Selector(ids=tuple(map(entry_id, sorted(keys))), before_s=before_s)
            meant = {id_ for id_ in selector.ids if id_ in self.model and self.model[id_].created_s < before_s}
        self.old_fence = self.store.fence
        erased = self.runner.run(self.store.erase(selector, dry_run=dry_run))
        assert set(erased) == meant & self.model.keys()
        assert len(erased) == len(set(erased))
        if not dry_run:
            self.refused_below = self.store.fence
            assert self.refused_below > self.old_fence
            self.model = {id_: entry for id_, entry in self.model.items() if id_ not in meant}

    @rule(limit=st.sampled_from([1, 2, 100]))
    def page(self, limit: int) -> None:
        entries: list[Entry] = []
        after: int | None = 0
        while after is not None:
            page = self.runner.run(self.store.page(Selector(), after=after, limit=limit))
            assert len(page.entries) <= limit
            entries += page.entries
            after = page.after
        live = self.live()
        assert [entry.id for entry in entries] == [id_ for id_ in self.model if id_ in live]
        assert all(same(entry, live[entry.id]) for entry in entries)

    @rule(seconds=st.sampled_from([0.5, 1, 5, 100]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def sweep(self) -> None:
        gone = self.model.keys() - self.live().keys()
        coldest = sorted(self.live(), key=self.used.__getitem__)
        surplus = coldest[: max(0, len(coldest) - CAP)]
        assert set(self.runner.run(self.store.sweep())) == gone | set(surplus)
        self.model = {id_: entry for id_, entry in self.live().items() if id_ not in surplus}

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.store) == len(self.model)
        assert self.store.over_cap == (len(self.model) > CAP)
        assert self.store.health() == ""
        assert self.store.corrupt_records == 0

    @invariant()
    def holdings_agree(self) -> None:
        held = self.store.holdings()
        assert sorted((one.category, one.tenant, one.entries) for one in held) == sorted(
            (entry.partition.category, entry.tenant, 1) for entry in self.model.values()
        )
        assert sum(one.size_bytes for one in held) == self.store.size_bytes

    @invariant()
    def scan_agrees(self) -> None:
        async def scanned() -> dict[str, bytes]:
            return {id_: vector.tobytes() async for _, id_, vector in self.store.scan(EPOCH)}

        vectors = {id_: entry.vector.tobytes() for id_, entry in self.live().items() if entry.vector is not None}
        assert self.runner.run(scanned()) == vectors

    def teardown(self) -> None:
        self.runner.run(self.store.__aexit__())
        self.runner.close()


class SqliteModel(StoreModel):
    """The same with a file, which may be closed and opened at any time."""

    hot_bytes = 64 * 1024 * 1024

    def make(self) -> SqliteStore:
        self.directory = tempfile.TemporaryDirectory()
        return self.opened()

    def opened(self) -> SqliteStore:
        return SqliteStore(
            Path(self.directory.name) / "e.db", Limits(max_entries=CAP, hot_bytes=self.hot_bytes), self.clock
        )

    @rule()
    def restart(self) -> None:
        fence = self.store.fence
        self.runner.run(self.store.__aexit__())
        self.store = self.opened()
        self.runner.run(self.store.__aenter__())
        assert self.store.fence == fence
        self.refused_below = fence

    def teardown(self) -> None:
        super().teardown()
        self.directory.cleanup()


class ColdSqliteModel(SqliteModel):
    """The same with nothing held in memory."""

    hot_bytes = 0


StoreModel.TestCase.settings = SqliteModel.TestCase.settings = ColdSqliteModel.TestCase.settings = settings(
    max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestMemory = StoreModel.TestCase
TestSqlite = SqliteModel.TestCase
TestColdSqlite = ColdSqliteModel.TestCase
