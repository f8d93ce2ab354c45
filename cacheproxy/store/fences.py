"""Fences: which fills a purge refuses, so that none brings back what was purged while it was under way."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_IDS = 65_536
"""How many purged ids are remembered one by one; a fill that began before the purge of a forgotten one is refused."""


class Fences:
    """A number that every purge raises, and the number that the last purge of each id raised it to.

    A fill takes `current` along when it begins. What began before a restart is refused whatever its id.
    """

    def __init__(self, current: int = 0, *, most_ids: int = MOST_IDS) -> None:
        self.current = current
        self._most_ids = most_ids
        self._refused_below = current
        self._by_id: OrderedDict[str, int] = OrderedDict()

    def put_up(self, entry_ids: Iterable[str]) -> None:
        """Refuse the fills of these ids that have begun."""
        self.current += 1
        for entry_id in entry_ids:
            self._by_id[entry_id] = self.current
            self._by_id.move_to_end(entry_id)
        while len(self._by_id) > self._most_ids:
            _, self._refused_below = self._by_id.popitem(last=False)

    def put_up_all(self) -> None:
        """Refuse every fill that has begun."""
        self.current += 1
        self._refused_below = self.current
        self._by_id.clear()

    def admits(self, entry_id: str, fence: int) -> bool:
        """Whether an entry has not been purged, as far as is remembered, since `current` was `fence`."""
        return fence >= max(self._refused_below, self._by_id.get(entry_id, 0))
