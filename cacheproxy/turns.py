"""Turns: how flights across replicas went, and how long misses waited for them, for operators."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cacheproxy.ports import Turn

if TYPE_CHECKING:
    from cacheproxy.ports import Clock, Elsewhere
    from cacheproxy.telemetry import Telemetry

_NEARLY = 0.99
"""A wait that took so much of what it might is one that came to its end: timers are not exact."""


class TimedTurns:
    """An `Elsewhere` that counts what another one decides."""

    def __init__(self, elsewhere: Elsewhere, telemetry: Telemetry, clock: Clock) -> None:
        self._elsewhere = elsewhere
        self._telemetry = telemetry
        self._clock = clock

    async def turn(self, key: bytes, wait_s: float) -> Turn:
        """Lead, or wait up to `wait_s` for whoever leads the flight of this key."""
        began_s = self._clock.monotonic()
        turn = await self._elsewhere.turn(key, wait_s)
        took_s = self._clock.monotonic() - began_s
        self._telemetry.replica_flight_seconds.labels(_named(turn, took_s, wait_s)).observe(took_s)
        return turn

    async def release(self, key: bytes, *, kept: bool) -> None:
        """Give a lease back."""
        await self._elsewhere.release(key, kept=kept)


def _named(turn: Turn, took_s: float, wait_s: float) -> str:
    if turn is Turn.LEAD:
        return "led"
    if turn is Turn.LOOK:
        return "joined"
    return "timed_out" if wait_s > 0 and took_s >= _NEARLY * wait_s else "alone"
