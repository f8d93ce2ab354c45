"""Known requests: what was understood of those that the exact tier answered, so that the same bytes are not read anew.

Most exact hits are the same bytes again, and reading them is most of their cost. Keys are keyed digests: of a request
that is not known nothing is held. What is held is gone with the next sweep or purge that removes anything.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MOST = 2048
MOST_BYTES = 2 * 1024 * 1024
"""Of bodies and headers as they came; what is understood takes six times as much, of odd ones up to 24 times."""
LARGEST_BYTES = 64 * 1024

T = TypeVar("T")


class Known(Generic[T]):
    """The most recently used of what was understood, by the digest of a request."""

    def __init__(self, most: int = MOST, most_bytes: int = MOST_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._held: OrderedDict[bytes, tuple[T, int]] = OrderedDict()
        self._held_bytes = 0
        self._fence = 0

    def get(self, key: bytes, fence: int) -> T | None:
        """Return what is known of a request; nothing of before the store's fence was raised to `fence`."""
        if fence != self._fence:
            self.clear()
            self._fence = fence
        held = self._held.get(key)
        if held is None:
            return None
        self._held.move_to_end(key)
        return held[0]

    def put(self, key: bytes, value: T, size_bytes: int) -> None:
        """Hold what was understood of a request of this size; the least recently used ones make room."""
        self.drop(key)
        self._held[key] = value, size_bytes
        self._held_bytes += size_bytes
        while len(self._held) > self._most or self._held_bytes > self._most_bytes:
            self._held_bytes -= self._held.popitem(last=False)[1][1]

    def drop(self, key: bytes) -> None:
        """Let go of one, if it is held."""
        held = self._held.pop(key, None)
        if held is not None:
            self._held_bytes -= held[1]

    def clear(self) -> int:
        """Let go of all; return how many there were."""
        count = len(self._held)
        self._held.clear()
        self._held_bytes = 0
        return count

    def __len__(self) -> int:
        return len(self._held)


def key_of(parts: Sequence[bytes], headers: Iterable[tuple[bytes, bytes]], secret: bytes) -> bytes:
    """Return what stands for a request: all that was looked at, digested (16 bytes), no part of it to be read again."""
    # How many parts, and each after its length: no value can pass for the next one.
    told = [b"%d;" % len(parts), *[b"%d:%b" % (len(part), part) for part in parts]]
    told += [b"%d:%b%d:%b" % (len(name), name, len(value), value) for name, value in headers]
    return hashlib.blake2b(b"".join(told), digest_size=16, key=secret[:64]).digest()
