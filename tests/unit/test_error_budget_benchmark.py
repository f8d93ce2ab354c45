from __future__ import annotations

from random import Random

import numpy as np

from tests.benchmarks.error_budget import Shipped, Stream, as_shipped, compare, run, shipped, table, threshold_for
from tests.benchmarks.error_budget_rules import Ours, Shown, Static, VCache


def stream(count: int, seed: int) -> Stream:
    random = np.random.default_rng(seed)
    probability = random.beta(8, 1, count)
    return Stream(
        entry=random.integers(0, 50, count),
        similarity=probability,
        probability=probability,
        right=random.random(count) < probability,
        repeat=np.ones(count, dtype=bool),
    )


def test_a_threshold_for_a_share_keeps_its_bound_and_no_lower_one_does() -> None:
    told = stream(4000, 1)
    threshold = threshold_for(0.05, told.probability, told.right)
    served = run(Static(threshold=threshold), told, range(4000)).wrong
    assert sum(served) / len(served) < 0.05
    assert threshold_for(0.0001, told.probability, told.right) == 1.1


def test_every_rule_is_compared_on_the_same_stream() -> None:
    rows = compare(stream(600, 1), stream(600, 2), 1, (0.05,))
    assert len({row["rule"] for row in rows}) == len(rows) == 7
    assert len({row["asked"] for row in rows}) == 1
    assert "| 0.05 | ours |" in table(rows, ("delta", "rule"))


def test_ours_keeps_delta_on_a_calibrated_stream_and_serves_more_than_vcache() -> None:
    told = stream(12_000, 3)
    order = range(12_000)
    ours = run(Ours(delta=0.05, shadow=0.1, explore=0.5, random=Random(1)), told, order).wrong
    rival = run(VCache(delta=0.05, random=Random(1), by_probability=True, strict=True), told, order).wrong
    assert len(ours) > len(rival)
    assert sum(ours) / len(ours) <= 0.05


def test_an_entry_of_vcache_explores_until_it_has_labels_and_then_serves_what_is_near() -> None:
    rule = VCache(delta=0.05, random=Random(1))
    for similarity, right in ((0.5, False), (0.6, False), (0.9, True), (0.95, True)):
        shown = Shown(1, similarity, similarity)
        assert not rule.serves(shown)
        rule.tell(shown, served=False, right=right)
    assert sum(rule.serves(Shown(1, 0.99, 0.99)) for _ in range(100)) > 10
    assert not any(rule.serves(Shown(1, 0.3, 0.3)) for _ in range(20))
    assert not rule.serves(Shown(2, 0.99, 0.99))


def test_the_rule_runs_as_the_packs_ship_it_beside_their_minimum_alone() -> None:
    terms = shipped()
    assert ("balanced, frugal", 0.68, 0.05, 0.01, 0.1) in [
        (one.names, one.min_probability, one.delta, one.shadow, one.explore) for one in terms
    ]
    rows = as_shipped(stream(3000, 4), 1, terms)
    assert [row["rule"] for row in rows] == ["as shipped", "the minimum alone"] * len(terms)
    assert all(row["hits"] > 0 and row["pack"] and row["least"] >= 0.5 for row in rows)


def test_as_shipped_nothing_below_the_packs_minimum_is_ever_served() -> None:
    told = stream(3000, 5)
    pack = Shipped(names="p", min_probability=0.8, delta=1.0, shadow=0.5, explore=0.5)
    ours, alone = as_shipped(told, 1, [pack])
    assert ours["hits"] <= alone["hits"]
