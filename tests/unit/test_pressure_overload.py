"""Ten times more than an event loop can do, in simulated time: who is turned away, how soon, and how soon all is well.

Simulated: the event loop, which reads all that came, then works off what was let in, one turn after the other.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from cacheproxy.errors import Overloaded
from cacheproxy.pressure import BEAT_S, Pressure

NORMAL_PER_S, CALM_S, TIMES = 230.0, 3.0, 20
"""Half of what it can do, as `cacheproxy bench overload` has it: the overload is ten times all of it."""
REFUSED_S, HIT_S, MISS_S, LOST_S = 0.00006, 0.0004, 0.002, 0.0005
"""What each kind takes of the loop: turned away at the door, a hit, a miss, a miss that is turned away."""


@dataclass(slots=True)
class Seen:
    """Latencies in seconds by what came of requests that were due in some time."""

    hits: list[float] = field(default_factory=list)
    misses: list[float] = field(default_factory=list)
    shed: list[float] = field(default_factory=list)

    def add(self, kind: str, took_s: float) -> None:
        {"hit": self.hits, "miss": self.misses, "shed": self.shed}[kind].append(took_s)


def p99_s(latencies: list[float]) -> float:
    return sorted(latencies)[int(0.99 * len(latencies))]


class Worked:
    """An event loop under load, one turn after the other."""

    def __init__(self, slowness: float) -> None:
        self.now_s = 0.0
        self._source = random.Random(7)
        self._slowness = slowness
        self._pressure = Pressure(0.05, lambda _: None, clock=lambda: self.now_s)
        self._look_s = BEAT_S
        self._busy_s = 0.0
        self._pressure.expect(self._look_s)

    def run(self, per_s: float, seconds: float) -> Seen:
        """Let requests come for some seconds, until all have their answers."""
        due, at_s, ends_s = [], self.now_s, self.now_s + seconds
        while (at_s := at_s + self._source.expovariate(per_s)) < ends_s:
            due.append(at_s)
        due.reverse()
        seen = Seen()
        while due:
            self.now_s = max(self.now_s, min(due[-1], self._look_s))
            self._look()
            began_s, read = self.now_s, []
            while due and due[-1] <= began_s:
                read.append(due.pop())
            self._turn(read, seen)
            self._busy_s += self.now_s - began_s
        return seen

    def _look(self) -> None:
        if self.now_s < self._look_s:
            return
        self._pressure.look(self.now_s, self._busy_s, 0)
        self._look_s, self._busy_s = self.now_s + BEAT_S, 0.0
        self._pressure.expect(self._look_s)

    def _turn(self, read: list[float], seen: Seen) -> None:
        let_in = []
        for due_s in read:
            self.now_s += REFUSED_S * self._slowness
            if self._pressure.opens():
                let_in.append(due_s)
            else:
                seen.add("shed", self.now_s - due_s)
        for due_s in let_in:
            kind, cost_s = ("hit", HIT_S) if self._source.random() < 0.5 else ("miss", MISS_S)
            if kind == "miss":
                try:
                    self._pressure.admit_miss()
                except Overloaded:
                    kind, cost_s = "shed", LOST_S
            self.now_s += cost_s * self._slowness
            seen.add(kind, self.now_s - due_s)


@pytest.mark.parametrize("slowness", [1.0, 2.0])
def test_ten_times_too_much_is_refused_at_once_and_what_fits_is_answered(slowness: float) -> None:
    loop, normal = Worked(slowness), NORMAL_PER_S / slowness
    calm = loop.run(normal, CALM_S)
    assert not calm.shed
    begins = loop.run(normal * TIMES, 2.0)
    assert p99_s(begins.shed) < 0.5, "a backlog of one turn, not of seconds"
    seconds = 5.0
    rest = loop.run(normal * TIMES, seconds)
    assert p99_s(rest.shed) < 0.075
    assert p99_s(rest.hits + rest.misses) < 0.075
    assert (len(rest.hits) + len(rest.misses)) / seconds >= 0.9 * 2 * normal, "goodput stays"
    loop.run(normal, 2.0)
    after = loop.run(normal, 3.0)
    assert not after.shed
    assert p99_s(after.hits + after.misses) <= 2 * p99_s(calm.hits + calm.misses)
