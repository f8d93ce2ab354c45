from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest

from cacheproxy.flight import Settlement
from cacheproxy.http.headers import forwarded_headers, outcome_headers, unanswered_headers, visible
from cacheproxy.model import Bypass, Entry, Hit, Lookup, Miss, Partition, Reply, Stale, Tier
from cacheproxy.policy.pack import Price
from cacheproxy.policy.price import saved_usd
from tests.support.cachestatus import Member, parse_cache_status

NOW_S = 1_800_000_000.0

NASTY = {
    "line breaks": "m\r\nset-cookie: a=b",
    "a lone line feed": "m\nx",
    "NUL": "m\x00",
    "DEL and C1": "m\x7f\x85",
    "separators": "m\u2028\u2029",
    "a quote": 'm"; hit',
    "a backslash": "m\\",
    "another script": "модель",
    "beyond the BMP": "\U0001f600" * 200,
    "endless": "m" * 5000,
    "empty": "",
}


def hit(
    body: dict[str, Any] | None = None, *, tier: Tier = Tier.EXACT, age_s: float = 10.0, left_s: float = 90.0
) -> Hit:
    entry = Entry(
        id="ab" * 16,
        fingerprint=b"f" * 32,
        partition=Partition(category="default", compatibility=b"c" * 32, epoch="e"),
        tenant="t",
        text="a question nobody else may read",
        reply=Reply(body={"model": "m"} if body is None else body, source="body"),
        created_s=NOW_S - age_s,
        expires_s=NOW_S + left_s,
        fill_ms=1.0,
    )
    evidence = Lookup(similarity=0.91, threshold=0.8, lookup_ms=1.25) if tier is Tier.SEMANTIC else Lookup()
    return Hit(entry=entry, tier=tier, category="default", reason="similar", evidence=evidence)


def told(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    names = [name for name, _ in headers]
    assert len(set(names)) == len(names), f"a header twice: {names}"
    return {name.decode("ascii"): value.decode("ascii") for name, value in headers}


def member(headers: list[tuple[bytes, bytes]]) -> Member:
    (found,) = parse_cache_status(told(headers)["cache-status"])
    assert found.cache == "cacheproxy"
    return found


def forwarded(
    reason: str = "no_entry", *, stored: bool | None = None, why: str = "x", model: str = "m", coalesced: bool = False
) -> list[tuple[bytes, bytes]]:
    settlement = None if stored is None else Settlement(stored=stored, reason=why, entry_id="cd" * 16, model=model)
    return forwarded_headers(
        Miss(category="default", reason=reason), status=200, model=model, settlement=settlement, coalesced=coalesced
    )


def test_an_exact_hit_tells_its_age_and_lifetime() -> None:
    headers = outcome_headers(hit(age_s=10.9, left_s=90.9), NOW_S)
    assert member(headers).parameters == {"hit": True, "ttl": 90, "detail": "exact"}
    assert told(headers) | {"cache-status": ""} == {
        "cache-status": "",
        "age": "10",
        "x-cacheproxy-outcome": "hit",
        "x-cacheproxy-category": "default",
        "x-cacheproxy-reason": "similar",
        "x-cacheproxy-lookup-ms": "0.000",
        "x-cacheproxy-tier": "exact",
        "x-cacheproxy-entry": "ab" * 16,
        "x-cacheproxy-model": "m",
        "x-cacheproxy-coalesced": "false",
        "x-cacheproxy-saved-usd": "0.000000",
    }


STALE = {
    "asked": (Stale.ASKED, Tier.EXACT, {"hit": True, "ttl": -41, "detail": "exact;max-stale"}),
    "by similarity": (Stale.ASKED, Tier.SEMANTIC, {"hit": True, "ttl": -41, "detail": "semantic;max-stale"}),
    "revalidating": (Stale.REVALIDATING, Tier.EXACT, {"hit": True, "ttl": -41, "detail": "exact;swr"}),
}


@pytest.mark.parametrize(("stale", "tier", "expected"), STALE.values(), ids=STALE)
def test_a_stale_hit_tells_how_far_past_and_by_whose_leave(
    stale: Stale, tier: Tier, expected: dict[str, object]
) -> None:
    headers = outcome_headers(dataclasses.replace(hit(tier=tier, left_s=-40.5), stale=stale), NOW_S)
    assert member(headers).parameters == expected


@pytest.mark.parametrize(
    ("reason", "status", "expected"),
    [
        ("expired", 503, {"fwd": "stale", "fwd-status": 503, "detail": "stale-if-error"}),
        ("expired", None, {"fwd": "stale", "detail": "stale-if-error"}),
        ("too_old", 500, {"fwd": "request", "fwd-status": 500, "detail": "stale-if-error"}),
    ],
)
def test_a_stand_in_for_a_failure_was_forwarded_and_is_no_hit_of_cache_status(
    reason: str, status: int | None, expected: dict[str, object]
) -> None:
    missed = Miss(category="default", reason=reason)
    stands_in = dataclasses.replace(hit(left_s=-40.0), stale=Stale.ON_ERROR, instead_of=missed, failed_status=status)
    headers = outcome_headers(stands_in, NOW_S)
    assert member(headers).parameters == expected
    assert told(headers)["x-cacheproxy-outcome"] == "hit"
    assert "age" in told(headers)


def test_a_refusal_of_ours_tells_all_that_is_known() -> None:
    headers = unanswered_headers(Bypass(category="c", reason="invalid_request"), "invalid_request")
    assert told(headers).keys() == {"cache-status", "x-cacheproxy-coalesced", "x-cacheproxy-model"}
    assert member(headers).parameters == {"detail": "invalid_request"}


def test_a_semantic_hit_tells_its_evidence() -> None:
    headers = told(outcome_headers(hit(tier=Tier.SEMANTIC), NOW_S))
    shown = (headers["x-cacheproxy-similarity"], headers["x-cacheproxy-threshold"], headers["x-cacheproxy-lookup-ms"])
    assert shown == ("0.9100", "0.8000", "1.250")


def test_a_probability_is_told_where_a_verifier_was_asked() -> None:
    evidence = Lookup(similarity=0.71, threshold=0.6, probability=0.87654, lookup_ms=1.25)
    for outcome in (
        dataclasses.replace(hit(tier=Tier.SEMANTIC), evidence=evidence),
        Miss(category="default", reason="improbable", evidence=evidence),
    ):
        assert told(outcome_headers(outcome, NOW_S))["x-cacheproxy-probability"] == "0.8765"
    assert "x-cacheproxy-probability" not in told(outcome_headers(hit(tier=Tier.SEMANTIC), NOW_S))


def test_an_entry_from_the_future_has_no_negative_age() -> None:
    assert told(outcome_headers(hit(age_s=-5.0), NOW_S))["age"] == "0"


def test_a_miss_or_a_bypass_tells_no_age_and_no_entry() -> None:
    for outcome in (Miss(category="c", reason="no_entry"), Bypass(category="c", reason="stateful")):
        assert told(outcome_headers(outcome, NOW_S)).keys() == {
            "x-cacheproxy-outcome",
            "x-cacheproxy-category",
            "x-cacheproxy-reason",
            "x-cacheproxy-lookup-ms",
            "x-cacheproxy-saved-usd",
        }


def test_no_header_holds_the_question() -> None:
    assert "nobody else" not in repr(outcome_headers(hit(tier=Tier.SEMANTIC), NOW_S))


FORWARDED = {
    "no_entry": "miss",
    "no_candidate": "miss",
    "embedder_unavailable": "miss",
    "below_threshold": "miss",
    "expired": "stale",
    "too_old": "request",
    "not_fresh_enough": "request",
    "request_no_cache": "request",
    "vary": "vary-miss",
}


@pytest.mark.parametrize(("reason", "why"), FORWARDED.items())
def test_a_miss_tells_why_it_went_forward(reason: str, why: str) -> None:
    assert member(forwarded(reason)).parameters == {"fwd": why, "fwd-status": 200}


def test_a_bypass_is_forwarded_as_one() -> None:
    bypass = Bypass(category="c", reason="expired")
    headers = forwarded_headers(bypass, status=503, model="m", settlement=None, coalesced=False)
    assert member(headers).parameters == {"fwd": "bypass", "fwd-status": 503, "detail": "expired"}


def test_a_kept_answer_names_its_entry() -> None:
    headers = forwarded(stored=True)
    assert member(headers).parameters == {"fwd": "miss", "fwd-status": 200, "stored": True}
    assert told(headers)["x-cacheproxy-entry"] == "cd" * 16


def test_an_answer_that_is_not_kept_tells_why_and_names_no_entry() -> None:
    headers = forwarded(stored=False, why="finish_length")
    assert member(headers).parameters == {"fwd": "miss", "fwd-status": 200, "detail": "finish_length"}
    assert "x-cacheproxy-entry" not in told(headers)


def test_a_follower_is_collapsed() -> None:
    headers = forwarded(coalesced=True)
    assert member(headers).parameters == {"fwd": "miss", "fwd-status": 200, "collapsed": True}
    assert told(headers)["x-cacheproxy-coalesced"] == "true"


def test_the_model_that_answered_beats_the_one_asked_for() -> None:
    settlement = Settlement(stored=False, reason="x", model="answered")
    miss = Miss(category="c", reason="no_entry")
    headers = forwarded_headers(miss, status=200, model="asked", settlement=settlement, coalesced=False)
    assert told(headers)["x-cacheproxy-model"] == "answered"


def test_cache_status_never_has_both_hit_and_fwd() -> None:
    for reason, stored, coalesced in itertools.product(FORWARDED, (None, True, False), (True, False)):
        found = member(forwarded(reason, stored=stored, coalesced=coalesced))
        assert found.forwarded
        assert not found.hit
    for tier in Tier:
        found = member(outcome_headers(hit(tier=tier), NOW_S))
        assert found.hit
        assert found.forwarded is None


@pytest.mark.parametrize("name", NASTY.values(), ids=NASTY)
def test_a_value_from_a_backend_is_reduced_to_visible_ascii(name: str) -> None:
    every = [
        *outcome_headers(hit({"model": name}), NOW_S),
        *forwarded(stored=True, model=name),
        *forwarded(stored=False, why=name),
    ]
    for _, value in every:
        assert all(0x20 <= byte <= 0x7E for byte in value)
        assert len(value) < 200
    assert member(outcome_headers(hit({"model": name}), NOW_S)).hit
    assert member(forwarded(stored=False, why=name)).parameters.keys() == {"fwd", "fwd-status", "detail"}


@pytest.mark.parametrize("model", [None, 5, {"a": "\r\n"}, ["x"]], ids=repr)
def test_a_model_that_is_no_text_breaks_nothing(model: object) -> None:
    assert b"\n" not in dict(outcome_headers(hit({"model": model}), NOW_S))[b"x-cacheproxy-model"]


def test_ordinary_model_names_are_shown_as_they_are() -> None:
    for name in ("gpt-4o-mini-2024-07-18", "meta-llama/Llama-3:free", "ft:gpt-4o:org::id", "a_b.c@d"):
        assert visible(name) == name.encode()


PRICE = Price(model="*", input_usd_per_mtok=2.0, output_usd_per_mtok=8.0)

USAGES: dict[str, tuple[Any, float]] = {
    "both": ({"prompt_tokens": 500_000, "completion_tokens": 250_000}, 3.0),
    "one": ({"completion_tokens": 1_000_000}, 8.0),
    "none": ({}, 0.0),
    "null": (None, 0.0),
    "text": ("many", 0.0),
    "text inside": ({"prompt_tokens": "5"}, 0.0),
    "negative": ({"prompt_tokens": -5_000_000, "completion_tokens": -1}, 0.0),
    "absurd": ({"prompt_tokens": 10**400, "completion_tokens": 1_000_000}, 8.0),
}


@pytest.mark.parametrize(("usage", "usd"), USAGES.values(), ids=USAGES)
def test_money_saved_is_what_the_backend_would_have_charged(usage: object, usd: float) -> None:
    saved = saved_usd(hit({"model": "m", "usage": usage}), PRICE)
    assert math.isclose(saved, usd)
    assert saved_usd(hit({"model": "m", "usage": usage}), None) == 0.0
