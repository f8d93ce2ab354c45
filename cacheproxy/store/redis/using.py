"""Uses of entries here: noted at once, and told the other replicas now and then, without promises."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from cacheproxy.store.uses import Uses

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cacheproxy.store.redis.directory import Directory
    from cacheproxy.store.redis.documents import Documents
    from cacheproxy.store.redis.permit import Permit

TELL_S = 5.0
"""How often the others are told."""
_MOST = 4096


class Using:
    """What was used since it was last told."""

    def __init__(self, directory: Directory, documents: Documents, permit: Permit) -> None:
        self._directory = directory
        self._documents = documents
        self._permit = permit
        self._untold: dict[str, Uses] = {}

    def note(self, entry_id: str, now_s: float) -> None:
        """Note one use."""
        self._directory.use(entry_id, now_s)
        before = self._untold.get(entry_id)
        if before is not None or len(self._untold) < _MOST:
            self._untold[entry_id] = Uses(1 if before is None else before.count + 1, now_s)

    def forget(self, entry_ids: Iterable[str]) -> None:
        """Tell nothing of these."""
        for entry_id in entry_ids:
            self._untold.pop(entry_id, None)

    async def tell(self) -> None:
        """Tell the others. Raises StoreUnavailable."""
        uses, self._untold = self._untold, {}
        by_shard: dict[int, dict[str, tuple[int, float]]] = {}
        for entry_id, used in uses.items():
            shard = self._documents.shard_of(entry_id)
            if self._permit.shard(shard):  # else nobody is told: it is only how often
                by_shard.setdefault(shard, {})[entry_id] = used.count, used.last_s
        for shard, told in by_shard.items():
            await self._documents.tell_used(shard, msgspec.msgpack.encode(told))
