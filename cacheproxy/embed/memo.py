"""A bounded memory of recent embeddings."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cacheproxy.model import Embedding


class Memo:
    """The most recently used embeddings by key, at most `size` of them; a size of 0 remembers nothing."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[bytes, Embedding] = OrderedDict()

    def get(self, key: bytes) -> Embedding | None:
        """Return an embedding and mark it as used, or None."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: bytes, embedding: Embedding) -> None:
        """Remember an embedding, forgetting the least recently used one when full."""
        self._kept[key] = embedding
        self._kept.move_to_end(key)
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)

    def drop(self, key: bytes) -> None:
        """Forget one, if it is remembered."""
        self._kept.pop(key, None)

    def clear(self) -> int:
        """Forget all of them: whose they are cannot be told. Return how many there were."""
        count = len(self._kept)
        self._kept.clear()
        return count

    def __len__(self) -> int:
        return len(self._kept)
