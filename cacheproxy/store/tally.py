"""What a store holds, counted as entries come and go: in all, by category, and by tenant within each."""

from __future__ import annotations

from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING

from cacheproxy.model import Holding

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Room = tuple[int, int]
"""Entries and bytes."""

_NONE: Mapping[str, Room] = MappingProxyType({})


class Tally:
    """One thread counts; any may ask for `holdings`. What was counted since `settle` is undone by `revert`."""

    def __init__(self, holdings: Iterable[Holding] = ()) -> None:
        self.totals: Room = (0, 0)
        self._categories: dict[str, Room] = {}
        self._tenants: dict[str, dict[str, Room]] = {}
        self._unsettled: list[tuple[str, str, int, int]] = []
        self._lock = Lock()
        for held in holdings:
            self._count(held.category, held.tenant, held.entries, held.size_bytes)

    @property
    def categories(self) -> Mapping[str, Room]:
        """What each category holds; those with nothing are missing."""
        return self._categories

    def tenants(self, category: str) -> Mapping[str, Room]:
        """Return what each tenant holds of a category."""
        return self._tenants.get(category, _NONE)

    def holdings(self) -> list[Holding]:
        """Return all of it, as of now."""
        with self._lock:
            return [
                Holding(category=category, tenant=tenant, entries=entries, size_bytes=size)
                for category, tenants in self._tenants.items()
                for tenant, (entries, size) in tenants.items()
            ]

    def add(self, category: str, tenant: str, size_bytes: int) -> None:
        """Count an entry that came."""
        self._unsettled.append((category, tenant, 1, size_bytes))
        self._count(category, tenant, 1, size_bytes)

    def remove(self, category: str, tenant: str, size_bytes: int) -> None:
        """Count an entry that went."""
        self._unsettled.append((category, tenant, -1, -size_bytes))
        self._count(category, tenant, -1, -size_bytes)

    def settle(self) -> None:
        """Note that what was counted is so for good."""
        self._unsettled.clear()

    def revert(self) -> None:
        """Undo what was counted since."""
        for category, tenant, entries, size in self._unsettled:
            self._count(category, tenant, -entries, -size)
        self._unsettled.clear()

    def _count(self, category: str, tenant: str, entries: int, size: int) -> None:
        with self._lock:
            self.totals = self.totals[0] + entries, self.totals[1] + size
            _change(self._categories, category, entries, size)
            tenants = self._tenants.setdefault(category, {})
            _change(tenants, tenant, entries, size)
            if not tenants:
                del self._tenants[category]


def _change(held: dict[str, Room], name: str, entries: int, size: int) -> None:
    before = held.get(name, (0, 0))
    after = before[0] + entries, before[1] + size
    if after == (0, 0):
        held.pop(name, None)
    else:
        held[name] = after
