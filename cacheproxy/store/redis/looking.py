"""What operators and indexes see: entries listed by what they are, and the vectors of an epoch."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from cacheproxy.ports import Page
from cacheproxy.store.codec import RecordError, decode_vector
from cacheproxy.store.selection import meaning

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from cacheproxy.model import Entry, Partition, Selector
    from cacheproxy.ports import Clock
    from cacheproxy.store.meta import Meta
    from cacheproxy.store.redis.directory import Directory
    from cacheproxy.store.redis.documents import Documents

STEP_ROWS = 5_000
"""Entries that one step looks through."""
STEP_TEXTS = 256
_READS = 16

Found = tuple["Partition", str, "NDArray[np.float32]"]


class Looking:
    """Lists and scans. `read` returns a document's entry, or None where it may not be shown."""

    def __init__(
        self, directory: Directory, documents: Documents, clock: Clock, read: Callable[[Meta], Awaitable[Entry | None]]
    ) -> None:
        self._directory = directory
        self._documents = documents
        self._clock = clock
        self._read = read

    async def page(self, selector: Selector, after: int, limit: int) -> Page:
        """Return some entries that are meant and not gone, oldest version first; rows are versions."""
        means, now_s = meaning(replace(selector, text="")), self._clock.now()
        most = max(1, min(limit, STEP_TEXTS))
        rows = self._directory.after(after, STEP_ROWS, selector.ids)
        last = rows[-1][0] if len(rows) == STEP_ROWS else None
        chosen = [(row, meta) for row, meta in rows if now_s < meta.gone_s and means(meta)]
        wanted = chosen[: STEP_TEXTS if selector.text else most]
        if len(chosen) > len(wanted):
            last = wanted[-1][0]
        words = selector.text.casefold()
        found: list[tuple[int, Entry]] = []
        for start in range(0, len(wanted), _READS):
            some = wanted[start : start + _READS]
            for (row, _), entry in zip(some, await self._all([meta for _, meta in some]), strict=True):
                if entry is not None and (not words or words in entry.text.casefold()):
                    found.append((row, entry))
            if len(found) > most or (len(found) == most and start + _READS < len(wanted)):
                last = found[most - 1][0]
                break
        return Page(entries=tuple(entry for _, entry in found[:most]), after=last)

    async def meant(self, selector: Selector) -> list[Meta]:
        """Return what is known of all that is meant but for its words, gone entries included, oldest first."""
        means, row = meaning(replace(selector, text="")), 0
        found: list[Meta] = []
        while rows := self._directory.after(row, STEP_ROWS, selector.ids):
            row = rows[-1][0]
            found += [meta for _, meta in rows if means(meta)]
            await asyncio.sleep(0)
        return found

    async def with_words(self, selector: Selector, read: Callable[[Meta], Awaitable[Entry | None]]) -> list[Meta]:
        """Return what is meant by all of a selector, its words included, as `read` returns the entries."""
        found, words = await self.meant(selector), selector.text.casefold()
        if not words:
            return found
        spoken: list[Meta] = []
        for start in range(0, len(found), _READS):
            some = found[start : start + _READS]
            entries = await asyncio.gather(*(read(meta) for meta in some))
            spoken += [
                meta for meta, entry in zip(some, entries, strict=True) if entry and words in entry.text.casefold()
            ]
        return spoken

    async def scan(self, epoch: str, seen: Callable[[str], None] | None = None) -> AsyncIterator[Found]:
        """Yield the vectors of an epoch as of the first step; `seen` is told of each id just before."""
        by_shard: dict[int, list[str]] = {}
        for meta in self._directory:
            if meta.partition.epoch == epoch and meta.dim:
                by_shard.setdefault(self._documents.shard_of(meta.id), []).append(meta.id)
        for shard, ids in by_shard.items():
            async for entry_id, _, blob in self._documents.vectors(shard, ids):
                known = self._directory.get(entry_id)
                if known is None or self._clock.now() >= known.gone_s or known.partition.epoch != epoch:
                    continue
                try:
                    vector = decode_vector(blob, known.partition, entry_id)
                except RecordError:
                    self._documents.foreign += 1
                    continue
                if seen is not None:
                    seen(entry_id)
                yield known.partition, entry_id, vector

    async def _all(self, metas: Sequence[Meta]) -> list[Entry | None]:
        return list(await asyncio.gather(*(self._read(meta) for meta in metas)))
