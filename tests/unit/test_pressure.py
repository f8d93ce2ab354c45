"""What is let in while the event loop is late."""

from __future__ import annotations

import asyncio
import time

import pytest

from cacheproxy.errors import Overloaded
from cacheproxy.pressure import BEAT_S, FEW, INTERVAL_S, Pressure

CROWD = FEW
LATE_S, WELL_S = 0.08, 0.001


class Loop:
    """An event loop whose lag is made up, and who watches it."""

    def __init__(self, max_lag_s: float = 0.05) -> None:
        self.seen: list[float] = []
        self.told = 0
        self.pressure = Pressure(max_lag_s, self.seen.append, self._tell)
        self.now_s = 100.0

    def _tell(self) -> None:
        self.told += 1

    def run(self, lag_s: float, seconds: float, answering: int = CROWD) -> None:
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.now_s += BEAT_S + lag_s
            self.pressure.saw(lag_s, self.now_s, answering)

    def misses(self, count: int) -> int:
        """Return how many of some misses are let in."""
        found = 0
        for _ in range(count):
            try:
                self.pressure.admit_miss()
            except Overloaded:
                continue
            found += 1
        return found


@pytest.fixture
def loop() -> Loop:
    return Loop()


def test_all_is_let_in_while_the_loop_is_well(loop: Loop) -> None:
    loop.run(WELL_S, 10)
    assert not loop.pressure.pressed
    assert (all(loop.pressure.opens() for _ in range(100)), loop.misses(100)) == (True, 100)


def test_a_single_stall_turns_nobody_away(loop: Loop) -> None:
    loop.run(WELL_S, 1)
    loop.run(2.0, 0.1)
    loop.run(WELL_S, 1)
    assert not loop.pressure.pressed


def test_lag_that_comes_and_goes_within_an_interval_turns_nobody_away(loop: Loop) -> None:
    for _ in range(100):
        loop.run(LATE_S, INTERVAL_S / 2)
        loop.run(WELL_S, INTERVAL_S / 2)
    assert not loop.pressure.pressed


def test_few_requests_are_never_turned_away_however_late_the_loop_is(loop: Loop) -> None:
    loop.run(1.0, 30, answering=FEW - 1)
    assert not loop.pressure.pressed


def test_0_turns_nobody_away() -> None:
    loop = Loop(max_lag_s=0)
    loop.run(1.0, 30)
    assert not loop.pressure.pressed


def test_misses_are_turned_away_first_and_then_whatever_comes(loop: Loop) -> None:
    while not loop.pressure.pressed:
        loop.run(LATE_S, INTERVAL_S)
    assert all(loop.pressure.opens() for _ in range(100))
    assert 0 < loop.misses(100) < 100
    loop.run(LATE_S, 10)
    assert sum(loop.pressure.opens() for _ in range(1000)) == pytest.approx(20, abs=1)
    assert loop.misses(100) == pytest.approx(10, abs=1), "some misses go on, or nothing would ever be kept"
    assert loop.pressure.shed["door"] == loop.told == pytest.approx(980, abs=1)


def test_what_is_let_in_is_spread_evenly(loop: Loop) -> None:
    loop.run(LATE_S, 10)
    loop.pressure.share = 0.25
    assert [loop.pressure.opens() for _ in range(9)].count(True) == pytest.approx(2, abs=1)
    turns = [loop.pressure.opens() for _ in range(40)]
    assert {sum(turns[start : start + 4]) for start in range(0, 40, 4)} == {1}


def test_pressed_it_wants_a_shorter_lag_before_it_lets_more_in(loop: Loop) -> None:
    loop.run(LATE_S, 0.5)
    share = loop.pressure.share
    loop.run(0.03, 0.5)  # below what pressed it, above what is well
    assert loop.pressure.share < share


def test_all_is_let_in_again_soon_after_the_overload(loop: Loop) -> None:
    loop.run(LATE_S, 60)
    began_s = loop.now_s
    while loop.pressure.pressed:
        loop.run(WELL_S, INTERVAL_S)
    assert loop.now_s - began_s < 6


async def test_a_loop_is_watched_as_it_runs(loop: Loop) -> None:
    watching = asyncio.ensure_future(loop.pressure.watch(lambda: CROWD))
    await asyncio.sleep(2 * BEAT_S)
    for _ in range(8):
        time.sleep(2 * INTERVAL_S)  # noqa: ASYNC251 - the stall that is to be seen
        await asyncio.sleep(0.001)
    watching.cancel()
    assert max(loop.seen) > INTERVAL_S
    assert loop.pressure.pressed


async def test_a_turn_that_takes_too_long_lets_nobody_of_a_crowd_in(loop: Loop) -> None:
    watching = asyncio.ensure_future(loop.pressure.watch(lambda: CROWD))
    await asyncio.sleep(3 * BEAT_S)
    assert loop.pressure.opens()
    time.sleep(0.3)  # noqa: ASYNC251 - the turn that takes too long
    assert (loop.pressure.opens(), loop.misses(1)) == (False, 0)
    await asyncio.sleep(2 * BEAT_S)
    watching.cancel()
    assert (loop.pressure.opens(), loop.misses(1), loop.pressure.pressed) == (True, 1, False)
