"""The order of training: seeded, endless, nothing drowned, each epoch made anew."""

from __future__ import annotations

from itertools import islice
from random import Random

import pytest

from cacheproxy.training import mix
from cacheproxy.training.material import Asked, Example, Other, Part
from cacheproxy.training.mix import batches, epoch, generated

PAIRS = [Example(f"how do I pay bill {number}?", f"pay bill {number}", label=number % 2 == 0) for number in range(300)]
SETS = [
    Asked(same=[f"open account {n}", f"account {n} opening"], other=[Other("k", f"close account {n}")])
    for n in range(40)
]
PART = Part(pairs={"a": PAIRS}, sets=SETS, questions=[pair.a for pair in PAIRS])


def key(pair: Example) -> tuple[frozenset[str], bool]:
    return frozenset((pair.a, pair.b)), pair.label


def test_the_same_seed_gives_the_same_batches_for_ever() -> None:
    assert list(islice(batches(PART, 3, 32), 60)) == list(islice(batches(PART, 3, 32), 60))
    assert list(islice(batches(PART, 3, 32), 5)) != list(islice(batches(PART, 4, 32), 5))


def test_an_epoch_holds_every_given_pair_once_and_some_made_ones() -> None:
    found = [key(pair) for pair in epoch(PART, Random(1))]
    assert all(found.count(key(pair)) >= 1 for pair in PAIRS[:50])
    made = len(found) - len(PAIRS) - 2 * len(SETS)
    assert 0 < made <= 0.21 * (len(PAIRS) + 2 * len(SETS))


def test_a_large_file_does_not_drown_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mix, "_MOST_OF_A_FILE", 20)
    few = Part(pairs={"large": PAIRS, "small": [Example("x", "y", label=True)]}, sets=[], questions=[])
    assert len(epoch(few, Random(1))) == 21


def test_sets_drown_neither_what_is_given_nor_are_they_drowned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mix, "_LEAST_OF_SETS", 20)
    alone = Part(pairs={}, sets=SETS, questions=[])
    few = Part(pairs={"a": PAIRS[:10]}, sets=SETS, questions=[])
    many = Part(pairs={"a": PAIRS[:100]}, sets=SETS, questions=[])
    assert [len(epoch(part, Random(1))) for part in (alone, few, many)] == [80, 10 + 20, 100 + 25]


def test_each_epoch_is_made_anew_and_turned_at_random() -> None:
    one, other = epoch(PART, random := Random(1)), epoch(PART, random)
    assert one != other
    seen = [pair for batch in islice(batches(PART, 1, 32), 40) for pair in batch]
    turned = sum(pair.a.startswith("pay bill") for pair in seen)
    assert 0.2 < turned / sum(pair.a.startswith(("pay bill", "how do I pay bill")) for pair in seen) < 0.8


def test_a_batch_is_of_like_lengths_and_at_most_so_many() -> None:
    for batch in islice(batches(PART, 2, 32), 40):
        assert 0 < len(batch) <= 32


@pytest.mark.parametrize("count", [1, 31, 32, 33, 65])
def test_few_pairs_still_make_batches(count: int) -> None:
    part = Part(pairs={"a": PAIRS[:count]}, sets=[], questions=[])
    assert [len(batch) > 0 for batch in islice(batches(part, 1, 32), 10)] == [True] * 10


def test_of_no_questions_nothing_is_made() -> None:
    assert generated(Part(pairs={}, sets=[], questions=[]), Random(1), 100) == []
    assert generated(PART, Random(1), 0) == []
