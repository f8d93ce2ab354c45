from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from cacheproxy_federated.task import GRID, Counts, Pairs, chosen, counted, scored, sound, summed, verify_from

from cacheproxy.embed.head import Head
from cacheproxy.policy.calibrate import best_f, counts_at, curve
from tests.federated.topics import DIM, pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _at(cosines: list[float], right: list[bool], category: str = "faq") -> Pairs:
    near = np.array(cosines)
    b = np.stack([near, np.sqrt(1 - near**2)], axis=1).astype(np.float32)
    a = np.tile(np.array([[1, 0]], dtype=np.float32), (len(near), 1))
    return Pairs(a=a, b=b, right=np.array(right), category=(category,) * len(near), group=np.arange(len(near)))


def _counts(cosines: list[float], right: list[bool], category: str = "faq") -> Counts:
    return counted(Head.identity(2), _at(cosines, right, category))


def _many(near: float, far: float, n: int, category: str) -> Counts:
    return _counts([near] * n + [far] * n, [True] * n + [False] * n, category)


def test_the_grid_is_a_hundred_steps() -> None:
    assert GRID.shape == (101,)
    assert GRID.tolist() == [round(step / 100, 2) for step in range(101)]


def test_counts_are_what_serving_at_each_threshold_would_do() -> None:
    given = pairs(60, seed=0)
    found = counted(Head.identity(DIM), given)["faq"]
    near = np.sum(given.a * given.b, axis=1)
    assert found.shape == (101, 4)
    assert found.dtype == np.int64
    for at in (0, 37, 70, 100):
        one = counts_at(near, given.right, float(GRID[at]))
        assert found[at].tolist() == [one.tp, one.fp, one.fn, one.tn]


def test_counts_are_of_the_vectors_that_the_head_makes() -> None:
    given = _at([0.6, 0.6], [True, False])
    head = Head(matrix=np.array([[1, 0], [0, 1e-3]], dtype=np.float32))
    assert counted(head, given)["faq"][99].tolist() == [1, 1, 0, 0]


def test_counts_of_no_pairs_are_empty() -> None:
    assert counted(Head.identity(2), _at([], [])) == {}
    assert summed([]) == {}


def test_the_sum_of_parts_is_the_count_of_the_whole_in_any_order() -> None:
    whole = pairs(90, seed=0)
    head = Head.identity(DIM)
    parts = [counted(head, whole.at(np.arange(90) % 3 == part)) for part in range(3)]
    for order in (parts, parts[::-1]):
        assert np.array_equal(summed(order)["faq"], counted(head, whole)["faq"])


def test_summing_leaves_what_was_sent_as_it_was() -> None:
    one = _counts([0.9], [True])
    before = one["faq"].copy()
    summed([one, one])
    assert np.array_equal(one["faq"], before)


def test_the_chosen_threshold_has_the_best_f_of_the_grid() -> None:
    given = pairs(300, seed=0)
    near = np.floor(np.sum(given.a * given.b, axis=1, dtype=np.float64).clip(0, 1) * 100) / 100
    counts = counted(Head.identity(DIM), given)
    best = best_f(curve(near, given.right), 0.5)
    assert best is not None
    assert scored(counts, chosen(counts)["*"])["f05"] == pytest.approx(best[0])


def test_of_equal_thresholds_the_higher_one_is_chosen() -> None:
    assert chosen(_counts([0.805, 0.305], [True, False])) == {"*": 0.8}


def test_a_category_with_few_pairs_has_no_threshold_of_its_own() -> None:
    counts = {**_many(0.9, 0.5, 20, "faq"), **_many(0.7, 0.2, 19, "code")}
    assert set(chosen(counts)) == {"*", "faq"}
    assert set(chosen(counts, least=38)) == {"*", "faq", "code"}
    assert chosen(counts, least=38)["code"] < chosen(counts)["faq"]


def test_a_category_with_one_label_has_no_threshold_of_its_own() -> None:
    counts = {**_many(0.9, 0.5, 20, "faq"), **_counts([0.3] * 50, [True] * 50, "chat")}
    assert set(chosen(counts)) == {"*", "faq"}


@pytest.mark.parametrize("counts", [{}, _counts([0.9] * 50, [False] * 50)])
def test_nothing_is_served_where_no_pair_is_right(counts: Counts) -> None:
    assert chosen(counts) == {"*": 1.0}
    assert verify_from(counts) is None


def test_a_lower_beta_never_chooses_a_lower_threshold() -> None:
    counts = counted(Head.identity(DIM), pairs(400, seed=2))
    found = [chosen(counts, beta=beta)["*"] for beta in (0.25, 0.5, 1.0, 2.0)]
    assert found == sorted(found, reverse=True)


def test_verifying_begins_where_the_share_of_right_pairs_is_kept() -> None:
    counts = _counts([0.905 - 0.01 * step for step in range(50)], [True] * 50)
    assert verify_from(counts) == 0.42
    assert verify_from(counts, share=1.0) == 0.41
    assert verify_from(counts, share=0.5) == 0.66


def test_there_is_nowhere_to_begin_where_right_pairs_lie_below_the_grid() -> None:
    assert verify_from(_counts([-0.5, 0.9], [True, True])) is None


def test_honest_counts_are_sound_up_to_their_number_of_pairs() -> None:
    counts = counted(Head.identity(DIM), pairs(50, seed=0))
    assert sound(counts, 50)
    assert sound({}, 0)
    assert not sound(counts, 49)


def _changed(at: tuple[int, int], to: int) -> NDArray[np.int64]:
    made = _many(0.9, 0.5, 20, "faq")["faq"]
    made[at] = to
    return made


@pytest.mark.parametrize(
    "one",
    [
        _changed((50, 0), -1),
        _changed((50, 0), 10**9),
        _changed((50, 2), 5),
        _many(0.9, 0.5, 20, "faq")["faq"][:-1],
        _many(0.9, 0.5, 20, "faq")["faq"][::-1],
        _many(0.9, 0.5, 20, "faq")["faq"].astype(np.float64),
    ],
)
def test_counts_that_no_pairs_can_give_are_not_sound(one: NDArray[np.int64]) -> None:
    assert not sound({"faq": one}, 40)


def test_scores_of_nothing_are_zero() -> None:
    assert scored({}, 0.5) == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "f05": 0.0}


def test_scores_by_hand() -> None:
    found = scored(_counts([0.9, 0.9, 0.9, 0.3], [True, True, False, True]), 0.5)
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["recall"] == pytest.approx(2 / 3)
    assert found["f05"] == pytest.approx(2 / 3)
