"""What is let in while the event loop is late."""

from __future__ import annotations

import asyncio
import time

import pytest

from cacheproxy.errors import Overloaded
from cacheproxy.pressure import BEAT_S, FEW, INTERVAL_S, Pressure
from tests.support.polling import eventually

CROWD = FEW
LATE_S, WELL_S = 0.08, 0.001


class Loop:
    """An event loop whose lag is made up, and who watches it."""

    def __init__(self, max_lag_s: float = 0.05) -> None:
        self.seen: list[float] = []
        self.told = 0
        self.now_s = 100.0
        self.pressure = Pressure(max_lag_s, self.seen.append, self._tell, clock=lambda: self.now_s)

    def _tell(self) -> None:
        self.told += 1

    def run(self, lag_s: float, seconds: float, answering: int = CROWD) -> None:
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.now_s += BEAT_S + lag_s
            self.pressure.saw(lag_s, self.now_s, answering)

    def turn(self, comes: int, cost_s: float, answering: int = CROWD) -> int:
        """Let some come in one turn that works them all off, then look; return how many were let in."""
        self.pressure.expect(self.now_s + BEAT_S)
        let_in = sum(self.pressure.opens() for _ in range(comes))
        self.now_s += max(BEAT_S, let_in * cost_s)
        self.pressure.look(self.now_s, let_in * cost_s, answering)
        return let_in

    def door(self, count: int) -> int:
        """Return how many of some requests, a few in each turn, the door opens for."""
        found = 0
        for _ in range(count // 10):
            found += sum(self.pressure.opens() for _ in range(10))
            self.pressure.saw(0.02, self.now_s, CROWD)
        return found

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
    assert loop.door(100) == 100
    assert 0 < loop.misses(100) < 100
    loop.run(LATE_S, 10)
    assert loop.door(1000) == pytest.approx(20, abs=1)
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


def test_a_crowd_at_once_is_let_in_as_far_as_it_fits_and_then_less_at_a_time(loop: Loop) -> None:
    assert loop.turn(250, 0.002) == 250
    loop = Loop()
    for _ in range(100):
        assert loop.turn(8, 0.002) == 8, "what a request costs is learnt from what comes"
    assert loop.turn(5000, 0.002) == 256
    assert loop.pressure.pressed
    assert loop.turn(5000, 0.002) * 0.002 < 0.05, "none of those who come meanwhile wait for long"


def test_a_burst_takes_the_time_that_quiet_moments_left_and_the_next_one_does_not_have_it_again(loop: Loop) -> None:
    for _ in range(100):
        loop.turn(8, 0.002)
    began_s, let_in = loop.now_s, 0
    while not loop.pressure.pressed:
        let_in += loop.turn(60, 0.002)  # each of them would fit alone
    assert let_in < 256 + (loop.now_s - began_s) / 0.002
    for _ in range(200):
        loop.turn(0, 0.002, answering=0)
    assert loop.turn(250, 0.002) == 250, "after some quiet there is time for one again"


def test_few_who_come_while_others_make_the_loop_a_little_late_are_let_in(loop: Loop) -> None:
    loop.run(LATE_S, 60)
    for _ in range(500):  # 6 ms late in each look, with 20 streams open
        loop.pressure.expect(loop.now_s + BEAT_S)
        loop.pressure.opens()
        loop.now_s += BEAT_S + 0.006
        loop.pressure.look(loop.now_s, 0.0004, 20)
    assert not loop.pressure.pressed


def test_it_is_itself_again_at_once_where_few_come_after_an_overload(loop: Loop) -> None:
    loop.run(LATE_S, 60)
    began_s = loop.now_s
    while loop.pressure.pressed:
        loop.turn(4, 0.0004)  # of a crowd that is being answered, with much room
    assert loop.now_s - began_s < 2


def test_a_loop_that_is_late_by_what_it_let_in_lets_less_in_at_once(loop: Loop) -> None:
    for _ in range(50):
        loop.turn(20, 0.002)
    loop.turn(120, 0.002)
    assert loop.pressure.pressed


def test_a_loop_that_others_make_late_once_turns_nobody_away(loop: Loop) -> None:
    for _ in range(50):
        loop.turn(20, 0.0004)
    loop.pressure.expect(loop.now_s + BEAT_S)
    assert all(loop.pressure.opens() for _ in range(100))
    loop.now_s += 0.9
    loop.pressure.look(loop.now_s, 0.04, CROWD)
    assert not loop.pressure.pressed


def test_what_is_turned_away_for_want_of_room_is_counted(loop: Loop) -> None:
    let_in = loop.turn(5000, 0.0004)
    assert loop.pressure.shed["door"] == loop.told == 5000 - let_in > 4000


def test_few_at_a_time_are_let_in_however_dear_they_are(loop: Loop) -> None:
    for _ in range(50):
        assert loop.turn(FEW - 1, 0.05, answering=0) == FEW - 1


def test_who_comes_alone_right_after_an_overload_is_let_in(loop: Loop) -> None:
    loop.run(LATE_S, 60)
    assert loop.door(100) < 20
    loop.pressure.saw(WELL_S, loop.now_s, 1)
    assert loop.pressure.opens()
    assert loop.misses(1) == 1


def test_0_lets_any_crowd_in() -> None:
    loop = Loop(max_lag_s=0)
    assert loop.turn(100_000, 0.0001) == 100_000


def test_a_single_stall_is_no_price(loop: Loop) -> None:
    for _ in range(50):
        loop.turn(100, 0.0002)
    loop.turn(20, 0.1)
    assert loop.turn(500, 0.0002) == 500


def test_while_some_are_turned_away_nobody_waits_for_a_part_for_longer_than_the_loop_may_lag(loop: Loop) -> None:
    assert loop.pressure.patience_s(0.5) == 0.5
    loop.run(LATE_S, 1)
    assert loop.pressure.patience_s(0.5) == 0.05
    assert loop.pressure.patience_s(0.01) == 0.01


def test_what_an_idle_loop_does_of_its_own_is_no_price_of_a_request(loop: Loop) -> None:
    fits = loop.turn(5000, 0.0001)
    for _ in range(200):
        for _ in range(50):
            loop.now_s += 0.02
            loop.pressure.expect(loop.now_s)
            loop.pressure.look(loop.now_s, 0.002, 0)
        loop.turn(1, 0.0004, answering=1)
    assert loop.turn(5000, 0.0001) >= fits


async def test_a_loop_is_watched_as_it_runs(loop: Loop) -> None:
    watching = asyncio.ensure_future(loop.pressure.watch(lambda: CROWD))
    await asyncio.sleep(2 * BEAT_S)
    for _ in range(8):
        time.sleep(2 * INTERVAL_S)  # noqa: ASYNC251 - the stall that is to be seen
        await asyncio.sleep(0.001)
    watching.cancel()
    assert max(loop.seen) > INTERVAL_S
    assert loop.pressure.pressed


async def test_a_turn_that_takes_too_long_lets_nobody_of_a_crowd_in() -> None:
    loop = Loop()
    loop.pressure = Pressure(0.05, loop.seen.append)
    watching = asyncio.ensure_future(loop.pressure.watch(lambda: CROWD))
    await asyncio.sleep(3 * BEAT_S)
    await eventually(loop.pressure.opens, "it is not late")
    time.sleep(0.3)  # noqa: ASYNC251 - the turn that takes too long
    assert (loop.pressure.opens(), loop.misses(1)) == (False, 0)
    await eventually(
        lambda: (loop.pressure.opens(), loop.misses(1), loop.pressure.pressed) == (True, 1, False), "all is well again"
    )
    watching.cancel()
