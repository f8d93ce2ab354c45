"""The queue in front of a backend: so many requests at once, the others wait their turn, and nobody waits for long."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheproxy.errors import UpstreamBusy

if TYPE_CHECKING:
    from collections.abc import Callable

    from cacheproxy.ports import Clock

_TENANTS_SHARE = 4
_LONGEST_ADVICE_S = 60.0
_WEIGHT_OF_NEW = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How many requests are answered at once, how many wait (a quarter of them of one tenant), and for how long."""

    running: int
    waiting: int
    wait_s: float


class Permit:
    """The right to use the backend, to be released once; releasing again does nothing."""

    __slots__ = ("_queue", "_since")

    def __init__(self, queue: FairQueue, since: float) -> None:
        self._queue: FairQueue | None = queue
        self._since = since

    def release(self) -> None:
        """Hand the right on to whoever is next."""
        queue, self._queue = self._queue, None
        if queue is not None:
            queue.release(self._since)


class FairQueue:
    """Permits, handed out in turn: tenants one after the other (round robin), first come first served within each.

    A tenant that floods fills its own line only. Callers without a tenant ("") share one line. Cancelling `acquire` at
    any time loses no permit.
    """

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._lines: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._most_of_one = max(1, limits.waiting // _TENANTS_SHARE)
        self._held_s = 1.0  # moving average of how long a permit is held
        self._coming: Counter[str] = Counter()
        self._need = 0.5  # moving average of the share of those that were expected and then needed a permit
        self.running = 0
        self.waiting = 0
        self.shed = 0

    @property
    def limit(self) -> int:
        """How many permits there are."""
        return self._limits.running

    @property
    def load(self) -> float:
        """Requests it has, or may get in a moment, against its permits."""
        return (self.running + self.waiting + self._coming.total()) / self._limits.running

    @property
    def free(self) -> bool:
        """Whether a permit would be given at once."""
        return self.running < self._limits.running and not self.waiting

    def full(self, tenant: str) -> bool:
        """Whether a tenant's lookup that begins now would find no place in the line, nor a free permit, at its end.

        Those who are expected have their places already, as many of them as usually need one. Whoever is here already,
        with no lookup before him, is turned away by the line alone (`acquire`).
        """
        free = self._limits.running - self.running
        coming, own = self._need * self._coming.total(), self._need * self._coming[tenant]
        if free > coming and not self.waiting:
            return False
        line = len(self._lines.get(tenant, ()))
        return self.waiting + coming - free >= self._limits.waiting or line + own - free >= self._most_of_one

    def _line_full(self, tenant: str) -> bool:
        return self.waiting >= self._limits.waiting or len(self._lines.get(tenant, ())) >= self._most_of_one

    def expect(self, tenant: str) -> Callable[[bool], None]:
        """Keep a place for a tenant who may come in a moment; call what is returned once it is known.

        That takes whether a permit is needed. Where there is no place left, none is kept.
        """
        if self.full(tenant):
            return _forget
        self._coming[tenant] += 1

        def known(needed: bool) -> None:
            self._coming[tenant] -= 1
            if not self._coming[tenant]:
                del self._coming[tenant]
            self._need += _WEIGHT_OF_NEW * (needed - self._need)

        return known

    def try_acquire(self) -> Permit | None:
        """Return a permit if one is free and nobody waits for it."""
        if not self.free:
            return None
        self.running += 1
        return Permit(self, self._clock.monotonic())

    async def acquire(self, tenant: str) -> Permit:
        """Wait for a permit. Raises UpstreamBusy, with when to come back, when the line is full or too slow."""
        permit = self.try_acquire()
        if permit is not None:
            return permit
        if self._line_full(tenant):  # of who is only expected, some will need none: whoever is here goes first
            raise self._busy("too many requests wait for the backend")
        turn = self._join(tenant)
        try:
            async with asyncio.timeout(self._limits.wait_s):
                await turn
        except BaseException as exc:
            if turn.done() and not turn.cancelled():
                self._hand_on()  # the permit came in the same moment
            else:
                self._leave(tenant, turn)
            if isinstance(exc, TimeoutError):
                raise self._busy(f"the backend was busy for {self._limits.wait_s:g} s") from exc
            raise
        return Permit(self, self._clock.monotonic())

    def release(self, since: float) -> None:
        """Take back a permit that was given at `since`."""
        self._held_s += _WEIGHT_OF_NEW * (self._clock.monotonic() - since - self._held_s)
        self._hand_on()

    def _join(self, tenant: str) -> asyncio.Future[None]:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(tenant, deque()).append(turn)
        self.waiting += 1
        return turn

    def _leave(self, tenant: str, turn: asyncio.Future[None]) -> None:
        line = self._lines.get(tenant)
        if line is not None and turn in line:  # else `_hand_on` passed it over already
            line.remove(turn)
            self.waiting -= 1
            if not line:
                del self._lines[tenant]

    def _hand_on(self) -> None:
        """Give the permit to the tenant whose turn it is, and put that tenant last; who left is passed over."""
        while self._lines:
            tenant, line = next(iter(self._lines.items()))
            turn = line.popleft()
            self.waiting -= 1
            if line:
                self._lines.move_to_end(tenant)
            else:
                del self._lines[tenant]
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1

    def _busy(self, what: str) -> UpstreamBusy:
        self.shed += 1
        rounds = (self.waiting + 1) / self._limits.running
        advice_s = min(max(1.0, math.ceil(rounds * self._held_s)), _LONGEST_ADVICE_S)
        return UpstreamBusy(f"{what}; try again in {advice_s:g} s", retry_after_s=advice_s)


def _forget(needed: bool) -> None:
    """Of whom no place was kept for."""
