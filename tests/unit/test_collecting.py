"""Garbage collection: what is kept is walked through once, and what holds itself is found all the same."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import pytest

from cacheproxy.collecting import ROOM, YOUNG, Collecting

if TYPE_CHECKING:
    from collections.abc import Iterator


class Loop:
    """Something that holds itself."""

    def __init__(self) -> None:
        self.itself = self
        self.more = [[] for _ in range(20)]  # type: ignore[var-annotated]  # objects that the collector counts


@pytest.fixture
def answering() -> list[int]:
    return [0]


@pytest.fixture
def collecting(answering: list[int]) -> Iterator[Collecting]:
    with Collecting(lambda: answering[0]) as collecting:
        yield collecting
    gc.freeze()  # as tests/conftest.py left it


def _left_behind(objects: int) -> weakref.ref[Loop]:
    """Leave so many objects that hold themselves, but were in use while a young collection came; return one."""
    loops = [Loop() for _ in range(objects // 20)]
    gc.collect(0)
    return weakref.ref(loops[0])


def _kept(objects: int) -> list[list[int]]:
    return [[number] for number in range(objects)]


def test_what_outlives_a_young_collection_is_walked_through_no_more(collecting: Collecting) -> None:
    kept = _kept(3 * YOUNG)
    walked = sum(type(found) is list and len(found) == 1 for found in gc.get_objects())
    assert walked <= YOUNG < len(kept)


def test_what_was_put_out_of_sight_is_freed_as_its_last_user_lets_go_of_it(collecting: Collecting) -> None:
    kept = _kept(3 * YOUNG)
    before = gc.get_freeze_count()
    del kept
    assert gc.get_freeze_count() <= before - 2 * YOUNG


def test_what_holds_itself_and_was_never_in_use_is_found_by_a_young_collection(collecting: Collecting) -> None:
    lost = weakref.ref(Loop())
    gc.collect(0)
    assert lost() is None


async def test_what_holds_itself_goes_in_an_idle_moment(
    collecting: Collecting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheproxy.collecting._LONG_S", 60.0)
    lost = _left_behind(ROOM // 2)
    await collecting.tend()
    assert lost() is None


async def test_where_a_full_collection_takes_long_an_idle_moment_is_not_enough_for_it(
    collecting: Collecting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheproxy.collecting._LONG_S", 0.0)
    lost, before = _left_behind(ROOM // 2), collecting.full
    await collecting.tend()
    assert lost() is not None
    assert collecting.full == before


async def test_requests_are_not_held_up_by_a_full_collection_that_may_wait(
    collecting: Collecting, answering: list[int]
) -> None:
    answering[0] = 1
    lost, before = _left_behind(ROOM // 2), collecting.full
    await collecting.tend()
    assert lost() is not None
    assert collecting.full == before


async def test_a_proxy_that_is_never_idle_collects_before_garbage_is_more_than_what_lives(
    collecting: Collecting, answering: list[int]
) -> None:
    answering[0] = 1
    lost = [_left_behind(ROOM // 2)]
    for _ in range(40):  # each is about as much as all that this process holds
        if lost[0]() is None:
            break
        lost.append(_left_behind(ROOM // 2))
        await collecting.tend()
    assert all(one() is None for one in lost)


async def test_an_idle_proxy_that_made_little_is_left_alone(collecting: Collecting) -> None:
    kept, before = _kept(2 * YOUNG), collecting.full
    await collecting.tend()
    assert kept
    assert collecting.full == before


async def test_what_comes_and_goes_is_no_reason_to_collect_everything(collecting: Collecting) -> None:
    before = collecting.full
    for _ in range(ROOM // YOUNG):
        _kept(2 * YOUNG)
        await collecting.tend()
    assert collecting.full == before


def test_afterwards_the_collector_is_as_it_was() -> None:
    thresholds, callbacks = gc.get_threshold(), list(gc.callbacks)
    with Collecting(lambda: 0):
        assert gc.get_threshold() != thresholds
    assert (gc.get_threshold(), gc.callbacks) == (thresholds, callbacks)
    gc.freeze()  # as tests/conftest.py left it
