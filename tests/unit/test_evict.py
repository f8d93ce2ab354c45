"""How a store's room is divided, and who goes when it is needed."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from cacheproxy.model import Quota
from cacheproxy.policy.evict import SAMPLE, Cause, Reclaim, Resident, quotas, victims, worth
from cacheproxy.policy.jitter import jittered
from cacheproxy.policy.pack import Category, Pack
from cacheproxy.store.caps import SWEEP_LIMIT, Caps
from cacheproxy.store.sweeper import Sweeper
from tests.support.residents import Row, RowModel

if TYPE_CHECKING:
    from collections.abc import Mapping

NOW_S = 10_000.0


def pack(**shares: float) -> Pack:
    categories = {name: Category(quota=share) for name, share in shares.items()}
    return Pack(schema=1, name="test", description="", default_category="a", categories=categories)


SHARES: dict[str, tuple[dict[str, float], dict[str, int]]] = {
    "each its part": ({"a": 0.3, "b": 0.5}, {"a": 30, "b": 50}),
    "those without one share the rest evenly": ({"a": 0.4, "b": 0.0, "c": 0.0}, {"a": 40, "b": 30, "c": 30}),
    "one alone has all": ({"a": 0.0}, {"a": 100}),
    "nothing is left": ({"a": 1.0, "b": 0.0}, {"a": 100, "b": 0}),
    "parts are rounded down": ({"a": 0.333, "b": 0.333}, {"a": 33, "b": 33}),
    "but not for want of a bit": ({"a": 0.29}, {"a": 29}),
    "too much is scaled down": ({"a": 1.0, "b": 1.0}, {"a": 50, "b": 50}),
}


@pytest.mark.parametrize(("shares", "expected"), SHARES.values(), ids=SHARES)
def test_a_quota_is_a_part_of_the_store(shares: dict[str, float], expected: dict[str, int]) -> None:
    found = quotas(pack(**shares), 100, 1000)
    assert {name: quota.entries for name, quota in found.items()} == expected
    assert {name: quota.size_bytes // 10 for name, quota in found.items()} == expected


def test_a_category_that_is_never_cached_has_no_part_in_the_store() -> None:
    categories = {"a": Category(), "private": Category(allow_caching=False), "b": Category(priority=3.0)}
    found = quotas(Pack(schema=1, name="t", description="", default_category="a", categories=categories), 100, 100)
    assert [quota.entries for quota in found.values()] == [50, 0, 50]
    assert found["b"].priority == 3.0


def resident(**fields: Any) -> Resident:
    known = Resident(
        entry_id="x", tenant="t", size_bytes=1000, hits=1.0, used_s=NOW_S - 60, expires_s=NOW_S + 60, fill_ms=500.0
    )
    return replace(known, **fields)


BETTER: dict[str, tuple[dict[str, float], bool]] = {
    "asked for more often": ({"hits": 2.0}, True),
    "asked for more recently": ({"used_s": NOW_S - 30}, True),
    "slower to make": ({"fill_ms": 600.0}, True),
    "smaller, where bytes are scarce": ({"size_bytes": 900}, True),
}


@pytest.mark.parametrize(("fields", "by_bytes"), BETTER.values(), ids=BETTER)
def test_an_entry_is_worth_more_when_it_is(fields: dict[str, float], by_bytes: bool) -> None:
    assert worth(resident(**fields), NOW_S, by_bytes=by_bytes) > worth(resident(), NOW_S, by_bytes=by_bytes)


@pytest.mark.parametrize("by_bytes", [True, False])
def test_a_warmed_answer_that_is_asked_for_is_worth_keeping(by_bytes: bool) -> None:
    """Nobody measured how long its backend takes."""
    warmed, asked_for = resident(fill_ms=0.0), resident(fill_ms=0.0, hits=50.0)
    values = [worth(one, NOW_S, by_bytes=by_bytes) for one in (warmed, resident(hits=10.0), asked_for)]
    assert 0 < values[0] < values[1] < values[2]


def test_size_does_not_count_where_entries_are_scarce() -> None:
    assert worth(resident(size_bytes=1), NOW_S, by_bytes=False) == worth(resident(), NOW_S, by_bytes=False)


def test_an_expired_entry_is_worth_nothing_however_dear_it_was() -> None:
    assert worth(resident(expires_s=NOW_S, hits=1e9), NOW_S, by_bytes=True) == 0


def test_a_clock_that_ran_backwards_makes_no_entry_priceless() -> None:
    assert worth(resident(used_s=NOW_S + 1e6), NOW_S, by_bytes=True) == worth(
        resident(used_s=NOW_S), NOW_S, by_bytes=True
    )


# Whole sweeps over a small store.


def filled(*parts: tuple[str, str, int], size: int = 10) -> RowModel:
    """Return rows of (category, tenant, how many), put in this order, a second apart."""
    rows, now_s = RowModel(), NOW_S
    for category, tenant, many in parts:
        for _ in range(many):
            now_s += 1
            rows.put(
                Row(
                    entry_id=f"{category}/{tenant}/{len(rows.rows)}",
                    category=category,
                    tenant=tenant,
                    size_bytes=size,
                    fill_ms=100.0,
                    used_s=now_s,
                    expires_s=now_s + 1e6,
                )
            )
    return rows


def swept(rows: RowModel, shares: Mapping[str, Quota], entries: int, size: int = 10**9) -> dict[tuple[str, str], int]:
    """Sweep until there is nothing more to do; return how many went, by category and cause."""
    sweeper = Sweeper(caps=Caps(max_entries=entries, max_bytes=size), quotas=lambda: shares)
    causes: dict[tuple[str, str], int] = {}
    while removed := sweeper.sweep(rows, NOW_S + 5000):
        assert len(removed) <= SWEEP_LIMIT
        for _, category, cause in removed:
            causes[category, cause.value] = causes.get((category, cause.value), 0) + 1
    return causes


def left(rows: RowModel) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for row in rows.rows.values():
        found[row.category, row.tenant] = found.get((row.category, row.tenant), 0) + 1
    return found


def quota(entries: int, **fields: float) -> Quota:
    return Quota(entries=entries, size_bytes=entries * 10, **fields)


HALVES = {"flood": quota(500), "calm": quota(500)}


def test_a_flood_in_one_category_takes_nothing_from_another_within_its_quota() -> None:
    rows = filled(("calm", "t", 480), ("flood", "t", 5000))
    assert swept(rows, HALVES, 1000) == {("flood", "over_quota"): 4500}
    assert left(rows) == {("calm", "t"): 480, ("flood", "t"): 500}


def test_what_nobody_needs_may_be_borrowed() -> None:
    rows = filled(("flood", "t", 990), ("calm", "t", 10))
    assert swept(rows, HALVES, 1000) == {}
    assert swept(filled(("flood", "t", 1001)), HALVES, 1000) == {("flood", "over_quota"): 21}


def test_who_borrowed_most_gives_back_first() -> None:
    shares = {"a": quota(100), "b": quota(100), "owner": quota(800)}
    rows = filled(("a", "t", 400), ("b", "t", 200), ("owner", "t", 500))
    assert swept(rows, shares, 1000) == {("a", "over_quota"): 120}
    rows = filled(("a", "t", 300), ("b", "t", 200), ("owner", "t", 800))
    swept(rows, shares, 1000)
    # A sweep leaves 980: to the owner his 784, and both borrowers are left alike.
    assert left(rows) == {("a", "t"): 98, ("b", "t"): 98, ("owner", "t"): 784}


def test_a_category_of_priority_two_may_borrow_twice_as_much() -> None:
    shares = {"plain": quota(0), "dear": quota(0, priority=2.0), "owner": quota(100)}
    rows = filled(("plain", "t", 600), ("dear", "t", 600), ("owner", "t", 98))
    swept(rows, shares, 1000)
    kept = left(rows)
    assert kept["owner", "t"] == 98
    assert kept["dear", "t"] == pytest.approx(2 * kept["plain", "t"], abs=SAMPLE)


def test_a_category_that_the_pack_no_longer_has_goes_first() -> None:
    rows = filled(("gone", "t", 50), ("flood", "t", 900), ("calm", "t", 60))
    causes = swept(rows, {"flood": quota(900), "calm": quota(100)}, 1000)
    assert causes == {("gone", "over_quota"): 30}


def test_a_flooding_tenant_takes_nothing_from_a_poor_neighbour() -> None:
    shares = {"faq": quota(1000, tenant_share=0.5)}
    rows = filled(("faq", "poor", 100), ("faq", "other", 300), ("faq", "flood", 5000))
    causes = swept(rows, shares, 1000)
    assert left(rows)["faq", "poor"] == 100
    assert left(rows)["faq", "other"] == 300
    assert causes == {("faq", "tenant_share"): 4420}


def test_a_crowd_of_tenants_loses_what_was_used_longest_ago() -> None:
    rows = filled(*(("faq", f"t{number}", 20) for number in range(100)))
    causes = swept(rows, {"faq": quota(1000, tenant_share=0.5)}, 1000)
    assert causes == {("faq", "capacity"): 1020}
    kept = left(rows)
    assert min(kept.values()) >= 9, "nobody loses of an even part of the quota"
    assert sum(kept.values()) == 980


def test_one_alone_in_its_category_is_not_held_to_a_tenants_share() -> None:
    rows = filled(("faq", "only", 1200))
    assert swept(rows, {"faq": quota(1000, tenant_share=0.1)}, 1000) == {("faq", "capacity"): 220}


def test_only_what_is_scarce_counts() -> None:
    shares = {"large": Quota(entries=500, size_bytes=500), "small": Quota(entries=500, size_bytes=500)}
    few_bytes, few_entries = (10_000, 1000, {"large": 4, "small": 580}), (500, 10**9, {"large": 9, "small": 481})
    for entries, size, expected in (few_bytes, few_entries):
        rows = filled(("small", "t", 900), size=1)
        for row in filled(("large", "t", 9), size=100).rows.values():
            rows.put(row)
        swept(rows, shares, entries, size)
        assert {category: many for (category, _), many in left(rows).items()} == expected


def test_the_worthless_of_a_sample_go_first() -> None:
    rows = filled(("faq", "t", 40))
    for number in range(20):
        rows.use(f"faq/t/{number}", NOW_S + 100)
    swept(rows, {"faq": quota(20)}, 20)
    assert sorted(rows.rows) == sorted(f"faq/t/{number}" for number in range(20))


def test_a_claim_is_never_more_than_a_category_borrowed() -> None:
    rows = filled(("flood", "t", 510), ("calm", "t", 700))
    claim = Reclaim(rows.tally, HALVES, (1000, 10**9)).claim()
    assert claim is not None
    assert (claim.category, claim.excess, claim.cause) == ("calm", 200, Cause.OVER_QUOTA)
    assert (
        len(victims(replace(claim, excess=3), rows.sample("calm", None, SAMPLE, NOW_S), {"t": (700, 7000)}, NOW_S)) == 3
    )


def test_no_quotas_means_the_least_recently_used_goes() -> None:
    rows = filled(("a", "t", 5), ("b", "t", 5))
    rows.use("a/t/0", NOW_S + 100)
    assert swept(rows, {}, 8) == {("a", "capacity"): 2}
    assert "a/t/0" in rows.rows


# Jitter.


def fingerprint(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def test_a_jittered_lifetime_is_never_longer_and_always_the_same() -> None:
    for number in range(1000):
        ttl_s = jittered(100.0, 0.1, fingerprint(number))
        assert 90.0 <= ttl_s <= 100.0
        assert ttl_s == jittered(100.0, 0.1, fingerprint(number))
    assert jittered(100.0, 0.0, fingerprint(1)) == 100.0


def test_lifetimes_are_spread_evenly() -> None:
    tenths = [0] * 10
    for number in range(10_000):
        tenths[min(9, int(100.0 - jittered(100.0, 0.1, fingerprint(number))))] += 1
    assert all(abs(many - 1000) < 150 for many in tenths), tenths
