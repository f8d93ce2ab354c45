from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheproxy.policy.sweep import Label, Scale, Seen, sweep

SIMILARITIES = st.one_of(st.none(), st.floats(-1, 1))
SEEN = st.lists(
    st.builds(Seen, hit=st.booleans(), similarity=SIMILARITIES, threshold=st.one_of(st.none(), st.floats(0, 1))),
    max_size=30,
)
LABELS = st.lists(st.builds(Label, similarity=st.floats(-1, 1), good=st.booleans()), max_size=30)


def hit(similarity: float | None) -> Seen:
    return Seen(hit=True, similarity=similarity, threshold=0.8)


def miss(similarity: float | None) -> Seen:
    return Seen(hit=False, similarity=similarity, threshold=0.8)


def test_each_threshold_tells_what_it_would_have_served() -> None:
    seen = [hit(None), hit(0.95), hit(0.82), miss(0.78), miss(0.5), miss(None)]
    found = sweep(seen, [], [0.75, 0.8, 0.9], 0.05)
    assert [at.hits for at in found] == [4, 3, 2]
    assert [at.near_misses for at in found] == [0, 1, 0]
    assert [at.hit_rate for at in found] == pytest.approx([4 / 6, 3 / 6, 2 / 6])


def test_what_was_refused_for_another_reason_is_no_hit_at_any_threshold() -> None:
    assert [at.hits for at in sweep([miss(0.9)], [], [0.5, 0.85, 0.95], 0.05)] == [0, 0, 0]


def test_without_labels_nothing_is_said_of_false_hits() -> None:
    [at] = sweep([hit(0.9)], [], [0.8], 0.05)
    assert (at.false_hits.estimate, at.false_hits.low, at.false_hits.high) == (None, 0.0, 1.0)


def test_only_labels_of_what_a_threshold_serves_count() -> None:
    labels = [Label(similarity=0.82, good=False), Label(similarity=0.95, good=True), Label(similarity=0.7, good=False)]
    low, high = sweep([], labels, [0.8, 0.9], 0.05)
    assert (low.false_hits.events, low.false_hits.trials, low.false_hits.estimate) == (1, 2, 0.5)
    assert (high.false_hits.events, high.false_hits.trials) == (0, 1)
    assert high.false_hits.high == pytest.approx(0.975)


@given(seen=SEEN, labels=LABELS, thresholds=st.lists(st.floats(-1, 1), min_size=2, max_size=5))
def test_raising_a_threshold_never_creates_a_hit(
    seen: list[Seen], labels: list[Label], thresholds: list[float]
) -> None:
    found = sweep(seen, labels, sorted(thresholds), 0.05)
    hits = [at.hits for at in found]
    assert hits == sorted(hits, reverse=True)
    served = [at.false_hits.trials for at in found]
    assert served == sorted(served, reverse=True)
    assert all(at.lookups == len(seen) for at in found)


# Where a verifier decides


def verified(probability: float | None, *, hit: bool = False, forbidden: bool = False) -> Seen:
    return Seen(hit=hit, similarity=0.7, threshold=0.6, verified=True, probability=probability, forbidden=forbidden)


def test_a_least_probability_serves_what_nothing_but_its_probability_stood_against() -> None:
    seen = [
        verified(0.95, hit=True),
        verified(0.85),
        verified(0.99, forbidden=True),  # a rule's veto, or the error budget
        verified(None),  # the verifier was not asked
        hit(None),  # the exact tier's
    ]
    low, high = sweep(seen, [], [0.8, 0.9], 0.2, Scale.PROBABILITY)
    assert (low.hits, high.hits) == (3, 2)
    assert (low.near_misses, high.near_misses) == (0, 1)


def test_another_threshold_serves_nothing_that_the_verifier_did_not() -> None:
    seen = [verified(0.95, hit=True), verified(0.85), verified(None)]
    assert [at.hits for at in sweep(seen, [], [0.5, 0.65, 0.8], 0.05)] == [1, 1, 0]


def test_labels_without_a_probability_say_nothing_of_one() -> None:
    labels = [Label(similarity=0.9, good=False), Label(similarity=0.7, good=False, probability=0.85)]
    [at] = sweep([], labels, [0.8], 0.05, Scale.PROBABILITY)
    assert (at.false_hits.events, at.false_hits.trials) == (1, 1)
