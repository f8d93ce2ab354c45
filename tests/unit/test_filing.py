"""The entry that an answer is kept as: one rule for single answers and for lists."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cacheproxy.filing import Filing, entry_of
from cacheproxy.journey import Journey
from cacheproxy.model import Classification, Common, Controls, Embedding, Query, Reply, Scope, Shared, Wire, entry_id
from cacheproxy.policy.active import Policy
from cacheproxy.policy.admit import Keep, Lifetime
from cacheproxy.policy.pack import Category, Pack
from cacheproxy.policy.plan import plan
from cacheproxy.policy.share import common_tag
from cacheproxy.query.variant import variant

NOW_S = 1000.0
TTL_S = 100.0
CHAIN = ("Who won in 2014?", "Germany.")
COMMON = Common(tenant="all", fingerprint=b"f" * 32, compatibility=b"c" * 32)
EMBEDDING = Embedding(vector=np.array([1.0, 0.0], dtype=np.float32), unseen=b"rest")
PACK = Pack(
    schema=1,
    name="test",
    description="",
    default_category="default",
    categories={"default": Category(ttl_s=TTL_S)},
)
QUERY = Query(
    dialect="chat",
    scope=Scope(tenant="t", namespace="n"),
    model="m",
    text="And in 2018?",
    fingerprint=bytes(range(128, 160)),
    compatibility=b"c" * 32,
    wire=Wire(),
    controls=Controls(tags=("own",)),
    chain=CHAIN,
    common=COMMON,
    headers=((b"accept-language", b"de"),),
    user="u",
)


def journey(**changes: Any) -> Journey:
    policy = replace(Policy.of(PACK), version=7)
    told = Classification(category="default")
    planned = replace(plan(QUERY, policy, None, told), ttl_jitter=0.5, second="code", **changes)
    return Journey(query=QUERY, plan=planned, policy=policy, started_s=0.0, fence=0, told=told)


def kept(**life: Any) -> Keep:
    return Keep(reply=Reply(body={"model": "m-1"}, source="body"), life=Lifetime(**{"ttl_s": TTL_S, **life}))


def filing(**fields: Any) -> Filing:
    return Filing(**{"key": QUERY.fingerprint, "now_s": NOW_S, "fill_ms": 12.0, "epoch": "e", **fields})


def test_an_entry_carries_what_a_hit_checks_again() -> None:
    entry = entry_of(journey(), kept(), filing(embedding=EMBEDDING))
    assert entry.id == entry_id(QUERY.fingerprint) == QUERY.fingerprint[:16].hex()
    assert (entry.fingerprint, entry.tenant, entry.namespace) == (QUERY.fingerprint, "t", "n")
    assert (entry.partition.category, entry.partition.compatibility, entry.partition.epoch) == (
        "default",
        QUERY.compatibility,
        "e",
    )
    assert (entry.text, entry.chain, entry.unseen, entry.vector is EMBEDDING.vector) == (
        QUERY.text,
        CHAIN,
        b"rest",
        True,
    )
    assert (entry.tags, entry.user, entry.second, entry.fill_ms) == (("own",), "u", "code", 12.0)


def test_an_entry_tells_the_policy_and_the_origin_it_was_kept_under() -> None:
    assert entry_of(journey(), kept(), filing()).policy == 7
    warmed = replace(journey(), origin="warmed")
    assert entry_of(warmed, kept(), filing()).origin == "warmed"


def test_an_answer_that_is_never_looked_for_by_similarity_keeps_neither_vector_nor_conversation() -> None:
    entry = entry_of(journey(), kept(), filing())
    assert (entry.vector, entry.chain, entry.unseen) == (None, (), b"")


def test_a_variant_is_found_by_its_own_id_and_is_still_of_its_request() -> None:
    entry = entry_of(journey(), kept(vary=("accept-language",)), filing(key=b"v" * 32))
    assert (entry.id, entry.fingerprint) == (entry_id(b"v" * 32), QUERY.fingerprint)
    assert (entry.vary, entry.variant) == (("accept-language",), variant(QUERY, ("accept-language",)))


@pytest.mark.parametrize(("ttl_s", "lives_s"), [(TTL_S, 74.9), (TTL_S - 1, TTL_S - 1)], ids=["ours", "the backend's"])
def test_only_our_own_lifetime_is_shortened_by_the_jitter(ttl_s: float, lives_s: float) -> None:
    entry = entry_of(journey(), kept(ttl_s=ttl_s, age_s=30.0, stale_s=5.0), filing())
    assert entry.expires_s - NOW_S == pytest.approx(lives_s, abs=0.1)
    assert entry.created_s == NOW_S - 30.0
    assert entry.stale_until_s == entry.expires_s + 5.0


SHARED = {"shared": Shared(agreed=True, principals=2, most=1.0)}


@pytest.mark.parametrize(
    ("changes", "life", "fields", "tagged"),
    [
        (SHARED, {}, {"embedding": EMBEDDING}, True),
        ({}, {}, {"embedding": EMBEDDING}, False),
        (SHARED, {}, {}, False),
        (SHARED, {"vary": ("accept-language",)}, {"embedding": EMBEDDING}, False),
    ],
    ids=["may be shared", "not shared", "exact only", "chosen by headers"],
)
def test_only_what_tenants_may_share_carries_their_tag(
    changes: dict[str, Any], life: dict[str, Any], fields: dict[str, Any], *, tagged: bool
) -> None:
    entry = entry_of(journey(**changes), kept(**life), filing(**fields))
    assert (common_tag(COMMON) in entry.tags) is tagged
