from __future__ import annotations

import dataclasses
import hashlib
from itertools import product
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from cacheproxy.model import Candidate, Controls, Embedding, Entry, Partition, Plan, Query, Reply, Scope
from cacheproxy.policy.decide import exact_reason, judge
from cacheproxy.query.chat import read_chat
from cacheproxy.query.scope import read_scope

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = hashlib.sha256(b"install").digest()
NOW_S = 1_800_000_000.0
PLAN = Plan(category="c", exact=True, semantic=True, store=True, embed=True, threshold=0.5, ttl_s=60, candidates=1)

header_values = st.binary(min_size=1, max_size=30).map(lambda value: value.strip() or b"k")
names = st.sampled_from(
    [b"authorization", b"api-key", b"x-api-key", b"openai-organization", b"openai-project", b"x-tenant"]
)
namespaces = st.sampled_from(["", "a", "b", "a:b", "default"])


def read(body: dict[str, Any], scope: Scope) -> Query:
    return read_chat(body, scope, Controls())


# Many scopes times many bodies: every pair of the product is compared at once, as members of one set.

KEYS = [
    "sk",
    "sk-1",
    "sk-11",
    "SK-1",
    "sk-1-team",
    "sk-1\xa0",
    "cache-scope",
    "sk-1:team",
    "",
    "null",
    "sk_1",
    "sk-1.",
    "0",
]
ACCOUNTS = [[], [(b"openai-organization", b"org")], [(b"openai-project", b"org")]]


def credentials() -> Iterator[list[tuple[bytes, bytes]]]:
    for key, header, account in product(KEYS, [b"authorization", b"api-key", b"x-api-key"], ACCOUNTS):
        told = key.encode("latin-1")
        if key:
            yield [(header, b"Bearer " + told if header == b"authorization" else told), *account]


def bodies(random: Random, count: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        question = f"What is {number}?"
        # Prompts that try to pass for another scope's material.
        crafted = random.choice([question, f"tenant={number} {question}", f'["chat","{number}"] {question}'])
        body: dict[str, Any] = {"model": random.choice(["a", "b"]), "messages": [{"role": "user", "content": crafted}]}
        if random.random() < 0.5:
            body["messages"].insert(0, {"role": "system", "content": f"namespace: team-{number % 3}"})
        yield body


def test_no_two_scopes_share_a_fingerprint_in_a_hundred_million_pairs() -> None:
    random = Random(20261122)
    scopes = [read_scope(headers, SECRET, namespace) for headers in credentials() for namespace in ("", "team", "sk-1")]
    assert len(set(scopes)) == len(scopes)
    questions = list(bodies(random, 50))
    queries = [read(body, scope) for scope in scopes for body in questions]
    assert len(queries) > 15_000  # more than 100 million pairs
    assert len({query.fingerprint for query in queries}) == len(queries)
    assert len({query.fingerprint[:16] for query in queries}) == len(queries)
    partitions: dict[bytes, Scope] = {}
    for query in queries:
        assert partitions.setdefault(query.compatibility, query.scope) == query.scope


@given(
    one=st.lists(st.tuples(names, header_values), max_size=4, unique_by=lambda header: header[0]),
    other=st.lists(st.tuples(names, header_values), max_size=4, unique_by=lambda header: header[0]),
    spaces=st.tuples(namespaces, namespaces),
    text=st.text(),
)
def test_requests_of_different_callers_never_share_a_key(
    one: list[tuple[bytes, bytes]], other: list[tuple[bytes, bytes]], spaces: tuple[str, str], text: str
) -> None:
    first, second = (read_scope(headers, SECRET, space) for headers, space in zip((one, other), spaces, strict=True))
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    asked, also = read(body, first), read(body, second)
    shared = first == second
    assert (asked.fingerprint == also.fingerprint) == shared
    assert (asked.compatibility == also.compatibility) == shared


@given(
    one=st.lists(st.tuples(names, header_values), min_size=1, max_size=4, unique_by=lambda header: header[0]),
    other=st.lists(st.tuples(names, header_values), min_size=1, max_size=4, unique_by=lambda header: header[0]),
)
def test_a_tenant_is_shared_only_by_equal_credentials(
    one: list[tuple[bytes, bytes]], other: list[tuple[bytes, bytes]]
) -> None:
    first, second = read_scope(one, SECRET).tenant, read_scope(other, SECRET).tenant
    assume(first and second)
    assert (first == second) == (_who(one) == _who(other))


def _who(headers: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    told = {name: value for name, value in headers if name != b"x-tenant"}
    scheme, blank, key = told.pop(b"authorization", b"").partition(b" ")
    return told | ({b"authorization": scheme.lower() + blank + key.strip()} if key.strip() else {})


@given(key=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=3))
def test_the_tenant_does_not_hold_the_key(key: str) -> None:
    tenant = read_scope([(b"authorization", b"Bearer " + key.encode())], SECRET).tenant
    assume(len(key) > 6 or not set(key) <= set("0123456789abcdef"))  # three hex digits may well occur by chance
    assert key not in tenant
    assert hashlib.sha256(key.encode()).hexdigest() != tenant


digests = st.binary(min_size=32, max_size=32)
partitions = st.builds(
    Partition,
    category=st.sampled_from(["c", "d"]),
    compatibility=st.sampled_from([b"c" * 32, b"d" * 32]) | digests,
    epoch=st.sampled_from(["e", "f"]),
)


@given(
    tenants=st.tuples(st.sampled_from("ab"), st.sampled_from("ab")),
    prints=st.tuples(st.sampled_from([b"f" * 32, b"g" * 32]), st.sampled_from([b"f" * 32, b"g" * 32])),
    asked=partitions,
    held=partitions,
    similarity=st.floats(0.5, 1),
)
def test_a_document_of_another_scope_is_refused_by_both_tiers(
    tenants: tuple[str, str], prints: tuple[bytes, bytes], asked: Partition, held: Partition, similarity: float
) -> None:
    query = dataclasses.replace(
        read({"model": "m", "messages": []}, Scope(tenant=tenants[0])),
        fingerprint=prints[0],
        compatibility=asked.compatibility,
    )
    plan = dataclasses.replace(PLAN, category=asked.category)
    entry = Entry(
        id=prints[1][:16].hex(),
        fingerprint=prints[1],
        partition=held,
        tenant=tenants[1],
        text="",
        reply=Reply(body={}, source="body"),
        created_s=NOW_S,
        expires_s=NOW_S + 60,
        fill_ms=1.0,
    )
    judgement = judge(
        Candidate(entry.id, similarity),
        entry,
        query=query,
        plan=plan,
        partition=asked,
        embedding=Embedding(vector=np.ones(1, dtype=np.float32)),
        now_s=NOW_S,
    )
    own = tenants[0] == tenants[1]
    assert judgement.served == (own and asked == held)
    same = own and prints[0] == prints[1] and asked.compatibility == held.compatibility
    assert (exact_reason(entry, query, plan, NOW_S) == "") == (same and asked.category == held.category)
    assert (exact_reason(entry, query, plan, NOW_S) == "scope_violation") == (not same)
