"""Forgetting at every replica: what is erased at one is told to all, and each does its own parts.

Who is asked keeps an erasure in its own journal, and does it again until it is done; one that was down finds it in the
engine when it joins. The answer to an operator names the replicas that have not said yet that they are done.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import msgspec
import structlog

from cacheproxy.erasure import Part
from cacheproxy.errors import PartUnavailable, SharedUnavailable
from cacheproxy.model import Selector
from cacheproxy.shared.erasures import Asked, Erasures, new_token, read_asked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Coroutine

    from cacheproxy.ports import Clock

log = structlog.get_logger()

REPLICAS = "replicas"
_WAIT_S = 2.0
_STEP_S = 0.02
_LONGEST_STEP_S = 0.2


class Owes(Protocol):
    """Does erasures here that began elsewhere."""

    async def owe(self, selector: Selector, ids: Collection[str], *, asked_s: float, purges: bool, token: str) -> None:
        """Write one down."""
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
        self._open: set[str] = set()  # what this replica asked, and not all have answered
        self._owed: set[str] = set()  # what it is to answer, once it is done
        self.erasure: Owes | None = None

    def parts(self, *, purges: bool) -> list[Part]:
        """Return the parts that tell the others: the last ones of an erasure, and of purges where asked for."""
        told = [Part(name=REPLICAS, forget=self._tell_erasure, elsewhere=True)]
        if purges:
            told.append(Part(name="other_replicas", forget=self._tell_purge, purged=True, elsewhere=True))
        return told

    async def answers(self) -> tuple[int, tuple[str, ...]]:
        """Wait a moment for all replicas to have done what was asked; return how many have, and who has not."""
        asked, done, missing = set(self._open), frozenset[str](), set[str]()
        deadline_s, step_s = self._clock.monotonic() + self._wait_s, _STEP_S
        while asked:
            missing = set()
            try:
                alive = set(await self._alive()) - {self._replica}
                for one in sorted(asked):
                    done = await self._erasures.done_by(one)
                    if alive <= done:
                        self._open.discard(one)
                    missing |= alive - done
                asked &= self._open
            except SharedUnavailable as exc:
                return 0, (f"unknown ({exc.message})",)
            if self._clock.monotonic() >= deadline_s:
                break
            if asked:
                await asyncio.sleep(step_s)
                step_s = min(_LONGEST_STEP_S, step_s * 2)
        self._open.clear()
        return len(done - {self._replica}), tuple(sorted(missing))

    # As a topic of the control log

    async def hear(self, raw: bytes) -> None:
        """Write down an erasure that a replica told, and begin to do it."""
        asked = read_asked(raw)
        if asked is not None and await self._owe(asked):
            self._spawn(self.tend())

    async def reload(self) -> None:
        """Write down what was told while this replica was away, and do it, also what it owes itself.

        It comes first: what is erased must be gone before this replica tells what it knows. Raises SharedUnavailable.
        """
        for asked in await self._erasures.missed():
            await self._owe(asked)
        await self._erasures.saw()
        await self._do()

    async def tend(self) -> None:
        """Do what is owed to others, and tell what is done by now; to be called again and again."""
        if self._owed:
            await self._do()

    # Within

    async def _do(self) -> None:
        if self.erasure is None:
            return
        await self.erasure.retry()
        for token in [token for token in self._owed if not self.erasure.owes(token)]:
            try:
                await self._erasures.did(token)
            except SharedUnavailable:
                return
            self._owed.discard(token)

    async def _owe(self, asked: Asked) -> bool:
        if asked.by == self._replica or self.erasure is None:
            return False
        try:
            selector = msgspec.convert(asked.meant, Selector)
        except msgspec.ValidationError:
            log.warning("erasure_not_understood", by=asked.by)
            return False
        self._owed.add(asked.token)
        await self.erasure.owe(selector, asked.ids, asked_s=asked.asked_s, purges=asked.purges, token=asked.token)
        return True

    async def _tell_erasure(self, selector: Selector, ids: Collection[str]) -> int:
        return await self._tell(selector, ids, purges=False)

    async def _tell_purge(self, selector: Selector, ids: Collection[str]) -> int:
        return await self._tell(selector, ids, purges=True)

    async def _tell(self, selector: Selector, ids: Collection[str], *, purges: bool) -> int:
        asked = Asked(
            token=new_token(),
            by=self._replica,
            asked_s=self._clock.now(),
            purges=purges,
            ids=tuple(ids),
            meant={name: getattr(selector, name) for name in Selector.__slots__ if name != "text"},
        )
        try:
            await self._erasures.ask(asked)
        except SharedUnavailable as exc:
            raise PartUnavailable(f"the other replicas could not be told: {exc.message}") from exc
        if not purges:
            self._open.add(asked.token)
        return 0
