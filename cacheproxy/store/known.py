"""Known ids: what was never put is not looked for in the file. A Bloom filter (Bloom, 1970) over ids, which are random.

Every miss asks for an entry that is not there, and asking a thread that reads costs more than all that it finds out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_BITS = 16
"""For each entry that the store may hold: one in 400 unknown ids is looked for all the same."""
_FEWEST, _MOST = 1 << 16, 1 << 30
"""Of its bits; the second are 128 MiB: a store of more than 67 million entries is looked into in vain more often."""


class Known:
    """Ids that may be there. Those that were removed stay, so that after long churn more is looked for in vain."""

    def __init__(self, most: int, ids: Iterable[str] = ()) -> None:
        """Make room for `most` ids, and add these."""
        size = min(_MOST, max(_FEWEST, 1 << (_BITS * most - 1).bit_length()))
        self._mask = size - 1
        self._bits = bytearray(size // 8)
        for one in ids:
            self.add(one)

    def add(self, entry_id: str) -> None:
        """Know an id from now on."""
        for place in self._places(entry_id):
            self._bits[place >> 3] |= 1 << (place & 7)

    def __contains__(self, entry_id: str) -> bool:
        """Return False where an id was certainly never added."""
        return all(self._bits[place >> 3] & 1 << (place & 7) for place in self._places(entry_id))

    def _places(self, entry_id: str) -> tuple[int, ...]:
        try:
            number = int(entry_id, 16)
        except ValueError:  # none of ours: whoever asks for it is told by the file
            return ()
        mask = self._mask
        return number & mask, number >> 32 & mask, number >> 64 & mask, number >> 96 & mask
