"""How much a store may hold."""

from __future__ import annotations

from dataclasses import dataclass

SWEEP_LIMIT = 256
"""Most entries that one sweep removes: some 30 ms of a store's writer thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """The size caps, with a margin on each side.

    Above a cap a sweep is due; it goes a fiftieth below, so that a full store is not swept at every put. A tenth above
    (and a little, so that small caps work) nothing more is taken until a sweep has run.
    """

    max_entries: int
    max_bytes: int

    def over(self, entries: int, size_bytes: int) -> bool:
        """Whether a sweep is due."""
        return entries > self.max_entries or size_bytes > self.max_bytes

    @property
    def target(self) -> tuple[int, int]:
        """Entries and bytes that a sweep which is due leaves."""
        return self.max_entries - self.max_entries // 50, self.max_bytes - self.max_bytes // 50

    def above_target(self, entries: int, size_bytes: int) -> bool:
        """Whether a sweep that is due has more to remove."""
        return entries > self.target[0] or size_bytes > self.target[1]

    def full(self, entries: int, size_bytes: int) -> bool:
        """Whether sweeps are so far behind that a put must be refused."""
        return (
            entries >= self.max_entries + self.max_entries // 10 + 64
            or size_bytes >= self.max_bytes + self.max_bytes // 10 + 1024 * 1024
        )
