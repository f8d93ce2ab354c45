"""Turns among replicas are counted by what came of them, and timed."""

from __future__ import annotations

import pytest

from cacheproxy.ports import Turn
from cacheproxy.telemetry import Telemetry
from cacheproxy.turns import TimedTurns
from tests.support.clock import FakeClock

KEY = b"k" * 32


class Decided:
    """An `Elsewhere` that takes its time and says one thing."""

    def __init__(self, clock: FakeClock, turn: Turn, takes_s: float) -> None:
        self._clock, self._turn, self._takes_s = clock, turn, takes_s
        self.released: list[tuple[bytes, bool]] = []

    async def turn(self, key: bytes, wait_s: float) -> Turn:
        self._clock.advance(self._takes_s)
        return self._turn

    async def release(self, key: bytes, *, kept: bool) -> None:
        self.released.append((key, kept))


@pytest.mark.parametrize(
    ("turn", "takes_s", "wait_s", "name"),
    [
        (Turn.LEAD, 0.001, 5.0, "led"),
        (Turn.LOOK, 1.5, 5.0, "joined"),
        (Turn.ALONE, 5.0, 5.0, "timed_out"),
        (Turn.ALONE, 0.2, 5.0, "alone"),
        (Turn.ALONE, 0.0, 0.0, "alone"),
    ],
)
async def test_a_turn_is_counted_with_its_wait(turn: Turn, takes_s: float, wait_s: float, name: str) -> None:
    clock, telemetry = FakeClock(), Telemetry()
    assert await TimedTurns(Decided(clock, turn, takes_s), telemetry, clock).turn(KEY, wait_s) is turn
    value = telemetry.registry.get_sample_value
    assert value("cacheproxy_replica_flight_seconds_count", {"turn": name}) == 1
    assert value("cacheproxy_replica_flight_seconds_sum", {"turn": name}) == pytest.approx(takes_s)


async def test_a_lease_is_given_back_through_it() -> None:
    clock = FakeClock()
    inner = Decided(clock, Turn.LEAD, 0.0)
    await TimedTurns(inner, Telemetry(), clock).release(KEY, kept=True)
    assert inner.released == [(KEY, True)]
