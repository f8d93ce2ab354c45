from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from cacheproxy.model import Entry, Partition, Plan, Reply, Stale, Staleness
from cacheproxy.policy.freshness import Freshness, freshness, may_rescue

NOW_S = 1_800_000_000.0

PLAN = Plan(
    category="default", exact=True, semantic=True, store=True, embed=True, threshold=0.8, ttl_s=100.0, candidates=4
)
ENTRY = Entry(
    id="66" * 16,
    fingerprint=b"f" * 32,
    partition=Partition(category="default", compatibility=b"c" * 32, epoch="e"),
    tenant="t",
    text="Hi",
    reply=Reply(body={}, source="body"),
    created_s=NOW_S - 140.0,
    expires_s=NOW_S - 40.0,
    stale_until_s=NOW_S + 60.0,
    fill_ms=1.0,
)
CAP = {"cap_s": 100.0}


def found(stale: dict[str, Any] | None = None, entry: dict[str, Any] | None = None, **asked: Any) -> Freshness:
    """What an entry 140 s old and 40 s past its expiry is worth, by default under a cap of 100 s."""
    plan = dataclasses.replace(PLAN, stale=Staleness(**(CAP if stale is None else stale)), **asked)
    return freshness(dataclasses.replace(ENTRY, **(entry or {})), plan, NOW_S)


EXPIRED = Freshness(reason="expired")
FORBIDDEN = {"stale_until_s": 0.0}

ROWS: dict[str, tuple[Freshness, Freshness]] = {
    # max-stale
    "nobody asks": (found(), EXPIRED),
    "asked, enough": (found({**CAP, "asked_s": 40.0}), Freshness(stale=Stale.ASKED)),
    "asked, not enough": (found({**CAP, "asked_s": 39.9}), EXPIRED),
    "asked for any": (found({**CAP, "asked_s": math.inf}), Freshness(stale=Stale.ASKED)),
    "asked for any, beyond the cap": (found({"cap_s": 39.9, "asked_s": math.inf}), EXPIRED),
    "asked for any, no cap": (found({"cap_s": 0.0, "asked_s": math.inf}), EXPIRED),
    "asked for none, just expired": (found({**CAP, "asked_s": 0.0}, {"expires_s": NOW_S}), EXPIRED),
    "asked, the backend forbids": (found({**CAP, "asked_s": math.inf}, FORBIDDEN), EXPIRED),
    "asked, gone by now": (found({**CAP, "asked_s": math.inf}, {"stale_until_s": NOW_S}), EXPIRED),
    "asked, within the age": (found({**CAP, "asked_s": 60.0}, max_age_s=140.0), Freshness(stale=Stale.ASKED)),
    "asked, beyond the age": (found({**CAP, "asked_s": 60.0}, max_age_s=139.0), EXPIRED),
    "asked, and for freshness": (found({**CAP, "asked_s": 60.0}, min_fresh_s=1.0), EXPIRED),
    "asked, only if cached": (found({**CAP, "asked_s": 60.0}, only_if_cached=True), Freshness(stale=Stale.ASKED)),
    # stale-while-revalidate
    "policy revalidates": (found({**CAP, "while_revalidate_s": 40.0}), Freshness(stale=Stale.REVALIDATING)),
    "policy revalidates, not so long": (found({**CAP, "while_revalidate_s": 39.0}), EXPIRED),
    "policy revalidates, the backend forbids": (found({**CAP, "while_revalidate_s": 60.0}, FORBIDDEN), EXPIRED),
    "the backend revalidates": (found(entry={**FORBIDDEN, "revalidate_s": 40.0}), Freshness(stale=Stale.REVALIDATING)),
    "the backend revalidates, beyond the cap": (found({"cap_s": 30.0}, {"revalidate_s": 60.0}), EXPIRED),
    "revalidating before asked": (
        found({**CAP, "while_revalidate_s": 60.0, "asked_s": 60.0}),
        Freshness(stale=Stale.REVALIDATING),
    ),
    "asked for less than revalidating": (found({**CAP, "while_revalidate_s": 60.0, "asked_s": 9.0}), EXPIRED),
    "revalidating, only if cached": (found({**CAP, "while_revalidate_s": 60.0}, only_if_cached=True), EXPIRED),
    "revalidating, not to be stored": (found({**CAP, "while_revalidate_s": 60.0}, store=False), EXPIRED),
    "revalidating, an age was named": (found({**CAP, "while_revalidate_s": 60.0}, max_age_s=900.0), EXPIRED),
    "revalidating, freshness was named": (found({**CAP, "while_revalidate_s": 60.0}, min_fresh_s=1.0), EXPIRED),
    # stale-if-error
    "on error, but nothing failed": (found({**CAP, "on_error_s": 60.0, "asked_on_error_s": 60.0}), EXPIRED),
    "on error by policy": (found({**CAP, "on_error_s": 60.0}, failed=True), Freshness(stale=Stale.ON_ERROR)),
    "on error by policy, not so long": (found({**CAP, "on_error_s": 39.0}, failed=True), EXPIRED),
    "on error by policy, the backend forbids": (found({**CAP, "on_error_s": 60.0}, FORBIDDEN, failed=True), EXPIRED),
    "on error by policy, an age was named": (found({**CAP, "on_error_s": 60.0}, failed=True, max_age_s=100.0), EXPIRED),
    "on error by the backend": (
        found(entry={**FORBIDDEN, "on_error_s": 40.0}, failed=True),
        Freshness(stale=Stale.ON_ERROR),
    ),
    "on error by the backend, beyond the cap": (found({"cap_s": 30.0}, {"on_error_s": 60.0}, failed=True), EXPIRED),
    "on error, asked": (found({**CAP, "asked_on_error_s": 40.0}, failed=True), Freshness(stale=Stale.ON_ERROR)),
    "on error, asked, not enough": (found({**CAP, "asked_on_error_s": 39.0}, failed=True), EXPIRED),
    "on error, asked for less than policy": (
        found({**CAP, "on_error_s": 60.0, "asked_on_error_s": 10.0}, failed=True),
        EXPIRED,
    ),
    "on error, asked, the backend forbids": (
        found({**CAP, "asked_on_error_s": math.inf}, FORBIDDEN, failed=True),
        EXPIRED,
    ),
    "on error, asked, no cap": (found({"cap_s": 0.0, "asked_on_error_s": math.inf}, failed=True), EXPIRED),
}


@pytest.mark.parametrize(("found", "expected"), ROWS.values(), ids=ROWS)
def test_who_may_be_served_stale_and_by_whose_leave(found: Freshness, expected: Freshness) -> None:
    assert found == expected


FRESH = {"expires_s": NOW_S + 60.0}


def test_a_fresh_entry_that_is_too_old_for_the_caller_stands_in_within_what_he_accepts() -> None:
    asked = {"cap_s": 0.0, "asked_on_error_s": 40.0}
    assert found(asked, FRESH, failed=True, max_age_s=100.0) == Freshness(stale=Stale.ON_ERROR)
    assert found(asked, FRESH, failed=True, max_age_s=99.0) == Freshness(reason="too_old")
    assert found(asked, FRESH, failed=True, min_fresh_s=90.0) == Freshness(stale=Stale.ON_ERROR)
    assert found(CAP, FRESH, failed=True, max_age_s=100.0) == Freshness(reason="too_old")
    assert found(asked, FRESH, failed=True) == Freshness()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, False),
        ({"stale": Staleness(cap_s=1.0)}, True),
        ({"stale": Staleness(asked_on_error_s=1.0)}, True),
        ({"stale": Staleness(cap_s=1.0), "exact": False, "semantic": False}, False),
    ],
)
def test_nothing_is_looked_up_again_where_no_entry_could_stand_in(change: dict[str, Any], expected: bool) -> None:
    assert may_rescue(dataclasses.replace(PLAN, **change)) is expected
