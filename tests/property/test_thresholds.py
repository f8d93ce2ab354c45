from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cacheproxy.model import (
    Candidate,
    Classification,
    Controls,
    Embedding,
    Entry,
    Partition,
    Plan,
    Query,
    Reply,
    Scope,
    Tier,
    Wire,
)
from cacheproxy.policy.active import Policy
from cacheproxy.policy.decide import exact_reason, judge, near_enough
from cacheproxy.policy.pack import Category, Encoder, Pack
from cacheproxy.policy.plan import plan

NOW_S = 1_800_000_000.0
EPOCH = "e"
PARTITION = Partition(category="default", compatibility=b"c" * 32, epoch=EPOCH)

cosines = st.floats(-1, 1)
thresholds = st.floats(0, 1)
calibrated = st.floats(0, 1, exclude_min=True)
seconds = st.floats(0, 1000)


def query(controls: Controls) -> Query:
    return Query(
        dialect="chat",
        scope=Scope(tenant="t"),
        model="m",
        text="Hi",
        fingerprint=b"f" * 32,
        compatibility=PARTITION.compatibility,
        wire=Wire(),
        controls=controls,
    )


def planned(controls: Controls, threshold: float) -> Plan:
    pack = Pack(
        schema=1,
        name="test",
        description="",
        default_category="default",
        categories={"default": Category(semantic=True, ttl_s=500.0)},
        encoders={"e": Encoder(fingerprint=EPOCH, calibrated_on="x", thresholds={"default": threshold})},
    )
    return plan(query(controls), Policy.of(pack), EPOCH, Classification(category="default"))


def entry(created_s: float, expires_s: float) -> Entry:
    return Entry(
        id="66" * 16,
        fingerprint=b"f" * 32,
        partition=PARTITION,
        tenant="t",
        text="Hi",
        reply=Reply(body={}, source="body"),
        created_s=created_s,
        expires_s=expires_s,
        fill_ms=1.0,
    )


def served(controls: Controls, threshold: float, similarity: float, found: Entry) -> frozenset[Tier]:
    """Which tiers would serve this entry to a caller with these controls."""
    asked, allowed = query(controls), planned(controls, threshold)
    judgement = judge(
        Candidate(found.id, similarity),
        found,
        query=asked,
        plan=allowed,
        partition=PARTITION,
        embedding=Embedding(vector=np.ones(1, dtype=np.float32)),
        now_s=NOW_S,
    )
    exact = allowed.exact and not exact_reason(found, asked, allowed, NOW_S)
    semantic = allowed.semantic and judgement.served
    return frozenset(tier for tier, hit in ((Tier.EXACT, exact), (Tier.SEMANTIC, semantic)) if hit)


@given(similarity=cosines, policy=calibrated, one=thresholds, other=thresholds)
def test_raising_the_requests_threshold_never_creates_a_hit(
    similarity: float, policy: float, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    fresh = entry(NOW_S, NOW_S + 10)
    loose, strict = (served(Controls(threshold=asked), policy, similarity, fresh) for asked in (low, high))
    assert strict <= loose <= served(Controls(), policy, similarity, fresh)


@given(similarity=cosines, one=calibrated, other=calibrated, asked=st.none() | thresholds)
def test_raising_the_packs_threshold_never_creates_a_hit(
    similarity: float, one: float, other: float, asked: float | None
) -> None:
    low, high = sorted((one, other))
    fresh, controls = entry(NOW_S, NOW_S + 10), Controls(threshold=asked)
    assert served(controls, high, similarity, fresh) <= served(controls, low, similarity, fresh)


@given(similarity=cosines | st.just(float("nan")), policy=calibrated, asked=st.none() | thresholds)
def test_nothing_below_either_threshold_is_near_enough(similarity: float, policy: float, asked: float | None) -> None:
    near = near_enough(Candidate("x", similarity), planned(Controls(threshold=asked), policy))
    assert near == (similarity >= policy and (asked is None or similarity >= asked))


controls = st.builds(
    Controls,
    no_store=st.booleans(),
    no_cache=st.booleans(),
    max_age_s=st.none() | seconds,
    min_fresh_s=st.none() | seconds,
    ttl_s=st.none() | seconds,
    threshold=st.none() | thresholds,
    tiers=st.frozensets(st.sampled_from(Tier)),
)


@st.composite
def narrowings(draw: st.DrawFn) -> tuple[Controls, Controls]:
    """Return a request's controls, and the same with restrictions added."""
    wide = draw(controls)
    tighter = draw(controls)
    return wide, dataclasses.replace(
        wide,
        no_store=wide.no_store or tighter.no_store,
        no_cache=wide.no_cache or tighter.no_cache,
        max_age_s=min((s for s in (wide.max_age_s, tighter.max_age_s) if s is not None), default=None),
        min_fresh_s=max((s for s in (wide.min_fresh_s, tighter.min_fresh_s) if s is not None), default=None),
        ttl_s=min((s for s in (wide.ttl_s, tighter.ttl_s) if s is not None), default=None),
        threshold=max((t for t in (wide.threshold, tighter.threshold) if t is not None), default=None),
        tiers=wide.tiers & tighter.tiers,
    )


@given(pair=narrowings(), similarity=cosines, policy=calibrated, age_s=seconds, left_s=st.floats(-100, 1000))
@settings(max_examples=300)
def test_a_request_can_only_narrow(
    pair: tuple[Controls, Controls], similarity: float, policy: float, age_s: float, left_s: float
) -> None:
    wide, narrow = pair
    found = entry(NOW_S - age_s, NOW_S + left_s)
    assert served(narrow, policy, similarity, found) <= served(wide, policy, similarity, found)
    before, after, free = (planned(asked, policy) for asked in (wide, narrow, Controls()))
    for tighter, looser in ((after, before), (before, free)):
        assert tighter.ttl_s <= looser.ttl_s
        for right in ("exact", "semantic", "store", "embed"):
            assert getattr(tighter, right) <= getattr(looser, right)
