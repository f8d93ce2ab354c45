"""Forgetting at every replica: what is erased at one is told to all, and each does its own parts.

Who is asked keeps an erasure in its own journal, and does it again until it is done; one that was down finds it in the
engine when it joins. The answer to an operator names the replicas that have not said yet that they are done. Purges are
told, too: whether a replica keeps something that is told of them, such as training pairs, no other one knows.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Protocol

import msgspec
import structlog

from cacheproxy.erasure import Began, Part
from cacheproxy.errors import PartUnavailable, SharedUnavailable
from cacheproxy.model import Selector
from cacheproxy.owing import new_token
from cacheproxy.shared.erasures import KEPT_S, Asked, Erasures, read_asked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence

    from cacheproxy.owing import Owed
    from cacheproxy.ports import Clock

log = structlog.get_logger()

REPLICAS = "replicas"
_WAIT_S = 2.0
_STEP_S = 0.02
_LONGEST_STEP_S = 0.2
_IDS_AT_ONCE = 5000
_MOST_OPEN = 100
_MOST_TOLD = 200
_MOST_HEARD = 20_000
_LOOK_S = 60.0
"""How often the engine is asked for what was told since: what a restart has to read again is no more than that."""


class Owes(Protocol):
    """Does erasures here that began elsewhere."""

    async def owe(self, began: Collection[Began]) -> None:
        """Write them down."""
        ...

    async def retry(self) -> None:
        """Do what is written down."""
        ...

    def owes(self, token: str) -> bool:
        """Whether something of it is left to do."""
        ...


class Forgetting:
    """Tells erasures to other replicas, and does theirs. `erasure` must be set before anything is heard."""

    def __init__(
        self,
        erasures: Erasures,
        replica: str,
        alive: Callable[[], Awaitable[Collection[str]]],
        spawn: Callable[[Coroutine[object, object, None]], object],
        clock: Clock,
        *,
        wait_s: float = _WAIT_S,
    ) -> None:
        """`alive` tells which replicas there are; raises SharedUnavailable."""
        self._erasures = erasures
        self._replica = replica
        self._alive = alive
        self._spawn = spawn
        self._clock = clock
        self._wait_s = wait_s
        self._open: dict[str, tuple[str, ...]] = {}  # the pieces of what this replica asked, until it looks for answers
        self._told: deque[Asked] = deque(maxlen=_MOST_TOLD)  # the engine may lose it
        self._owed: set[str] = set()  # what it is to answer, once it is done
        self._heard: OrderedDict[str, None] = OrderedDict()
        self._looking = asyncio.Lock()
        self._looked_s = clock.monotonic()
        self._due = self._called = False
        self.erasure: Owes | None = None

    def parts(self) -> list[Part]:
        """Return the parts that tell the others: the last ones of an erasure, and of a purge."""
        return [
            Part(name=REPLICAS, tell=self._tell_erasure),
            Part(name="other_replicas", tell=self._tell_purge, purged=True),
        ]

    async def answers(self, token: str) -> tuple[int, tuple[str, ...]]:
        """Wait a moment for all replicas to have done one erasure; return how many have, and who has not."""
        pieces = self._open.pop(token, ())
        waiting, done = set(pieces), dict[str, frozenset[str]]()
        missing = set[str]()
        deadline_s, step_s = self._clock.monotonic() + self._wait_s, _STEP_S
        while waiting:
            missing = set()
            try:
                alive = set(await self._alive()) - {self._replica}
                for one in sorted(waiting):
                    done[one] = await self._erasures.done_by(one) - {self._replica}
                    if alive <= done[one]:
                        waiting.discard(one)
                    missing |= alive - done[one]
            except SharedUnavailable as exc:
                return 0, (f"unknown ({exc.message})",)
            if self._clock.monotonic() >= deadline_s:
                break
            if waiting:
                await asyncio.sleep(step_s)
                step_s = min(_LONGEST_STEP_S, step_s * 2)
        of_all = frozenset.intersection(*done.values()) if done else frozenset[str]()
        return len(of_all), tuple(sorted(missing))

    # As a topic of the control log

    async def hear(self, raw: bytes) -> None:
        """Write down an erasure that a replica told, and begin to do it."""
        asked = read_asked(raw)
        if asked is None:
            return
        await self._owe([asked])
        if self._due and not self._called:
            self._called = True
            self._spawn(self.tend())

    async def reload(self) -> None:
        """Write down what was told while this replica was away, and do it, also what it owes itself.

        What it told itself is told again, in case the engine lost it. All this comes first: what is erased must be gone
        before this replica tells what it knows. Raises SharedUnavailable.
        """
        await self._look()
        for asked in list(self._told):
            if self._clock.now() - asked.asked_s < KEPT_S:
                await self._erasures.ask(asked)
        await self._do()

    async def tend(self) -> None:
        """Do what is owed to others, and tell what is done by now; to be called again and again."""
        self._called = False
        if self._clock.monotonic() - self._looked_s >= _LOOK_S:
            with contextlib.suppress(SharedUnavailable):
                await self._look()
        if self._due or self._owed:
            await self._do()

    # Within

    async def _look(self) -> None:
        """Write down what the engine was told since the last look. Raises SharedUnavailable."""
        async with self._looking:
            await self._owe(await self._erasures.missed())
            await self._erasures.saw()
            self._looked_s = self._clock.monotonic()

    async def _do(self) -> None:
        if self.erasure is None:
            return
        self._due = False
        await self.erasure.retry()
        for token in [token for token in self._owed if not self.erasure.owes(token)]:
            try:
                await self._erasures.did(token)
            except SharedUnavailable:
                return
            self._owed.discard(token)

    async def _owe(self, told: Sequence[Asked]) -> None:
        """Owe what was not heard of before; of what was, the answer alone, which the engine may have lost."""
        if self.erasure is None:
            return
        new: list[Began] = []
        for asked in told:
            if asked.by == self._replica:
                continue
            try:
                selector = msgspec.convert(asked.meant, Selector)
            except msgspec.ValidationError:
                log.warning("erasure_not_understood", by=asked.by)
                continue
            if not asked.purges:  # nobody waits for the answers to those
                self._owed.add(asked.token)
            if asked.token not in self._heard:
                self._heard[asked.token] = None
                new.append(
                    Began(
                        token=asked.token,
                        selector=selector,
                        ids=asked.ids,
                        asked_s=asked.asked_s,
                        purges=asked.purges,
                    )
                )
        while len(self._heard) > _MOST_HEARD:
            self._heard.popitem(last=False)
        if new:
            self._due = True
            await self.erasure.owe(new)

    async def _tell_erasure(self, owed: Owed, ids: Collection[str]) -> None:
        told = await self._tell(owed, ids, purges=False)
        self._open[owed.token] = told
        if len(self._open) > _MOST_OPEN:  # nobody looks for the answers to what was told later than at once
            del self._open[next(iter(self._open))]

    async def _tell_purge(self, owed: Owed, ids: Collection[str]) -> None:
        await self._tell(owed, ids, purges=True)

    async def _tell(self, owed: Owed, ids: Collection[str], *, purges: bool) -> tuple[str, ...]:
        """Tell piece by piece, each under a name that is the same when it is told again; return the names."""
        token, rest, told = owed.token or new_token(), tuple(ids), list[str]()
        for start in range(0, max(1, len(rest)), _IDS_AT_ONCE):
            piece = rest[start : start + _IDS_AT_ONCE]
            asked = Asked(
                token=f"{token}.{start + len(piece)}",
                by=self._replica,
                asked_s=owed.asked_s,
                purges=purges,
                ids=piece,
                meant={} if purges else owed.meant,  # the parts that are told of purges go by ids
            )
            try:
                await self._erasures.ask(asked)
            except SharedUnavailable as exc:
                raise PartUnavailable(f"the other replicas could not be told: {exc.message}") from exc
            told.append(asked.token)
            self._told.append(asked)
        return tuple(told)
