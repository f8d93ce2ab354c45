"""Fences of a store that many write: one number for fills here, and what it meant of each shard's generation then."""

from __future__ import annotations

from bisect import bisect_right
from operator import itemgetter
from typing import TYPE_CHECKING

from cacheproxy.store.fences import MOST_IDS, Fences

if TYPE_CHECKING:
    from collections.abc import Iterable


class SharedFences(Fences):
    """As `Fences`, fed by the purges of every replica.

    The engine knows a fill's age by its shard's generation, which each purge raises. `generation` tells the one that
    this replica had heard of when its own number was `fence`: never a later one than was true, so that a fill may be
    refused in vain, and is never kept in spite of a purge. What is too old to be told is refused here (`admits`).
    """

    def __init__(self, current: int = 0, *, most_ids: int = MOST_IDS) -> None:
        super().__init__(current, most_ids=most_ids)
        self._most_heard = max(most_ids, 16)
        self._heard: dict[int, list[tuple[int, int]]] = {}

    def purged(self, shard: int, generation: int, entry_ids: Iterable[str]) -> None:
        """Note another replica's purge of these ids, which raised a shard's generation."""
        self.put_up(entry_ids)
        self._hear(shard, generation)

    def erased(self, shard: int, generation: int) -> None:
        """Note another replica's erasure, which refuses every fill that has begun."""
        self.put_up_all()
        self._hear(shard, generation)

    def done(self, shard: int, generation: int, fence: int) -> None:
        """Note that what was put up here, when `current` became `fence`, raised a shard's generation to this.

        Fills that began since then are admitted, unless another replica's purge came between, which they may be older
        than: then only those that begin from now on.
        """
        heard = self._heard.setdefault(shard, [])
        if heard and heard[-1][1] == generation - 1:
            heard.append((max(fence, heard[-1][0]), generation))
        elif not heard or heard[-1][1] < generation:
            self.put_up(())
            self._hear(shard, generation)

    def begin_again(self, generations: dict[int, int]) -> None:
        """Refuse every fill that has begun; from now on these shards' generations are known."""
        self.put_up_all()
        for shard, generation in generations.items():
            self._heard[shard] = [(self.current, generation)]

    def generation(self, shard: int, fence: int) -> int:
        """Return the generation of a shard that was known when `current` was `fence`; 0 where none was."""
        heard = self._heard.get(shard, [])
        at = bisect_right(heard, fence, key=itemgetter(0))
        return heard[at - 1][1] if at else 0

    def _hear(self, shard: int, generation: int) -> None:
        heard = self._heard.setdefault(shard, [])
        if heard and heard[-1][1] >= generation:
            return  # of messages that come twice, the first one counts
        heard.append((self.current, generation))
        if len(heard) > self._most_heard:  # of older fills it is told that they are older still, which refuses them
            del heard[: len(heard) // 2]
