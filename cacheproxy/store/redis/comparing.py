"""What a replica knows, compared with what the engine holds: all of it after a gap, and again and again to be sure."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Protocol

import structlog

from cacheproxy.errors import StoreUnavailable
from cacheproxy.store.redis.beside import RETRY_S
from cacheproxy.store.redis.documents import AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from cacheproxy.ports import Clock
    from cacheproxy.store.redis.directory import Directory
    from cacheproxy.store.redis.documents import Documents
    from cacheproxy.store.redis.following import Following
    from cacheproxy.store.redis.permit import Permit

_CATCH_UP_S = 5.0
_ENDED_MS = 60_000
"""How long after its end an entry's line in the engine's directory is cleared away."""

log = structlog.get_logger()


class Journal(Protocol):
    """What was purged, whatever the engine remembers."""

    async def noted(self, now_s: float) -> dict[str, int]:
        """Return ids with the version up to which each was purged. Raises StoreUnavailable."""
        ...


class Comparing:
    """Re-syncs and reconciles the shards of one replica.

    `resyncs` counts by reason, `divergent` the entries that differed at the last reconcile.
    """

    def __init__(
        self,
        directory: Directory,
        following: Following,
        documents: Documents,
        journal: Journal,
        permit: Permit,
        clock: Clock,
        *,
        shards: int,
        every_s: float,
        leads: Callable[[], bool],
        removed: Callable[[Collection[str]], Awaitable[object]],
    ) -> None:
        """`every_s` is between two reconciles; `removed` removes for good what was hidden."""
        self.resyncs: Counter[str] = Counter()
        self.divergent = 0
        self._directory = directory
        self._following = following
        self._documents = documents
        self._journal = journal
        self._permit = permit
        self._clock = clock
        self._shards = shards
        self._every_s = every_s
        self._leads = leads
        self._removed = removed
        self._synced: set[int] = set()

    @property
    def loaded(self) -> bool:
        """Whether every shard was read at least once."""
        return len(self._synced) == self._shards

    async def resync(self, shard: int, reason: str) -> str:
        """Make the directory of a shard what the engine holds; return where in its log to go on.

        What is remembered as purged, here or in the journal, and is there again in an old version was lost by the
        engine: it is purged once more. Every fill that has begun is refused. Raises StoreUnavailable.
        """
        self.resyncs[reason] += 1
        head = await self._documents.head(shard)
        listed, known = await self._documents.listed(shard), self._directory.of_shard(shard)
        now_ms = self._clock.now() * 1000
        self._directory.begin_again(shard)
        self._following.fences.begin_again({shard: head.generation})
        for selector, ver in head.hidden.values():
            self._following.forget(self._directory.hide(shard, selector, ver))
        lost = await self._lost(shard, listed)
        wanted = [
            (ver, entry_id)
            for entry_id, (ver, gone_ms) in listed.items()
            if known.get(entry_id) != ver and gone_ms > now_ms and entry_id not in lost
        ]
        away = [entry_id for entry_id, ver in known.items() if entry_id not in listed or ver > listed[entry_id][0]]
        away += [entry_id for entry_id in lost if entry_id in known]
        self._following.forget([one for one in away if self._directory.lose(one, known.get(one, 0))])
        async for _, meta in self._documents.metas(shard, [entry_id for _, entry_id in sorted(wanted)]):
            if meta is not None:
                self._following.came(meta)
        await self._purge_again(shard, lost)
        await self._following.moved(shard, head.last)
        self._synced.add(shard)
        log.info("replica_synced", shard=shard, reason=reason, entries=len(listed), read=len(wanted), lost=len(lost))
        return head.last

    async def when_due(self) -> None:
        """Wait until it is time, or something asks for it, and reconcile. Raises StoreUnavailable."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._following.look_again.wait(), self._every_s)
            await asyncio.sleep(RETRY_S)  # many messages may ask for the same
        await self.reconcile()

    async def reconcile(self) -> int:
        """Compare everything with the engine, repair both; return how many differed. Raises StoreUnavailable."""
        self._permit.all()
        self._following.look_again.clear()
        self.divergent = sum([await self._reconcile(shard) for shard in range(self._shards)])
        if self.divergent:
            log.warning("replica_diverged", entries=self.divergent)
        return self.divergent

    async def _reconcile(self, shard: int) -> int:
        """Compare a shard with the engine, repair both; return how many entries differed. Raises StoreUnavailable.

        What is merely on its way does not count: only what differs still once the log was followed to its end.
        """
        listed, known = await self._documents.listed(shard), self._directory.of_shard(shard)
        now_ms = self._clock.now() * 1000
        live = {entry_id: ver for entry_id, (ver, gone_ms) in listed.items() if gone_ms > now_ms}
        suspects = [one for one in {*known, *live} if known.get(one) != live.get(one)]
        suspects = [one for one in suspects if one not in listed or listed[one][1] > now_ms]
        lost = await self._lost(shard, listed)
        divergent = 0
        if suspects:
            head = await self._documents.head(shard)
            await self._following.caught_up({shard: head.last}, _CATCH_UP_S)
            divergent = await self._look_again(shard, suspects, live)
        await self._purge_again(shard, lost)
        if self._leads():
            await self._clear(shard, listed)
        return divergent

    async def _look_again(self, shard: int, suspects: list[str], live: dict[str, int]) -> int:
        divergent, dangling = 0, list[tuple[str, int]]()
        async for entry_id, meta in self._documents.metas(shard, suspects):
            known = self._directory.version(entry_id)
            if meta is None:
                if known is not None:
                    divergent += 1
                    self._following.lose([(entry_id, known)])
                if entry_id in live:
                    dangling.append((entry_id, live[entry_id]))
            elif known != meta.ver:
                divergent += live.get(entry_id) == meta.ver  # else it came after the comparison
                if known is not None and known > meta.ver and self._directory.lose(entry_id, known):
                    self._following.forget([entry_id])
                self._following.came(meta)
        if dangling:
            await self._documents.evict(shard, dangling)
        return divergent

    async def _lost(self, shard: int, listed: dict[str, tuple[int, int]]) -> dict[str, int]:
        """Return what is there though it was purged, with the version up to which it was."""
        try:
            noted = await self._journal.noted(self._clock.now())
        except StoreUnavailable as exc:
            log.warning("purge_journal_unreadable", reason=exc.message)
            noted = {}
        purged: dict[str, int] = {}
        for entry_id, (ver, _) in listed.items():
            if ver <= noted.get(entry_id, 0):
                purged[entry_id] = noted[entry_id]
            elif self._directory.was_removed(entry_id, ver):
                purged[entry_id] = ver
        if not purged:
            return purged
        # What was listed may have gone since: only what is there still was lost.
        there = [meta async for _, meta in self._documents.metas(shard, list(purged)) if meta is not None]
        return {meta.id: purged[meta.id] for meta in there if meta.ver <= purged[meta.id]}

    async def _purge_again(self, shard: int, lost: dict[str, int]) -> None:
        by_ver = sorted(lost, key=lambda one: lost[one])
        for start in range(0, len(by_ver), AT_ONCE):
            some = by_ver[start : start + AT_ONCE]
            await self._documents.purge(shard, some, bound=max(lost[one] for one in some))
            log.warning("purges_applied_again", shard=shard, entries=len(some))

    async def _clear(self, shard: int, listed: dict[str, tuple[int, int]]) -> None:
        """Clear away lines of what is gone for a while, and what was hidden and left by who hid it."""
        long_ago_ms = self._clock.now() * 1000 - _ENDED_MS
        ended = [(one, ver) for one, (ver, gone_ms) in listed.items() if gone_ms < long_ago_ms]
        await self._documents.evict(shard, ended)
        left = [meta.id for meta in self._directory.doomed() if self._documents.shard_of(meta.id) == shard]
        if left:
            await self._removed(left)
            return
        head = await self._documents.head(shard)
        for name, (_, ver) in head.hidden.items():
            if ver / 1e6 < self._clock.now() - _ENDED_MS / 1000:
                await self._documents.unhide(shard, name)
