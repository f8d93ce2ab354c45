"""Quotas hold under any interleaving of puts, hits and sweeps."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from cacheproxy.model import Quota
from cacheproxy.policy.evict import Cause
from cacheproxy.store.caps import Caps
from cacheproxy.store.sweeper import Evicted, Sweeper
from tests.support.residents import Row, RowModel

if TYPE_CHECKING:
    from collections.abc import Mapping

CATEGORIES, TENANTS = ("code", "chat", "faq"), ("a", "b", "c", "d")
ENTRIES, BYTES = 60, 60_000

Held = dict[tuple[str, str], tuple[int, int]]


class Sweeps(RuleBasedStateMachine):
    """A store that is filled by several tenants in several categories, and swept now and then.

    After every sweep it is asked what was lost by whom, against what the quotas promised to them.
    """

    @initialize(
        shares=st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5]), min_size=3, max_size=3),
        tenant_share=st.sampled_from([0.25, 0.5, 1.0]),
        priorities=st.lists(st.sampled_from([0.5, 1.0, 4.0]), min_size=3, max_size=3),
    )
    def start(self, shares: list[float], tenant_share: float, priorities: list[float]) -> None:
        scale = min(1.0, 1 / (sum(shares) or 1))
        self.quotas: Mapping[str, Quota] = {
            name: Quota(
                entries=int(share * scale * ENTRIES),
                size_bytes=int(share * scale * BYTES),
                priority=priority,
                tenant_share=tenant_share,
            )
            for name, share, priority in zip(CATEGORIES, shares, priorities, strict=True)
        }
        self.caps = Caps(max_entries=ENTRIES, max_bytes=BYTES)
        self.sweeper = Sweeper(caps=self.caps, quotas=lambda: self.quotas)
        self.rows, self.now_s, self.ids = RowModel(), 1000.0, count()

    @rule(
        category=st.sampled_from((*CATEGORIES, "left over from an older pack")),
        tenant=st.sampled_from(TENANTS),
        number=st.integers(1, 50),
        size=st.sampled_from([100, 1000, 5000]),
        ttl_s=st.sampled_from([5.0, 1000.0]),
    )
    def puts(self, category: str, tenant: str, number: int, size: int, ttl_s: float) -> None:
        for _ in range(number):
            if self.caps.full(*self.rows.tally.totals):
                self.sweeps()
            self.now_s += 0.1
            row = Row(
                entry_id=str(next(self.ids)),
                category=category,
                tenant=tenant,
                size_bytes=size,
                fill_ms=float(1 + size % 7),
                used_s=self.now_s,
                expires_s=self.now_s + ttl_s,
            )
            self.rows.put(row)

    @rule(places=st.lists(st.integers(0, 10_000), max_size=20))
    def hits(self, places: list[int]) -> None:
        for place in places if self.rows.rows else ():
            self.now_s += 0.1
            ids = list(self.rows.rows)
            self.rows.use(ids[place % len(ids)], self.now_s)

    @rule(seconds=st.sampled_from([1.0, 10.0]))
    def waits(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def sweeps(self) -> None:
        for _ in range(50):
            expired = {row.entry_id for row in self.rows.rows.values() if row.expires_s <= self.now_s}
            largest = max((row.size_bytes for row in self.rows.rows.values()), default=0)
            rows, before = dict(self.rows.rows), self.held(expired)
            removed = self.sweeper.sweep(self.rows, self.now_s)
            if not removed:
                break
            self.promises_hold(rows, removed, expired, before, largest)
        assert not self.caps.over(*self.rows.tally.totals)
        assert sum(row.size_bytes for row in self.rows.rows.values()) == self.rows.tally.totals[1]

    def held(self, without: set[str] | frozenset[str] = frozenset()) -> Held:
        held: Held = {}
        for row in self.rows.rows.values():
            if row.entry_id not in without:
                entries, size = held.get((row.category, row.tenant), (0, 0))
                held[row.category, row.tenant] = entries + 1, size + row.size_bytes
        return held

    def promises_hold(
        self, rows: dict[str, Row], removed: list[Evicted], expired: set[str], before: Held, largest: int
    ) -> None:
        assert {one.entry_id for one in removed if one.cause is Cause.EXPIRED} <= expired
        lost = [one for one in removed if one.cause is not Cause.EXPIRED]
        after = self.held()
        if lost:
            assert not expired & self.rows.rows.keys(), "what is expired goes first"
        for category in {one.category for one in lost}:
            quota = self.quotas.get(category, Quota(entries=0, size_bytes=0))
            left = [held for (name, _), held in after.items() if name == category]
            enough = (sum(held[0] for held in left), sum(held[1] for held in left))
            # A sweep leaves a fiftieth free, and may take the one entry that straddles the quota.
            assert enough[0] >= quota.entries * 0.98 - 1 or enough[1] + largest >= quota.size_bytes * 0.98
        for category, tenant in {(one.category, rows[one.entry_id].tenant) for one in lost}:
            quota = self.quotas.get(category, Quota(entries=0, size_bytes=0))
            sharing = len({name for held_category, name in before if held_category == category})
            entries, size = after.get((category, tenant), (0, 0))
            assert (
                entries + 1 >= 0.98 * quota.entries / sharing or size + largest >= 0.98 * quota.size_bytes / sharing
            ), "nobody loses of an even part"


Sweeps.TestCase.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
TestSweeps = Sweeps.TestCase
