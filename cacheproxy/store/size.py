"""What an entry takes in a store's file: SQLite's pages are counted, not just the bytes it was given.

A row whose two blobs fit in a page shares it with others, as many as fit whole; a longer one keeps a part there and has
the rest in pages of its own (https://sqlite.org/fileformat.html section 1.6). Counted by bytes alone, entries with a
vector would take up to 1.7 times what they count for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

PAGE_BYTES = 4096
_USABLE = PAGE_BYTES - 12
_MOST_WITHIN = PAGE_BYTES - 35
_LEAST_WITHIN = (PAGE_BYTES - 12) * 32 // 255 - 23
_PER_OVERFLOW = PAGE_BYTES - 4
_CELL_BYTES = 14
_ROW_BYTES = 250
_TAG_BYTES = 42


def size_on_disk(blob_bytes: int, labels: Collection[str], tags: Collection[str]) -> int:
    """Return about what an entry takes: its blobs, its row with these `labels`, each index on them, and its tags.

    A label that an index repeats is given once more.
    """
    # Columns and index entries of fixed length, and how full SQLite keeps pages of indexes (both measured).
    row = _ROW_BYTES + sum(map(len, labels)) + sum(2 * len(tag) + _TAG_BYTES for tag in tags)
    return row + _document(blob_bytes + _CELL_BYTES)


def _document(cell_bytes: int) -> int:
    if cell_bytes <= _MOST_WITHIN:
        return _shared(cell_bytes)
    within = _LEAST_WITHIN + (cell_bytes - _LEAST_WITHIN) % _PER_OVERFLOW
    if within > _MOST_WITHIN:
        within = _LEAST_WITHIN
    overflow = -(-(cell_bytes - within) // _PER_OVERFLOW)
    return overflow * PAGE_BYTES + _shared(within + _CELL_BYTES)


def _shared(cell_bytes: int) -> int:
    """Return a cell's part of a page: where many fit, between what equal ones and what ones of mixed sizes take."""
    fit = _USABLE / cell_bytes
    whole = int(fit)
    return int(PAGE_BYTES / (whole if whole < 2 else max(whole, (whole + fit - 0.35) / 2)))
