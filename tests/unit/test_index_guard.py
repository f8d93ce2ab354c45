"""hnswlib's traps (reliability.md section 2.6), one by one, against the guard. Its files are in test_index_snapshot."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest

from cacheproxy.errors import IndexUnavailable
from cacheproxy.index.guard import Guard, Shape, capacity_for
from tests.support.index_world import DIM, units

SHAPE = Shape(dim=DIM, m=8, ef_construction=50, ef_search=32)


def guard_with(count: int) -> Guard:
    guard = Guard(SHAPE, capacity=capacity_for(count))
    guard.append(units(count), range(count))
    return guard


@pytest.mark.parametrize("dim", [7, 2 * DIM], ids=["shorter aborts the process", "longer is silently cut"])
def test_query_of_another_dimension_is_refused(dim: int) -> None:
    with pytest.raises(IndexUnavailable, match="shape"):
        guard_with(10).nearest(units(1, dim=dim)[0], 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0], ids=["nan", "inf", "zero"])
def test_query_without_a_direction_is_refused(value: float) -> None:
    with pytest.raises(IndexUnavailable, match="unit norm"):
        guard_with(10).nearest(np.full(DIM, value, dtype=np.float32), 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0], ids=["nan", "inf", "zero"])
def test_batch_with_one_bad_row_is_refused_whole(value: float) -> None:
    guard, rows = guard_with(10), units(5, seed=1)
    rows[3] = value
    with pytest.raises(IndexUnavailable, match="unit norm"):
        guard.append(rows, range(10, 15))
    assert guard.count == 10
    guard.append(units(5, seed=1), range(10, 15))


def test_rows_of_another_dimension_or_type_are_refused() -> None:
    guard = guard_with(10)
    wrong: list[Any] = [units(3, dim=DIM + 1), units(3).astype(np.float64), units(1)[0]]
    for rows in wrong:
        with pytest.raises(IndexUnavailable, match="shape"):
            guard.append(rows, range(10, 13))


@pytest.mark.parametrize("labels", [[10, 10], [11, 10], [9, 10], [10], [3, 4]])
def test_label_is_never_used_twice(labels: list[int]) -> None:
    guard = guard_with(10)
    with pytest.raises(IndexUnavailable, match="ascend"):
        guard.append(units(2, seed=1), labels)
    assert guard.nearest(units(10)[3], 1)[0][0] == 3


def test_empty_graph_has_no_neighbours() -> None:
    assert Guard(SHAPE).nearest(units(1)[0], 5) == []


def test_more_neighbours_than_elements_gives_all() -> None:
    assert {label for label, _ in guard_with(10).nearest(units(1)[0], 50)} == set(range(10))


def test_fully_dropped_graph_has_no_neighbours() -> None:
    guard = guard_with(10)
    for label in range(10):
        guard.drop(label)
    assert guard.nearest(units(1)[0], 5) == []
    assert guard.live == 0


@pytest.mark.parametrize("survivors", [1, 2, 7])
def test_few_survivors_among_many_dropped_are_found(survivors: int) -> None:
    guard = guard_with(300)
    for label in range(300 - survivors):
        guard.drop(label)
    assert {label for label, _ in guard.nearest(units(1)[0], 64)} == set(range(300 - survivors, 300))


def test_dropping_twice_or_the_unknown_is_harmless() -> None:
    guard = guard_with(10)
    for label in (4, 4, 99):
        guard.drop(label)
    assert guard.nearest(units(10)[4], 10)[0][0] != 4
    assert guard.live == 9


def test_similarity_is_the_cosine() -> None:
    rows, question = units(200), units(1, seed=5)[0]
    for label, cosine in guard_with(200).nearest(question, 10):
        assert cosine == pytest.approx(float(rows[label] @ question), abs=1e-6)


def test_rounding_never_leaves_the_scale() -> None:
    guard, rows = Guard(SHAPE, capacity=512), units(400) * np.float32(1.0005)
    guard.append(rows, range(400))
    assert all(
        -1.0 <= cosine <= 1.0 for row in rows for sign in (1, -1) for _, cosine in guard.nearest(row * sign, 400)
    )


def test_full_graph_grows_where_it_is_and_keeps_labels_and_drops() -> None:
    guard, rows = Guard(SHAPE, capacity=4), units(100)
    for i in range(0, 100, 4):
        guard.append(rows[i : i + 4], range(10 * i, 10 * i + 4))
        if i == 40:
            guard.drop(400)
    found = {guard.nearest(row, 1)[0][0] for row in rows}
    assert found == {10 * (i - i % 4) + i % 4 for i in range(100)} - {400} | (found & {400}) - {400}
    assert guard.count == 100
    assert guard.live == 99


def test_threads_may_search_a_graph_that_grows() -> None:
    """hnswlib's resize_index frees what a search under way reads: without the guard's lock this ends the process."""
    guard, rows, stop = guard_with(8), units(6000, seed=3), threading.Event()

    def search() -> None:
        while not stop.is_set():
            guard.nearest(rows[0], 4)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for start in range(8, 6000, 4):
        guard.append(rows[start : start + 4], range(start, min(start + 4, 6000)))
    stop.set()
    for thread in threads:
        thread.join()
    assert guard.count == 6000
    assert guard.nearest(rows[5999], 1)[0][0] == 5999


def test_state_is_a_copy_that_makes_an_equal_graph() -> None:
    guard, rows = guard_with(100), units(100)
    guard.drop(5)
    state = guard.state()
    guard.append(units(50, seed=1), range(100, 150))
    twin = Guard(SHAPE, state=state)
    assert twin.count == 100
    assert twin.live == 99
    assert state.labels().tolist() == list(range(100))
    assert np.array_equal(state.vectors(), rows)
    assert np.flatnonzero(state.deleted()).tolist() == [5]
    twin.append(units(50, seed=1), range(100, 150))
    for row in rows:
        assert twin.nearest(row, 5) == guard.nearest(row, 5)


def test_state_outlives_its_graph() -> None:
    guard = guard_with(50)
    state = guard.state()
    del guard
    gc.collect()
    assert np.array_equal(state.vectors(), units(50))


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (Shape(dim=2 * DIM, m=8, ef_construction=50, ef_search=32), "dim"),
        (Shape(dim=DIM, m=16, ef_construction=50, ef_search=32), "parameters"),
        (Shape(dim=DIM, m=8, ef_construction=100, ef_search=32), "parameters"),
    ],
)
def test_state_of_another_shape_is_refused(shape: Shape, reason: str) -> None:
    with pytest.raises(IndexUnavailable, match=reason):
        Guard(shape, state=guard_with(20).state())


def test_search_width_may_differ_from_the_states() -> None:
    wider = Shape(dim=DIM, m=8, ef_construction=50, ef_search=200)
    assert Guard(wider, state=guard_with(20).state()).nearest(units(20)[3], 1)[0][0] == 3


def test_copying_skips_what_was_dropped() -> None:
    guard, other = guard_with(20), Guard(SHAPE, capacity=32)
    guard.drop(3)
    assert guard.copy_to(other, range(10)) == 9
    assert other.nearest(units(20)[4], 1)[0][0] == 4
    assert other.nearest(units(20)[3], 1)[0][0] != 3


def test_label_dropped_while_its_row_is_on_the_way_is_not_found() -> None:
    guard = guard_with(10)
    guard.drop(10)  # from another thread, before append has run
    guard.append(units(5, seed=1), range(10, 15))
    assert guard.nearest(units(5, seed=1)[0], 1)[0][0] != 10
