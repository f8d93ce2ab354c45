"""What may be trained on, by the question, its caller and its category."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from msgspec import structs

from cacheproxy.model import Classification, Controls, Query, Scope, Wire
from cacheproxy.policy.active import Policy, stricter, widest
from cacheproxy.policy.pack import Category, Rule
from cacheproxy.policy.plan import plan, possible
from cacheproxy.policy.rules import Rules
from cacheproxy.policy.teach import barred, may_train, untaught
from tests.support.house import PACK

if TYPE_CHECKING:
    from cacheproxy.policy.pack import Pack

OPEN, CLOSED = Category(semantic=True), Category(semantic=True, train="never")
PRIVATE = Category(allow_caching=False)
QUERY = Query(
    dialect="chat", scope=Scope(tenant="t", consents=True), model="m", text="How?", fingerprint=b"f" * 32,
    compatibility=b"c" * 32, wire=Wire(), controls=Controls(),
)  # fmt: skip
VECTOR = np.ones(1, dtype=np.float32)


def pack(**categories: Category) -> Pack:
    return structs.replace(PACK, categories={"default": OPEN, **categories})


def told(query: Query = QUERY, category: str = "default", second: str = "", **categories: Category) -> str:
    policy = Policy.of(pack(**categories))
    return untaught(query, plan(query, policy, "e", Classification(category=category, second=second)))


def test_a_plain_question_of_a_caller_who_consents_may_be_trained_on() -> None:
    assert told() == ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"controls": Controls(no_store=True)}, "no_store"),
        ({"chain": ("Hi", "Hello")}, "conversation"),
        ({"earlier": ("Hi",)}, "conversation"),
        ({"text": " "}, "no_text"),
        ({"text": "", "inputs": ("a", "b")}, "no_text"),
        ({"scope": Scope(tenant="t")}, "no_consent"),
        ({"scope": Scope(tenant="t"), "chain": ("Hi", "Hello")}, "conversation"),
        ({"scope": Scope(tenant="t"), "controls": Controls(no_store=True)}, "no_store"),
    ],
)
def test_what_speaks_against_it_is_told_and_a_missing_consent_last(change: dict[str, Any], reason: str) -> None:
    assert told(replace(QUERY, **change)) == reason


@pytest.mark.parametrize("rules", [CLOSED, PRIVATE, structs.replace(PRIVATE, train="allowed")])
@pytest.mark.parametrize("place", [("other", ""), ("default", "other")])
def test_a_category_that_never_trains_or_is_never_cached_is_not_even_as_the_second(
    rules: Category, place: tuple[str, str]
) -> None:
    assert told(QUERY, *place, other=rules) in ("category", "no_store")
    assert told(QUERY, *place, other=OPEN) == ""


@pytest.mark.parametrize("combine", [stricter, widest])
def test_of_two_categories_both_must_allow_it(combine: Any) -> None:
    assert [combine(pair).train for pair in ([OPEN, OPEN], [OPEN, CLOSED], [CLOSED, OPEN])] == [
        "allowed", "never", "never",
    ]  # fmt: skip


def test_a_question_whose_category_is_not_known_yet_is_not_trained_on_where_any_may_not() -> None:
    def classify(vector: object) -> Classification:
        return Classification(category="default")

    categories = pack(other=structs.replace(CLOSED, examples=("a",)))
    policy = Policy(pack=categories, rules=Rules(categories.categories, str), classify=classify)
    assert untaught(QUERY, possible(QUERY, policy, "e")) == "category"


@pytest.mark.parametrize(("rules", "may"), [(OPEN, True), (CLOSED, False), (PRIVATE, False), (None, False)])
def test_a_category_that_is_gone_trains_no_more(rules: Category | None, may: bool) -> None:
    assert may_train(rules) is may


SEEN = [
    (Classification(category="default"), False),
    (Classification(category="private"), True),
    (Classification(category="default", second="private"), True),
    (Classification(category="closed"), True),
    (Classification(category="default", second="closed"), True),
    (Classification(category="gone"), True),
    (Classification(category="default", source="unknown"), True),
]


@pytest.mark.parametrize(("seen", "is_barred"), SEEN)
def test_by_the_policy_in_force_a_question_near_to_a_category_that_never_trains_is_barred(
    seen: Classification, is_barred: bool
) -> None:
    categories = pack(private=PRIVATE, closed=CLOSED)
    policy = Policy(pack=categories, rules=Rules(categories.categories, str), classify=lambda vector: seen)
    assert barred(policy, QUERY, VECTOR) is is_barred


@pytest.mark.parametrize("rules", [CLOSED, PRIVATE])
def test_and_so_is_one_that_a_rule_claims_for_it(rules: Category) -> None:
    policy = Policy.of(pack(other=structs.replace(rules, rules=(Rule(text="patient"),))))
    assert barred(policy, replace(QUERY, text="How is the Patient?"), VECTOR)
    assert not barred(policy, QUERY, VECTOR)
