from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheproxy.policy.breakeven import Balance
from cacheproxy.policy.edit import merged
from cacheproxy.policy.loader import pack_from, pack_tree
from cacheproxy.policy.pack import Category, Encoder, Pack
from cacheproxy.policy.recommend import Evidence, Recommendation, recommend
from cacheproxy.policy.sweep import Label, Scale, Seen, false_hits

PAYS = Balance(hit_rate=0.4, break_even=0.03, net_ms=150.0, net_usd=0.001, pays=True)
LOSES = Balance(hit_rate=0.01, break_even=0.03, net_ms=-4.0, net_usd=0.0, pays=False)


def labels(*pairs: tuple[float, bool]) -> list[Label]:
    return [Label(similarity=similarity, good=good) for similarity, good in pairs]


def evidence(rules: Category | None = None, **fields: Any) -> Evidence:
    plain = Evidence(
        category="support",
        rules=rules or Category(semantic=True, ttl_s=1000.0),
        encoder="fp32",
        threshold=0.8,
        floor=None,
        seen=[Seen(hit=True, similarity=0.9, threshold=0.8), Seen(hit=True, similarity=0.82, threshold=0.8)],
        labels=[],
        balance=PAYS,
        lookups=1000,
        complaint_ages_s=[],
    )
    return replace(plain, **fields)


def only(of: Evidence) -> Recommendation:
    [found] = recommend(of)
    return found


def test_without_evidence_nothing_is_recommended() -> None:
    assert recommend(evidence()) == []
    assert (
        recommend(evidence(balance=Balance(hit_rate=None, break_even=None, net_ms=None, net_usd=None, pays=None))) == []
    )


def test_false_hits_above_the_budget_raise_the_threshold_just_above_them() -> None:
    found = only(evidence(labels=labels((0.82, False), (0.8234, False), (0.9, True), (0.95, True))))
    assert found.kind == "raise_threshold"
    assert found.patch == {"encoders": {"fp32": {"thresholds": {"support": 0.824}}}}
    assert (found.evidence["false_hit_rate"], found.evidence["labelled"]) == (0.5, 4)
    assert (found.expected["false_hit_rate"], found.expected["hit_rate"]) == (0.0, 0.5)
    assert found.expected["false_high"] == pytest.approx(0.8419, abs=1e-3)
    assert "2 of 4" in found.why


def test_a_threshold_is_raised_no_further_than_the_budget_asks() -> None:
    rules = Category(semantic=True, delta=0.25)
    found = only(evidence(rules, labels=labels((0.81, False), (0.9, False), *[(0.95, True)] * 3)))
    assert found.expected["threshold"] == 0.811


@pytest.mark.parametrize(
    "said",
    [
        [(0.82, False), (0.9, True)],  # too few
        [(0.7, False), (0.7, False), (0.7, False)],  # nothing that is served
        [(0.9, True)] * 59 + [(0.81, False)],  # within the budget
    ],
)
def test_little_or_good_evidence_raises_nothing(said: list[tuple[float, bool]]) -> None:
    assert recommend(evidence(labels=labels(*said))) == []


def test_where_no_threshold_sets_wrong_ones_apart_similarity_is_switched_off() -> None:
    found = only(evidence(labels=labels((1.0, False), (1.0, False), (0.9, False))))
    assert (found.kind, found.patch) == ("semantic_off", {"categories": {"support": {"semantic": False}}})


def test_right_near_misses_lower_the_threshold_to_where_enough_of_them_are() -> None:
    found = only(evidence(labels=labels(*[(0.77 + n / 1000, True) for n in range(6)])))
    assert (found.kind, found.expected["threshold"]) == ("lower_threshold", 0.77)


@pytest.mark.parametrize(
    "changed",
    [
        {"labels": labels(*[(0.77, True)] * 4)},
        {"labels": labels(*[(0.7, True)] * 9)},  # below the band
        {"labels": labels(*[(0.77, True)] * 9, (0.78, False))},
    ],
)
def test_few_far_or_mixed_near_misses_lower_nothing(changed: dict[str, Any]) -> None:
    assert recommend(evidence(**changed)) == []


def test_a_threshold_is_never_lowered_below_the_floor_of_its_encoder() -> None:
    found = only(evidence(floor=0.785, labels=labels(*[(0.77, True)] * 9, *[(0.7851, True)] * 5)))
    assert found.expected["threshold"] == 0.785


@pytest.mark.parametrize(("semantic", "key"), [(True, "semantic"), (False, "allow_caching")])
def test_a_category_that_loses_is_narrowed(semantic: bool, key: str) -> None:
    found = only(evidence(Category(semantic=semantic), balance=LOSES))
    assert found.patch == {"categories": {"support": {key: False}}}
    assert found.evidence["break_even"] == 0.03
    assert recommend(evidence(balance=LOSES, lookups=50)) == []
    assert recommend(evidence(Category(allow_caching=False), balance=LOSES)) == []


def test_complaints_of_old_answers_shorten_the_lifetime() -> None:
    found = only(evidence(complaint_ages_s=[400.0, 600.0, 800.0, 900.0]))
    assert found.kind == "shorten_ttl"
    assert found.patch == {"categories": {"support": {"ttl_s": 450.0}}}
    assert recommend(evidence(complaint_ages_s=[5.0] * 10)) == []  # wrong from the start, not stale


def test_the_same_change_has_the_same_id_and_another_change_another() -> None:
    wrong = labels((0.82, False), (0.83, False), (0.9, True))
    one, later = only(evidence(labels=wrong)), only(evidence(labels=[*wrong, *labels((0.99, True))]))
    assert one.id == later.id
    assert only(evidence(labels=labels((0.82, False), (0.85, False), (0.9, True)))).id != one.id
    assert only(evidence(category="code", labels=wrong)).id != one.id


LABELS = st.lists(st.builds(Label, similarity=st.floats(0.5, 1.0), good=st.booleans()), max_size=40)


@given(said=LABELS, balance=st.sampled_from([PAYS, LOSES]), ages=st.lists(st.floats(0, 2000), max_size=8))
def test_every_recommendation_makes_a_pack_that_loads(said: list[Label], balance: Balance, ages: list[float]) -> None:
    pack = Pack(
        schema=1,
        name="test",
        description="",
        default_category="support",
        categories={"support": Category(semantic=True, ttl_s=1000.0)},
        encoders={"fp32": Encoder(fingerprint="e", calibrated_on="x", thresholds={"support": 0.8})},
    )
    for found in recommend(evidence(labels=said, balance=balance, complaint_ages_s=ages)):
        changed = pack_from(merged(pack_tree(pack), msgspec.to_builtins(found.patch)))
        assert changed != pack
        if found.kind.endswith("_threshold"):
            threshold = changed.encoders["fp32"].thresholds["support"]
            at = false_hits(said, threshold)
            assert at.estimate is None or at.estimate <= 0.05
            assert (threshold > 0.8) == (found.kind == "raise_threshold")


# Where a verifier decides


def by_probability(*pairs: tuple[float, bool]) -> list[Label]:
    return [Label(similarity=0.7, good=good, probability=probability) for probability, good in pairs]


def test_false_hits_above_delta_raise_the_least_probability_just_above_them() -> None:
    found = only(evidence(verified=True, labels=by_probability((0.91, False), (0.9123, False), (0.95, True))))
    assert found.kind == "raise_min_probability"
    assert found.patch == {"categories": {"support": {"min_probability": 0.913}}}
    assert (found.evidence["min_probability"], found.expected["false_hit_rate"]) == (0.9, 0.0)
    assert "delta is 5.0%" in found.why


def test_right_near_misses_lower_the_least_probability_and_never_below_an_even_chance() -> None:
    found = only(evidence(verified=True, labels=by_probability(*[(0.7 + n / 1000, True) for n in range(6)])))
    assert (found.kind, found.patch) == (
        "lower_min_probability",
        {"categories": {"support": {"min_probability": 0.7}}},
    )
    assert recommend(evidence(verified=True, labels=by_probability(*[(0.4, True)] * 9))) == []


def test_thresholds_and_their_labels_say_nothing_where_a_verifier_decides() -> None:
    assert recommend(evidence(verified=True, labels=labels((0.82, False), (0.83, False), (0.9, False)))) == []


def test_where_no_probability_sets_wrong_ones_apart_similarity_is_switched_off() -> None:
    found = only(evidence(verified=True, labels=by_probability(*[(0.9999, False)] * 3)))
    assert (found.kind, found.patch) == ("semantic_off", {"categories": {"support": {"semantic": False}}})


PROBABLE = st.lists(
    st.builds(Label, similarity=st.just(0.7), good=st.booleans(), probability=st.floats(0.3, 1.0)), max_size=40
)


@given(said=PROBABLE)
def test_every_recommended_least_probability_makes_a_pack_that_loads(said: list[Label]) -> None:
    pack = Pack(
        schema=1,
        name="test",
        description="",
        default_category="support",
        categories={"support": Category(semantic=True, ttl_s=1000.0)},
    )
    for found in recommend(evidence(verified=True, labels=said)):
        changed = pack_from(merged(pack_tree(pack), msgspec.to_builtins(found.patch)))
        assert changed != pack
        if found.kind.endswith("_probability"):
            at = false_hits(said, changed.categories["support"].min_probability, Scale.PROBABILITY)
            assert at.estimate is None or at.estimate <= 0.05
