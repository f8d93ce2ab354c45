from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from cacheproxy.model import (
    Candidate,
    Controls,
    Embedding,
    Entry,
    Judgement,
    Partition,
    Plan,
    Query,
    Reply,
    Scope,
    Wire,
)
from cacheproxy.policy.decide import exact_reason, judge, near_enough
from cacheproxy.policy.freshness import stale_reason

NOW_S = 1_800_000_000.0

PLAN = Plan(
    category="default",
    exact=True,
    semantic=True,
    store=True,
    embed=True,
    threshold=0.8,
    ttl_s=100.0,
    candidates=4,
)
QUERY = Query(
    dialect="chat",
    scope=Scope(tenant="t"),
    model="m",
    text="Hi",
    fingerprint=b"f" * 32,
    compatibility=b"c" * 32,
    wire=Wire(),
    controls=Controls(),
)
PARTITION = Partition(category="default", compatibility=b"c" * 32, epoch="e")
ENTRY = Entry(
    id="66" * 16,
    fingerprint=b"f" * 32,
    partition=PARTITION,
    tenant="t",
    text="Hi",
    reply=Reply(body={}, source="body"),
    created_s=NOW_S - 10.0,
    expires_s=NOW_S + 90.0,
    fill_ms=1.0,
)


def plan(**fields: Any) -> Plan:
    return dataclasses.replace(PLAN, **fields)


def entry(**fields: Any) -> Entry:
    return dataclasses.replace(ENTRY, **fields)


def moved(**fields: Any) -> Partition:
    return dataclasses.replace(PARTITION, **fields)


def judged(
    found: Entry | None = ENTRY, *, similarity: float = 0.9, asked: Plan = PLAN, unseen: bytes = b""
) -> Judgement:
    return judge(
        Candidate(ENTRY.id, similarity),
        found,
        query=QUERY,
        plan=asked,
        partition=PARTITION,
        embedding=Embedding(vector=np.array([1.0], dtype=np.float32), unseen=unseen),
        now_s=NOW_S,
    )


def test_the_same_request_gets_its_entry() -> None:
    assert exact_reason(ENTRY, QUERY, PLAN, NOW_S) == ""


FOREIGN: dict[str, dict[str, Any]] = {
    "another tenant": {"tenant": "u"},
    "no tenant": {"tenant": ""},
    "another compatibility": {"partition": moved(compatibility=b"d" * 32)},
}


@pytest.mark.parametrize("change", [*FOREIGN.values(), {"fingerprint": b"g" * 32}], ids=[*FOREIGN, "another request"])
def test_a_foreign_document_is_never_an_exact_hit(change: dict[str, Any]) -> None:
    assert exact_reason(entry(**change), QUERY, PLAN, NOW_S) == "scope_violation"


def test_an_entry_of_another_category_is_no_exact_hit() -> None:
    found = entry(partition=moved(category="code"))
    assert exact_reason(found, QUERY, PLAN, NOW_S) == "other_category"


def test_an_entry_of_another_encoder_is_still_an_exact_hit() -> None:
    assert exact_reason(entry(partition=moved(epoch="other")), QUERY, PLAN, NOW_S) == ""


FRESHNESS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "fresh": ({}, {}, ""),
    "expires now": ({"expires_s": NOW_S}, {}, "expired"),
    "expired": ({"expires_s": NOW_S - 1}, {"min_fresh_s": 5.0}, "expired"),
    "expires in a moment": ({"expires_s": NOW_S + 0.001}, {}, ""),
    "fresh long enough": ({}, {"min_fresh_s": 89.9}, ""),
    "not fresh long enough": ({}, {"min_fresh_s": 90.0}, "not_fresh_enough"),
    "young enough": ({}, {"max_age_s": 10.0}, ""),
    "too old": ({}, {"max_age_s": 9.9}, "too_old"),
    "made in the future": ({"created_s": NOW_S + 50}, {"max_age_s": 0.0}, ""),
    "never ends": ({"expires_s": math.inf}, {"min_fresh_s": 2.0**31}, ""),
}


@pytest.mark.parametrize(("change", "asked", "reason"), FRESHNESS.values(), ids=FRESHNESS)
def test_freshness_is_judged_on_the_document(change: dict[str, Any], asked: dict[str, Any], reason: str) -> None:
    assert stale_reason(entry(**change), plan(**asked), NOW_S) == reason
    assert exact_reason(entry(**change), QUERY, plan(**asked), NOW_S) == reason
    assert judged(entry(**change), asked=plan(**asked)).served == (not reason)


@pytest.mark.parametrize(
    ("similarity", "near"),
    [(0.8, True), (math.nextafter(0.8, 0), False), (1.0, True), (-1.0, False), (math.nan, False), (math.inf, True)],
)
def test_a_similarity_reaches_the_threshold_or_not(similarity: float, near: bool) -> None:
    assert near_enough(Candidate("x", similarity), PLAN) is near
    assert judged(similarity=similarity).served is near


def test_a_near_candidate_is_served_with_its_reason() -> None:
    assert judged() == Judgement(candidate=Candidate(ENTRY.id, 0.9), served=True, reason="similar")


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_document_is_refused_however_near(change: dict[str, Any]) -> None:
    found = judged(entry(**change), similarity=1.0)
    assert (found.served, found.reason) == (False, "scope_violation")


@pytest.mark.parametrize(
    ("partition", "reason"), [(moved(category="code"), "other_category"), (moved(epoch="other"), "other_epoch")]
)
def test_an_own_document_that_has_moved_on_is_refused(partition: Partition, reason: str) -> None:
    found = judged(entry(partition=partition), similarity=1.0)
    assert (found.served, found.reason) == (False, reason)


def test_a_hint_without_a_document_is_refused() -> None:
    assert judged(None).reason == "document_missing"
    assert judged(None, similarity=0.1).reason == "below_threshold"


def test_text_the_encoder_could_not_see_must_be_equal() -> None:
    assert judged(entry(unseen=b"x"), unseen=b"x").served
    assert judged(entry(unseen=b"x"), unseen=b"y").reason == "unseen_text_differs"
    assert judged(entry(unseen=b"x")).reason == "unseen_text_differs"
    assert judged(unseen=b"x").reason == "unseen_text_differs"


CALLING: dict[str, tuple[str, dict[str, Any]]] = {
    "tools": ("chat", {"choices": [{"message": {"content": "x"}}, {"message": {"tool_calls": [{"id": "c"}]}}]}),
    "a function": ("chat", {"choices": [{"message": {"function_call": {"name": "f"}}}]}),
    "a function, in a response": ("responses", {"output": [{"type": "function_call", "name": "f"}]}),
}


@pytest.mark.parametrize(("dialect", "body"), CALLING.values(), ids=CALLING)
def test_a_kept_answer_that_calls_tools_is_served_only_while_policy_allows_it(
    dialect: str, body: dict[str, Any]
) -> None:
    entry = dataclasses.replace(ENTRY, reply=Reply(body=body, source="body"))
    query = dataclasses.replace(QUERY, dialect=dialect)
    assert exact_reason(entry, query, PLAN, NOW_S) == "tool_calls"
    assert exact_reason(entry, query, dataclasses.replace(PLAN, keep_tool_calls=True), NOW_S) == ""
