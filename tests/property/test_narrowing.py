"""A request can narrow policy, never widen it; directives of any shape are read without an error."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import hypothesis.strategies as st
from hypothesis import example, given, settings

from cacheproxy.model import Classification, Controls, Entry, Partition, Query, Reply, Scope, Stale, Wire
from cacheproxy.policy.active import Policy
from cacheproxy.policy.admit import Lifetime, lifetime
from cacheproxy.policy.decide import exact_reason
from cacheproxy.policy.freshness import freshness
from cacheproxy.policy.pack import Category, Encoder, Pack
from cacheproxy.policy.plan import plan as plan_query
from cacheproxy.query.controls import read_controls
from cacheproxy.query.directives import read_directives, read_targeted

if TYPE_CHECKING:
    from cacheproxy.model import Plan

NOW_S = 1_800_000_000.0
SECONDS = st.sampled_from([0, 1, 5, 30, 60, 61, 300, 10**12])
TIMES = st.floats(0, 400)

narrowing = st.one_of(
    st.sampled_from(["no-store", "no-cache", "only-if-cached", "no-transform", "x=1", "max-age=soon", "max-stale=x"]),
    st.builds("max-age={}".format, SECONDS),
    st.builds("min-fresh={}".format, SECONDS),
)
widening = st.one_of(
    st.sampled_from(["max-stale", "stale-if-error"]),
    st.builds("max-stale={}".format, SECONDS),
    st.builds("stale-if-error={}".format, SECONDS),
)


@st.composite
def packs(draw: st.DrawFn) -> Pack:
    cap = draw(st.sampled_from([0.0, 20.0, 100.0]))
    windows = st.sampled_from([0.0, cap / 2, cap])
    category = Category(
        semantic=True,
        ttl_s=draw(st.sampled_from([50.0, 200.0])),
        max_stale_s=cap,
        stale_if_error_s=draw(windows),
        stale_while_revalidate_s=draw(windows),
    )
    encoder = Encoder(fingerprint="e", calibrated_on="x", thresholds={"default": 0.8})
    return Pack(
        schema=1,
        name="t",
        description="",
        default_category="default",
        categories={"default": category},
        encoders={"e": encoder},
    )


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    """An entry of some age, as it would have been kept under any pack and any word of the backend."""
    age_s, ttl_s = draw(TIMES), draw(st.floats(1, 200))
    expires_s = NOW_S - age_s + ttl_s
    return Entry(
        id="66" * 16,
        fingerprint=b"f" * 32,
        partition=Partition(category="default", compatibility=b"c" * 32, epoch="e"),
        tenant="t",
        text="Hi",
        reply=Reply(body={}, source="body"),
        created_s=NOW_S - age_s,
        expires_s=expires_s,
        stale_until_s=expires_s + draw(st.sampled_from([0.0, 50.0, 1000.0])),
        revalidate_s=draw(st.sampled_from([0.0, 50.0, 1000.0])),
        on_error_s=draw(st.sampled_from([0.0, 50.0, 1000.0])),
        fill_ms=1.0,
    )


def planned(directives: list[str], pack: Pack, failed: bool) -> tuple[Query, Plan]:
    controls = asked(directives)
    query = Query(
        dialect="chat",
        scope=Scope(tenant="t"),
        model="m",
        text="Hi",
        fingerprint=b"f" * 32,
        compatibility=b"c" * 32,
        wire=Wire(),
        controls=controls,
    )
    return query, replace(plan_query(query, Policy.of(pack), "e", Classification(category="default")), failed=failed)


def asked(directives: list[str]) -> Controls:
    headers = [(b"cache-control", ", ".join(directives).encode())] if directives else []
    return read_controls(headers)[0]


def served(directives: list[str], pack: Pack, entry: Entry, failed: bool) -> bool:
    query, plan = planned(directives, pack, failed)
    return plan.exact and exact_reason(entry, query, plan, NOW_S) == ""


@settings(max_examples=500)
@given(
    before=st.lists(st.one_of(narrowing, widening), max_size=4),
    added=narrowing,
    pack=packs(),
    entry=entries(),
    failed=st.booleans(),
)
def test_a_directive_never_turns_a_miss_into_a_hit(
    before: list[str], added: str, pack: Pack, entry: Entry, failed: bool
) -> None:
    if served([*before, added], pack, entry, failed):
        assert served(before, pack, entry, failed)


@settings(max_examples=500)
@given(before=st.lists(narrowing, max_size=4), added=widening, pack=packs(), entry=entries(), failed=st.booleans())
def test_a_directive_that_accepts_stale_answers_gains_nothing_but_those(
    before: list[str], added: str, pack: Pack, entry: Entry, failed: bool
) -> None:
    if served([*before, added], pack, entry, failed) and not served(before, pack, entry, failed):
        _, plan = planned([*before, added], pack, failed)
        assert freshness(entry, plan, NOW_S).stale in (Stale.ASKED, Stale.ON_ERROR)


@settings(max_examples=500)
@given(
    directives=st.lists(st.one_of(narrowing, widening), max_size=4), pack=packs(), entry=entries(), failed=st.booleans()
)
def test_nothing_is_served_further_past_its_expiry_than_policy_says(
    directives: list[str], pack: Pack, entry: Entry, failed: bool
) -> None:
    if served(directives, pack, entry, failed) and entry.expires_s <= NOW_S:
        cap_s = pack.categories["default"].max_stale_s
        assert cap_s > 0
        assert NOW_S - entry.expires_s <= cap_s
        assert entry.gone_s >= NOW_S


@settings(max_examples=500)
@given(value=st.text(max_size=200))
@example(value='a="\\')
def test_any_text_is_read_and_never_hides_a_no_store_beside_it(value: str) -> None:
    assert "no-store" in read_directives([value, "no-store"])
    assert "no-store" in read_directives(["no-store", value])
    read_targeted([value])


names = st.sampled_from(["cache-control", "CacheProxy-Cache-Control", "Expires", "Date", "Age", "Vary", "x"])
parts = st.text(st.sampled_from('nostreacxgpv-=",; \\0159*?:()TGM\x00\xff'), max_size=40)
told = st.one_of(
    parts,
    st.sampled_from(["no-store", "max-age=5", "s-maxage=9", "0", "Thu, 01 Jan 1970 00:00:00 GMT", "*", "x-a, x-b"]),
)


@settings(max_examples=500)
@given(headers=st.lists(st.tuples(names, told), max_size=6), pack=packs())
def test_any_headers_of_an_answer_can_only_narrow_its_life(headers: list[tuple[str, str]], pack: Pack) -> None:
    _, plan = planned([], pack, False)
    life = lifetime(headers, plan, now_s=NOW_S)
    if isinstance(life, Lifetime):
        assert 0 < life.ttl_s <= plan.ttl_s
        assert life.age_s >= 0
        assert all(0 <= window <= plan.stale.cap_s for window in (life.stale_s, life.revalidate_s, life.on_error_s))
        assert all(math.isfinite(value) for value in (life.ttl_s, life.age_s))
        assert "*" not in life.vary
