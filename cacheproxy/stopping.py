"""Stopping: what an operator may end while it is under way, without cancelling more than that."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from cacheproxy.errors import Stopped

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")

_WHY = "an operator stopped it"


class Stop:
    """One change, which may be ended from outside until it is too late for that. Used on the event loop."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._late = False

    @property
    def possible(self) -> bool:
        """Whether it can still be ended, and nobody has asked for that."""
        return not (self._late or self._asked.is_set())

    def ask(self) -> None:
        """End it."""
        self._asked.set()

    def late(self) -> None:
        """From now on it is too late. Raises Stopped where somebody has asked before."""
        if self._asked.is_set():
            raise Stopped(_WHY)
        self._late = True

    async def unless_asked(self, work: Coroutine[object, object, T]) -> T:
        """Return what work returns. Raises Stopped where somebody asks, or has asked, to end it: then it is over."""
        if self._asked.is_set():
            work.close()
            raise Stopped(_WHY)
        working, asking = asyncio.ensure_future(work), asyncio.ensure_future(self._asked.wait())
        try:
            await asyncio.wait({working, asking}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            asking.cancel()
            if not working.done():
                working.cancel()
                await asyncio.wait({working})
        if working.cancelled():
            raise Stopped(_WHY)
        return working.result()
