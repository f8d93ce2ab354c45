"""What is let in while the event loop is late; who would only make everybody later is told so at once.

As CoDel does (Nichols and Jacobson, "Controlling Queue Delay", 2012), it looks at the least delay of an interval: one
that is never short is a standing queue, and nobody gains by it; a burst that drains is none of its business. What is
let in then falls by a factor with each interval, and rises by a step with each that is well. What is turned away first
is what costs most: misses, once the exact tier has nothing; only then whatever comes, before its body is read.

That looks back, and one turn may read thousands of requests between two looks. So it also looks ahead: what is let in
between two looks is no more than fits by what a request took lately (Little's law), and the rest is told so at once.
While none are turned away that is a bucket of time: a burst may take what quiet moments left, and no more comes in
thereafter than there is time for.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from time import monotonic, thread_time
from typing import TYPE_CHECKING

from cacheproxy.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable

BEAT_S = 0.02
"""Pause between two looks at how late the event loop is."""
INTERVAL_S = 0.1
_SUSTAINED = 2
"""Intervals in a row that must have been late throughout before anybody is turned away."""
_EASED = 0.25
"""Share of the longest lag below which it must come, once some are turned away, before more are let in."""
FEW = 16
"""Requests, being answered or come since the last look, that are no crowd: turning some away would mend nothing."""
_AHEAD = 0.1
"""Share of it that what is let in between two looks may take beyond the time between them, once some are turned away:
each wait within a lookup is a turn of the event loop, and a miss has seven of them."""
_STUCK = 4
"""Times the longest lag by which a single turn of the event loop must be late for those to be turned away in it who
come in a crowd: looks come between turns, and one turn may read thousands of requests."""
_USUAL_S = 0.0004
"""What a request costs the event loop before anything is known of it: a hit's."""
_CHEAPEST_S, _DEAREST_S = 0.0001, 0.01
_REFUSAL_S = 0.00003
"""What it costs to turn one away at the door."""
_WEIGHT_OF_NEW = 0.2
_ODD = 4
"""Times the known cost that one look may raise it to: a single stall is no price."""
_ALL, _LEAST, _LEAST_MISSES = 2.0, 0.02, 0.1
_FEWER = (0.7, 0.95)
"""What the share is multiplied by: as much less as the loop is too late, within these."""
_FULL = 1.9
"""What is let in at most once more came at a time than there was room for, or was: misses are turned away first."""
_BURST = 256
"""Requests that may come at once, whatever they cost, after a while in which fewer came than there was time for."""
_MORE, _MORE_FOR_FEW = 0.05, 0.2
"""What is added to it; the second where so few are being answered that they are no crowd, or where there was room."""
_ROOMY = 0.5
"""Share of the room between two looks that was used at the most, up to which there was room for all who were let in."""


class Pressure:
    """How late the event loop is, and what is let in for it; `max_lag_s` 0 lets everything in.

    `share` is 2 while all is let in. From there to 1 fewer misses are, down to a tenth; below 1 that share of all that
    comes. All of it happens on the event loop.
    """

    def __init__(
        self,
        max_lag_s: float,
        observe: Callable[[float], None],
        told: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`observe` is told each lag, in seconds; `told` of each request that the door turns away.

        `clock` is that of the event loop.
        """
        self.share = _ALL
        self.shed: Counter[str] = Counter()
        """Requests that were turned away: at the door, and as misses."""
        self._max_lag_s = max_lag_s
        self._observe = observe
        self._told = told
        self._clock = clock
        self._least_s = float("inf")
        self._ends_s = 0.0
        self._due_s = float("inf")
        self._crowd = False
        self._come = 0
        self._entered = 0
        self._room = 0
        self._fullest = 0.0
        self._spare_s = float("inf")
        """Time of the event loop that is left for a burst, since fewer came than there was time for."""
        self._cost_s = _USUAL_S
        self._worked_s = 0.0
        self._paid = 0
        self._late = 0
        self._credit = {"door": 0.5, "miss": 0.5}
        self._make_room()

    @property
    def pressed(self) -> bool:
        """Whether some are turned away."""
        return self.share < _ALL

    def patience_s(self, usual_s: float) -> float:
        """Return how long what is let in may wait for a part of ours: as usual, or no longer than the loop may lag."""
        return min(usual_s, self._max_lag_s) if self.pressed else usual_s

    def opens(self) -> bool:
        """Whether the door opens for one more request; counts it where it does not."""
        self._come += 1
        if self._entered >= self._room > 0:
            self.shed["door"] += 1
            self.share = min(self.share, _FULL)
        elif self._let("door", min(1.0, self.share)):
            self._entered += 1
            return True
        self._told()
        return False

    def admit_miss(self) -> None:
        """Let one more request go on that the exact tier had nothing for. Raises Overloaded."""
        if not self._let("miss", max(_LEAST_MISSES, self.share - 1)):
            raise refused()

    async def watch(self, answering: Callable[[], int]) -> None:
        """Look at the event loop without an end; `answering` tells how many requests are being answered."""
        loop = asyncio.get_running_loop()
        while True:
            self.expect(loop.time() + BEAT_S)
            began_s = thread_time()
            await asyncio.sleep(BEAT_S)
            self.look(loop.time(), thread_time() - began_s, answering())

    def expect(self, due_s: float) -> None:
        """Take note of when the next look is due."""
        self._due_s = due_s

    def look(self, now_s: float, worked_s: float, answering: int) -> None:
        """Look at how late this look is; since the last one the event loop worked for `worked_s`."""
        lag_s = max(0.0, now_s - self._due_s)
        self._observe(lag_s)
        if self._come or answering:  # else it worked for nobody
            self._learn_cost(BEAT_S + lag_s if lag_s > BEAT_S else worked_s)
        if 0 < _STUCK * self._max_lag_s < min(lag_s, self._entered * self._cost_s):
            self.share = min(self.share, _FULL)  # it is late by what it let in: more of that will not drain
        self.saw(lag_s, now_s, max(answering, self._come))

    def saw(self, lag_s: float, now_s: float, requests: int) -> None:
        """Take one look at how late the event loop is, and how many requests there are."""
        self._crowd = requests >= FEW
        if self._room:
            self._fullest = max(self._fullest, self._entered / self._room)
        self._spare_s += BEAT_S + lag_s - self._entered * self._cost_s
        self._come = self._entered = 0
        self._least_s = min(self._least_s, lag_s)
        if now_s >= self._ends_s:
            self._judge(now_s, crowd=self._crowd)
        self._make_room()

    def _judge(self, now_s: float, *, crowd: bool) -> None:
        most_s = self._max_lag_s * (_EASED if self.pressed else 1.0)
        late = 0 < most_s < self._least_s and crowd
        self._late = self._late + 1 if late else 0
        if not late:
            more = _MORE if crowd and self._fullest > _ROOMY else _MORE_FOR_FEW
            self.share = min(_ALL, self.share + more)
        elif self.pressed or self._late >= _SUSTAINED:
            least, most = _FEWER
            self.share = max(_LEAST, self.share * min(most, max(least, most_s / self._least_s)))
        self._least_s, self._ends_s, self._fullest = float("inf"), now_s + INTERVAL_S, 0.0

    def _learn_cost(self, worked_s: float) -> None:
        """Learn what a request costs from how long the event loop worked since the last look.

        That is its processor time, or all the time where it was late throughout: others may have had the cores.
        """
        self._worked_s += worked_s - (self._come - self._entered) * _REFUSAL_S
        self._paid += self._entered
        if self._paid < FEW:
            return
        each_s = max(_CHEAPEST_S, min(_DEAREST_S, _ODD * self._cost_s, self._worked_s / self._paid))
        self._cost_s += _WEIGHT_OF_NEW * (each_s - self._cost_s)
        self._worked_s, self._paid = 0.0, 0

    def _make_room(self) -> None:
        """Tell how many may come in until the next look; 0: all."""
        if self._max_lag_s:
            most_s = max(BEAT_S + self._max_lag_s * _STUCK, _BURST * self._cost_s)
            self._spare_s = min(most_s, max(0.0, self._spare_s))
            ahead_s = BEAT_S + self._max_lag_s * _AHEAD if self.pressed else self._spare_s
            self._room = max(FEW, int(ahead_s / self._cost_s))

    def _let(self, where: str, share: float) -> bool:
        """Let a share of what asks in, evenly spread; nobody where this very turn is late beyond measure."""
        if self._stuck():
            self.shed[where] += 1
            return False
        if share >= 1 or (not self._crowd and self._come <= FEW):
            return True
        self._credit[where] = credit = self._credit[where] + share
        if credit < 1:
            self.shed[where] += 1
            return False
        self._credit[where] = credit - 1
        return True

    def _stuck(self) -> bool:
        late_s = self._clock() - self._due_s
        return 0 < _STUCK * self._max_lag_s < late_s and self._crowd


def refused() -> Overloaded:
    """Return what is told to those who are turned away."""
    return Overloaded("more requests come than this proxy can answer in time; try again in a moment")
