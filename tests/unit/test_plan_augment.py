"""Whether a small model may answer a query, and on what terms: what policy allows, and what narrows it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from cacheproxy.model import (
    Augmenting,
    Classification,
    Controls,
    Entry,
    Partition,
    Plan,
    Query,
    Reply,
    Scope,
    Tier,
    Trait,
    Wire,
)
from cacheproxy.policy.active import Policy, stricter, widest
from cacheproxy.policy.decide import exact_reason
from cacheproxy.policy.pack import Category, Encoder, Pack
from cacheproxy.policy.plan import plan, possible

EPOCH = "encoder-1"
THRESHOLDS = dict.fromkeys(("default", "small", "quiet", "short"), 0.8)
AUTO = Category(
    semantic=True,
    ttl_s=100.0,
    augment="auto",
    example_similarity=0.4,
    max_examples=3,
    example_tokens=500,
    augment_ttl_s=60.0,
    augment_judge_rate=0.2,
    double_run_usd_per_day=1.5,
)
PACK = Pack(
    schema=1,
    name="test",
    description="",
    default_category="default",
    categories={
        "default": AUTO,
        "small": Category(semantic=True, augment="auto", example_similarity=0.6, max_examples=9, example_tokens=90),
        "quiet": Category(semantic=True),
        "short": Category(semantic=True, ttl_s=10.0, augment="auto"),
        "exact": Category(),
        "never": Category(allow_caching=False, semantic=True, augment="auto"),
    },
    encoders={"e": Encoder(fingerprint=EPOCH, calibrated_on="x", thresholds=THRESHOLDS)},
)
POLICY = Policy.of(PACK)
ALL = Augmenting(similarity=0.4, most=3, tokens=500, ttl_s=60.0, judge_rate=0.2, double_run_usd_per_day=1.5)


def query(controls: Controls | None = None, **fields: Any) -> Query:
    plain = Query(
        dialect="chat",
        scope=Scope(tenant="t"),
        model="m",
        text="Hi",
        fingerprint=b"f" * 32,
        compatibility=b"c" * 32,
        wire=Wire(),
        controls=controls or Controls(),
    )
    return replace(plain, **fields)


def planned(
    controls: Controls | None = None,
    *,
    category: str = "default",
    second: str = "",
    epoch: str | None = EPOCH,
    load: float = 0.0,
    **fields: Any,
) -> Plan:
    return plan(query(controls, **fields), POLICY, epoch, Classification(category=category, second=second), load)


def test_a_plain_question_of_a_category_that_allows_it_is_augmented_on_its_terms() -> None:
    assert planned().augment == ALL


FORBIDS: dict[str, dict[str, Any]] = {
    "the header": {"controls": Controls(augment=False)},
    "no-store": {"controls": Controls(no_store=True)},
    "no-cache": {"controls": Controls(no_cache=True)},
    "only-if-cached": {"controls": Controls(only_if_cached=True)},
    "the exact tier": {"controls": Controls(tiers=frozenset({Tier.EXACT}))},
    "no tier": {"controls": Controls(tiers=frozenset(), no_store=True)},
    "a category that is off": {"category": "quiet"},
    "a category without similarity": {"category": "exact"},
    "a category that is never cached": {"category": "never"},
    "doubt of one that is off": {"second": "quiet"},
    "doubt of one that is on": {"category": "quiet", "second": "default"},
    "doubt of one never cached": {"second": "never"},
    "no encoder": {"epoch": None},
    "an encoder that is not calibrated": {"epoch": "encoder-2"},
    "a temperature above the limit": {"temperature": 1.0},
    "embeddings": {"dialect": "embeddings"},
}


@pytest.mark.parametrize("given", FORBIDS.values(), ids=FORBIDS)
def test_what_forbids_a_small_model_forbids_it(given: dict[str, Any]) -> None:
    assert planned(**given).augment is None


@pytest.mark.parametrize("trait", Trait)
def test_a_request_that_matches_exactly_only_or_bypasses_is_never_augmented(trait: Trait) -> None:
    assert planned(traits=frozenset({trait})).augment is None


@pytest.mark.parametrize("dialect", ["chat", "completions", "responses"])
def test_every_dialect_with_an_answer_may_be_augmented(dialect: str) -> None:
    assert planned(dialect=dialect).augment == ALL


def test_in_doubt_the_strictest_terms_of_both_hold() -> None:
    expected = Augmenting(similarity=0.6, most=3, tokens=90, ttl_s=60.0, judge_rate=0.01, double_run_usd_per_day=0.0)
    assert planned(second="small").augment == planned(category="small", second="default").augment == expected


@pytest.mark.parametrize(
    ("given", "ttl_s"),
    [
        ({}, 60.0),
        ({"controls": Controls(ttl_s=5.0)}, 5.0),
        ({"controls": Controls(ttl_s=1e9)}, 60.0),
        ({"category": "short"}, 10.0),
        ({"load": 1.0}, 60.0),
    ],
    ids=["as planned", "asked for less", "asked for more", "a short category", "under load"],
)
def test_a_small_models_answer_lives_no_longer_than_another_one_would(given: dict[str, Any], ttl_s: float) -> None:
    found = planned(**given)
    assert found.augment is not None
    assert found.augment.ttl_s == ttl_s <= found.ttl_s


def test_where_the_category_is_not_known_yet_whatever_one_of_them_allows_is_possible() -> None:
    off = Category(semantic=True, example_similarity=0.9, max_examples=1, example_tokens=1, augment_ttl_s=1.0)
    for categories in ((AUTO, off), (off, AUTO)):
        found = widest(categories)
        assert (found.augment, found.example_similarity, found.max_examples) == ("auto", 0.4, 3)
        assert stricter(categories).augment == "off"
    assert possible(query(), POLICY, EPOCH).augment is None  # no category has examples: what is told decides


def kept(origin: str) -> Entry:
    return Entry(
        id="66" * 16,
        fingerprint=b"f" * 32,
        partition=Partition(category="default", compatibility=b"c" * 32, epoch=EPOCH),
        tenant="t",
        text="Hi",
        reply=Reply(body={}, source="body"),
        created_s=0.0,
        expires_s=100.0,
        fill_ms=1.0,
        origin=origin,
    )


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, ""),
        ({"controls": Controls(no_store=True)}, ""),
        ({"controls": Controls(tiers=frozenset({Tier.EXACT}))}, ""),
        ({"controls": Controls(augment=False)}, "augmented"),
        ({"second": "quiet"}, "augmented"),
    ],
    ids=["as planned", "unseen", "exact only", "not wanted", "a second category that is off"],
)
def test_what_a_small_model_answered_is_served_only_where_one_may_answer(given: dict[str, Any], reason: str) -> None:
    asked = planned(**given)
    assert exact_reason(kept("augmented"), query(), asked, 1.0) == reason
    assert exact_reason(kept("backend"), query(), asked, 1.0) == ""


def test_once_a_category_is_off_its_augmented_answers_are_not_served() -> None:
    off = PACK.categories | {"default": Category(semantic=True)}
    policy = Policy.of(msgspec.structs.replace(PACK, categories=off))
    asked = plan(query(), policy, EPOCH, Classification(category="default"))
    assert exact_reason(kept("augmented"), query(), asked, 1.0) == "augmented"
