"""Flat rows: exact search over a few vectors, and the growing end of a partition that has a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cacheproxy.index.rows import mapped, room

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cacheproxy.index.rows import Form

BLOCK_ROWS = 1024
"""Most rows of one block: bounds what growing or compacting it copies (1.5 MB of 384 values: 0.3 ms)."""

_HOLE = -2.0  # below every cosine


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """The rows of a block at one moment; may be scanned on any thread while the block goes on changing."""

    block: Block
    first: int
    matrix: NDArray[Any]
    holes: tuple[int, ...]

    def nearest(self, vector: NDArray[np.float32], k: int) -> list[tuple[int, float]]:
        """Return at most `k` (slot, cosine), closest first. Exact, of what is kept."""
        cosines = self.block.form.cosines(self.matrix, vector)
        if self.holes:
            cosines[np.asarray(self.holes) - self.first] = _HOLE
        rows = np.argpartition(cosines, -k)[-k:] if k < len(cosines) else np.arange(len(cosines))
        rows = rows[np.argsort(-cosines[rows], kind="stable")]
        best = np.clip(cosines[rows], _HOLE, 1.0).tolist()
        # In this form a NaN is left out, as a hole is. Rounding may take an opposite vector slightly below -1.
        return [(self.first + row, max(c, -1.0)) for row, c in zip(rows.tolist(), best, strict=True) if c >= -1.5]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Rows on their way from a block to a graph; `end` is the slot after the last one looked at."""

    block: Block
    slots: list[int]
    ids: list[str]
    rows: NDArray[np.float32]
    end: int


class Block:
    """Up to BLOCK_ROWS unit vectors in the order they came. A slot is never used twice; a dropped row leaves a hole.

    `ids` holds None for a slot whose entry was dropped or moved on; `head` is the first slot not moved to a graph.
    """

    __slots__ = ("_holes", "_matrix", "form", "head", "ids")

    def __init__(self, form: Form, capacity: int = 1) -> None:
        self.form = form
        self._matrix = room(capacity, form)
        self._holes: list[int] = []
        self.ids: list[str | None] = []
        self.head = 0

    @property
    def full(self) -> bool:
        """Whether no row fits any more."""
        return len(self.ids) >= BLOCK_ROWS

    @property
    def live(self) -> int:
        """Rows that a search may return."""
        return len(self.ids) - self.head - len(self._holes)

    @property
    def sparse(self) -> bool:
        """Whether holes outweigh rows, so that a compact copy pays."""
        return len(self._holes) > self.live

    def append(self, entry_id: str, vector: NDArray[np.float32]) -> int:
        """Copy a vector in; return its slot. The block must not be full."""
        slot = len(self.ids)
        if slot == len(self._matrix):
            grown = room(_more(slot, self._matrix.nbytes), self.form)
            grown[:slot] = self._matrix
            self._matrix = grown  # a new array: a scan on another thread keeps the old one
        self._matrix[slot] = self.form.kept(vector[None])[0]
        self.ids.append(entry_id)
        return slot

    def drop(self, slot: int) -> None:
        """Leave a hole where a live row was; the vector is erased."""
        self.ids[slot] = None
        self._matrix[slot] = 0
        self._holes.append(slot)

    def advance(self, head: int) -> None:
        """Give up all rows before `head`: a graph has them."""
        self.ids[self.head : head] = [None] * (head - self.head)
        self._holes = [slot for slot in self._holes if slot >= head]
        self.head = head

    def slice(self) -> Slice:
        """Return the present rows for a scan."""
        return Slice(self, self.head, self._matrix[self.head : len(self.ids)], tuple(self._holes))

    def front(self, most: int) -> Batch:
        """Return a copy of the live rows among the first `most` slots."""
        end = min(self.head + most, len(self.ids))
        found = [(slot, entry_id) for slot in range(self.head, end) if (entry_id := self.ids[slot]) is not None]
        slots = [slot for slot, _ in found]
        return Batch(
            block=self,
            slots=slots,
            ids=[entry_id for _, entry_id in found],
            rows=self.form.vectors(self._matrix[slots]),
            end=end,
        )

    def rows(self) -> list[tuple[str, NDArray[np.float32]]]:
        """Return (id, vector) of each live row."""
        live = [(slot, entry_id) for slot, entry_id in enumerate(self.ids) if entry_id is not None]
        vectors = self.form.vectors(self._matrix[[slot for slot, _ in live]])
        return [(entry_id, vector) for (_, entry_id), vector in zip(live, vectors, strict=True)]


def _more(rows: int, size_bytes: int) -> int:
    """Return how many rows a full block is to have room for: an eighth more, since most partitions stay small."""
    return min(2 * rows if mapped(size_bytes) else rows + max(1, rows // 8), BLOCK_ROWS)
