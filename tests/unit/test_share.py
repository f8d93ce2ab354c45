from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheproxy.model import OPERATOR, Common, Controls, Entry, Partition, Query, Reply, Scope, Shared
from cacheproxy.policy.active import Policy, stricter
from cacheproxy.policy.pack import Category, Encoder, Pack
from cacheproxy.policy.plan import plan
from cacheproxy.policy.share import (
    Taken,
    agreeing,
    common_in,
    common_tag,
    in_common,
    principal,
    shared_entry,
    visible,
)
from cacheproxy.query.chat import read_chat
from cacheproxy.query.completions import read_completion

TENANT, OTHER, THIRD, COMMON = "t" * 64, "u" * 64, "v" * 64, "c" * 64
AGREED = Shared(principals=2, agreed=True, most=0.5)
APPROVED = Shared(principals=2, agreed=False, most=0.5)


def query(tenant: str = TENANT, *, common: str = COMMON, namespace: str = "", **fields: Any) -> Query:
    body = {"model": "m", "messages": [{"role": "user", "content": "How?"}], **fields}
    return read_chat(body, Scope(tenant=tenant, namespace=namespace, common=common), Controls(), b"")


def shared_by(asked: Query) -> Common:
    assert asked.common is not None
    return asked.common


def entry(tenant: str = TENANT, **fields: Any) -> Entry:
    asked = query(tenant)
    return Entry(
        id=asked.fingerprint[:16].hex(),
        fingerprint=asked.fingerprint,
        partition=Partition(category="default", compatibility=asked.compatibility, epoch="e"),
        tenant=tenant,
        text="How?",
        reply=Reply(body={}, source="body"),
        created_s=10.0,
        expires_s=100.0,
        fill_ms=5.0,
        tags=("faq", common_tag(shared_by(asked))),
        **fields,
    )


def alike(one: Entry, other: Entry) -> bool:
    return one.reply.body == other.reply.body


def test_all_tenants_have_one_request_in_common_and_nothing_else() -> None:
    one, other = query(TENANT), query(OTHER)
    assert one.common == other.common
    assert one.fingerprint != other.fingerprint
    assert one.compatibility != other.compatibility


@pytest.mark.parametrize(
    "change",
    [{"temperature": 0.5}, {"user": "alice"}, {"namespace": "n"}, {"messages": [{"role": "user", "content": "Why?"}]}],
    ids=str,
)
def test_whatever_else_differs_is_not_in_common(change: dict[str, Any]) -> None:
    assert shared_by(query(**change)).fingerprint != shared_by(query()).fingerprint


@pytest.mark.parametrize("tenant", [TENANT, COMMON])
def test_a_scope_of_its_own_never_meets_the_common_one(tenant: str) -> None:
    own = query(tenant, common="")
    assert own.common is None
    assert in_common(own) is None
    if tenant != COMMON:
        assert own.compatibility != shared_by(query()).compatibility


def test_a_query_in_common_is_that_of_no_tenant() -> None:
    found = in_common(query())
    assert found is not None
    assert (found.scope.tenant, found.scope.common) == (COMMON, "")
    assert found.fingerprint == shared_by(query(OTHER)).fingerprint


@given(st.sets(st.sampled_from([TENANT, OTHER, THIRD, "w" * 64])), st.integers(2, 4))
def test_a_hit_needs_as_many_others_as_the_terms_say(tenants: set[str], principals: int) -> None:
    shared = entry(principals=tuple(principal(tenant) for tenant in tenants))
    others = len(tenants - {TENANT})
    assert visible(shared, TENANT, replace(AGREED, principals=principals)) == (others >= principals)


def test_an_operators_word_stands_for_all_and_agreement_alone_for_nothing_without_leave() -> None:
    assert visible(entry(principals=(OPERATOR,)), TENANT, APPROVED)
    assert not visible(entry(principals=(principal(OTHER), principal(THIRD))), TENANT, APPROVED)


def test_principals_are_not_their_tenants() -> None:
    assert principal(TENANT) not in TENANT
    assert principal(TENANT) != principal(OTHER)


def test_one_tenant_counts_once() -> None:
    assert len(agreeing(entry(), [entry(), replace(entry(), id="0" * 32)], alike)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"text": "Why?"},
        {"namespace": "n"},
        {"unseen": b"x"},
        {"origin": "promoted"},
        {"origin": "warmed"},
        {"vary": ("accept",)},
        {"user": "alice"},
        {"chain": ("a", "b")},
        {"reply": Reply(body={"other": 1}, source="body")},
        {"partition": Partition(category="code", compatibility=b"", epoch="e")},
        {"partition": Partition(category="default", compatibility=b"", epoch="f")},
    ],
    ids=str,
)
def test_what_differs_does_not_agree(change: dict[str, Any]) -> None:
    assert len(agreeing(entry(), [entry(OTHER)], alike)) == 2
    assert len(agreeing(entry(), [replace(entry(OTHER), **change)], alike)) == 1


def test_a_shared_entry_lives_no_longer_than_its_sources_and_names_none_of_them() -> None:
    sources = [entry(stale_until_s=500.0), replace(entry(OTHER), expires_s=50.0, created_s=5.0)]
    common = shared_by(query())
    made = shared_entry(common, sources, [principal(one.tenant) for one in sources], 80.0)
    assert (made.created_s, made.expires_s, made.gone_s, made.origin) == (5.0, 50.0, 50.0, "shared")
    assert (made.tenant, made.fingerprint) == (COMMON, common.fingerprint)
    assert made.parents == tuple(one.id for one in sources)
    assert made.tags[:2] == ("faq", "shared")
    assert common_in(made, COMMON) is None, "what is shared is not shared again"


def test_the_tag_tells_what_is_in_common() -> None:
    assert common_in(entry(), COMMON) == query().common
    assert common_in(replace(entry(), tags=("common:",)), COMMON) is None


def test_one_tenant_cannot_have_more_than_its_share_of_what_is_shared() -> None:
    taken = Taken()
    for number in range(1000):
        assert taken.within("default", TENANT, 0.5)
        taken.count("default", [principal(TENANT), principal(str(number))])
    assert not taken.within("default", TENANT, 0.5)
    assert taken.within("default", OTHER, 0.5)
    assert taken.within("code", TENANT, 0.5)


PACK = Pack(
    schema=1,
    name="test",
    description="",
    default_category="default",
    categories={"default": Category(semantic=True, share="agreed")},
    encoders={"e": Encoder(fingerprint="e", calibrated_on="x", thresholds={"default": 0.8})},
)


@pytest.mark.parametrize(
    ("fields", "shared"),
    [
        ({}, True),
        ({"common": ""}, False),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, False),
        ({"n": 2}, False),
        ({"response_format": {"type": "json_object"}}, False),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                       {"role": "user", "content": "c"}]}, False),
        ({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "c"}]}, True),
    ],
    ids=str,
)  # fmt: skip
def test_only_lone_plain_questions_of_vouched_tenants_are_shared(fields: dict[str, Any], shared: bool) -> None:
    policy, asked = Policy.of(PACK), query(**fields)
    told = policy.told(asked)
    assert told is not None
    assert (plan(asked, policy, "e", told).shared is not None) == shared


def test_a_request_of_a_named_end_user_is_not_shared() -> None:
    policy, asked = Policy.of(PACK), replace(query(), user="u" * 64)
    told = policy.told(asked)
    assert told is not None
    assert plan(asked, policy, "e", told).shared is None


def test_legacy_completions_are_shared_too() -> None:
    asked = read_completion({"model": "m", "prompt": "How?"}, Scope(tenant=TENANT, common=COMMON), Controls(), b"")
    policy = Policy.of(PACK)
    told = policy.told(asked)
    assert told is not None
    assert plan(asked, policy, "e", told).shared == AGREED


@pytest.mark.parametrize("other", ["never", "approved", "agreed"])
def test_of_two_categories_the_stricter_one_decides_what_is_shared(other: Any) -> None:
    found = stricter([Category(share="approved", share_principals=3), Category(share=other, share_principals=2)])
    assert found.share == ("never" if other == "never" else "approved")
    assert found.share_principals == 3
