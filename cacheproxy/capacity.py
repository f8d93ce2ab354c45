"""Capacity: which past answers may be examples, where there is room for so many tokens of them and no more.

What finds no room rests: its entry stays and is served as ever, but it is in no prompt. All are ranked afresh each time
(`augment/worth.py`), those that rest among them, so one comes back by itself: others have gone, or have faded below
what it was worth.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from cacheproxy.augment.worth import keep

if TYPE_CHECKING:
    from collections.abc import Collection

    from cacheproxy.augment.state import AugmentState
    from cacheproxy.parts import Parts

log = structlog.get_logger()

_LOOKED_UP = 2_000
"""Entries looked up at a time."""


class Capacity:
    """Owns who rests. Call `tend` every few minutes, and `gone` with whatever leaves the store.

    What was known of at the start is looked up once, since its entry may have gone while nobody told.
    """

    def __init__(self, parts: Parts, state: AugmentState, tokens: int) -> None:
        self._parts = parts
        self._state = state
        self._tokens = tokens
        self._resting: frozenset[str] = frozenset()
        self._unseen: list[str] | None = None

    def rests(self, entry_id: str) -> bool:
        """Whether there is no room for it among the examples now."""
        return entry_id in self._resting

    def gone(self, entry_ids: Collection[str]) -> None:
        """Forget examples whose entries are gone; a quarantine stays: the same question may be answered anew."""
        known = ((entry_id, self._state.standing(entry_id)) for entry_id in entry_ids)
        self._state.drop([entry_id for entry_id, one in known if one is not None and not one.quarantined])

    async def tend(self) -> None:
        """Find out who has gone, and who rests. Raises StoreUnavailable."""
        await self._look_up()
        standings, now_s = list(self._state.standings()), self._parts.clock.now()
        found = await asyncio.to_thread(keep, standings, self._tokens, now_s)  # of many it takes long
        if len(found.dropped) != len(self._resting):
            log.info("examples_ranked", kept=len(found.stay), resting=len(found.dropped), tokens=found.tokens)
        self._resting = frozenset(found.dropped)

    async def _look_up(self) -> None:
        if self._unseen is None:
            self._unseen = [one.entry_id for one in self._state.standings()]
        for _ in range(min(_LOOKED_UP, len(self._unseen))):
            entry_id = self._unseen[-1]
            if await self._parts.store.get(entry_id) is None:
                self.gone((entry_id,))
            self._unseen.pop()
