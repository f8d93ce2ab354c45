"""Decoded entries in memory, in front of a slower store."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cacheproxy.model import Entry


class HotEntries:
    """The most recently used entries that fit in `capacity_bytes` (of estimated memory); 0 keeps none."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._entries: OrderedDict[str, tuple[Entry, int]] = OrderedDict()
        self.size_bytes = 0

    def get(self, entry_id: str) -> Entry | None:
        """Return an entry and make it the most recently used."""
        held = self._entries.get(entry_id)
        if held is None:
            return None
        self._entries.move_to_end(entry_id)
        return held[0]

    def put(self, entry: Entry, footprint_bytes: int) -> None:
        """Hold an entry, replacing one of its id, and let go of the least recently used ones above the capacity."""
        self.discard(entry.id)
        if footprint_bytes > self._capacity_bytes:
            return
        self._entries[entry.id] = entry, footprint_bytes
        self.size_bytes += footprint_bytes
        while self.size_bytes > self._capacity_bytes:
            self.size_bytes -= self._entries.popitem(last=False)[1][1]

    def discard(self, entry_id: str) -> None:
        """Let go of an entry, if held."""
        held = self._entries.pop(entry_id, None)
        if held is not None:
            self.size_bytes -= held[1]

    def clear(self) -> None:
        """Let go of everything."""
        self._entries.clear()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)
