"""Entries that were purged in this process and may still be in the file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Tombstones:
    """Ids that must not be served, each with the fence its purge raised. Those whose removal failed are `owed`."""

    def __init__(self) -> None:
        self._fences: dict[str, int] = {}
        self._owed: dict[str, None] = {}

    def __contains__(self, entry_id: str) -> bool:
        return entry_id in self._fences

    def bury(self, entry_ids: Iterable[str], fence: int) -> None:
        """Note a purge that begins."""
        self._fences.update(dict.fromkeys(entry_ids, fence))

    def settle(self, entry_ids: Iterable[str], fence: int) -> None:
        """Note that the file no longer holds what was there before `fence`: it was purged or replaced."""
        for entry_id in entry_ids:
            if self._fences.get(entry_id, fence + 1) <= fence:
                del self._fences[entry_id]
                self._owed.pop(entry_id, None)

    def owe(self, entry_ids: Iterable[str]) -> None:
        """Note that a purge failed."""
        self._owed.update(dict.fromkeys(entry_id for entry_id in entry_ids if entry_id in self._fences))

    def take_owed(self) -> list[str]:
        """Return the ids to be tried again; they are no longer owed."""
        owed, self._owed = self._owed, {}
        return list(owed)
