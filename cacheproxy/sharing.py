"""Sharing: an answer that several tenants got becomes one that others may be served, in the background.

The store itself is the book of who got what: entries that may be shared carry the request's fingerprint without its
tenant as a tag. What was purged, or is gone, counts no more, and a restart loses nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from cacheproxy.errors import NotFound, NotPromoted, PartUnavailable
from cacheproxy.model import OPERATOR, Selector, entry_id
from cacheproxy.policy.agreement import told
from cacheproxy.policy.kinds import PII_KINDS
from cacheproxy.policy.share import Taken, agreeing, common_in, common_tag, principal, shared_entry
from cacheproxy.verify.answers import agrees

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from cacheproxy.model import Entry, Plan, Query
    from cacheproxy.ports import Clock, EntryCatalogue, EntryStore, Feedback, PiiGate, VectorIndex
    from cacheproxy.telemetry import Telemetry

log = structlog.get_logger()

_MOST_AT_ONCE = 64
"""Most answers compared at a time; what comes beyond is not compared, and may be when it is asked again."""
_MOST_PEERS = 32
"""Most entries of other tenants that one answer is compared with."""
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingMeans:
    """What sharing works on."""

    store: EntryStore
    catalogue: EntryCatalogue
    index: VectorIndex
    pii: PiiGate | None
    feedback: Feedback | None
    clock: Clock
    telemetry: Telemetry
    common: str
    """The scope that tenants share."""
    spawn: Callable[[Coroutine[object, object, None]], object]


class Sharing:
    """`ports.Sharing`, and an operator's word that an entry may be shared."""

    def __init__(self, means: SharingMeans) -> None:
        self._means = means
        self._running = 0
        self._taken = Taken()
        self._lock = asyncio.Lock()

    def kept(self, query: Query, plan: Plan, entry: Entry) -> None:
        """Compare an answer, just kept, with those that other tenants got, unless too many are being compared."""
        if plan.shared is None or not plan.shared.agreed or common_in(entry, self._means.common) is None:
            return
        if self._running >= _MOST_AT_ONCE:
            self._count("dropped")
            return
        self._running += 1
        self._means.spawn(self._compare(query, plan, entry))

    async def _compare(self, query: Query, plan: Plan, entry: Entry) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT_S), self._lock:
                self._count(await self._share(query, plan, entry))
        except (PartUnavailable, TimeoutError):
            self._count("failed")
        finally:
            self._running -= 1

    async def _share(self, query: Query, plan: Plan, entry: Entry) -> str:
        """Share an answer if it may be; return what came of it."""
        common, terms, means = query.common, plan.shared, self._means
        if common is None or terms is None:
            return "alone"
        fence = means.store.fence
        page = await means.catalogue.page(Selector(tag=common_tag(common)), limit=_MOST_PEERS)
        peers = [one for one in page.entries if one.id != entry.id and self._stands(one)]
        group = agreeing(entry, peers, _alike)
        category = entry.partition.category
        counted = [one for one in group if self._taken.within(category, one.tenant, terms.most)]
        principals = {principal(one.tenant) for one in counted}
        before = await means.store.get(entry_id(common.fingerprint))
        if before is not None and self._stands(before) and before.tenant == common.tenant and _alike(entry, before):
            if principals <= set(before.principals):
                return "known"
        else:
            before = None
        earlier = before.principals if before else ()
        if len(principals | set(earlier)) < terms.principals or not counted:
            return "capped" if len(group) > len(counted) else "alone" if len(group) == 1 else "too_few"
        if await self._personal(query, counted):
            return "private"
        expires_s = before.expires_s if before else counted[0].expires_s
        await self._put(shared_entry(common, counted, (*earlier, *principals), expires_s), fence)
        self._taken.count(category, principals - set(earlier))
        return "shared"

    async def approve(self, entry_id: str, *, dry_run: bool = False) -> Entry:
        """Share an entry because an operator says so; return what is shared.

        Raises NotFound, NotPromoted for what may not be shared whatever the operator says, and PartUnavailable.
        """
        means = self._means
        fence = means.store.fence
        source = await means.store.get(entry_id)
        if source is None:
            raise NotFound("no entry has this id: it may have expired, or gone for room")
        common = common_in(source, means.common)
        if common is None or not self._stands(source):
            raise NotPromoted(
                "this entry may not be shared: its category does not share, its caller has no virtual key, it is part "
                "of a conversation, or it has expired"
            )
        made = shared_entry(common, [source], (OPERATOR, principal(source.tenant)), source.expires_s)
        if not dry_run:
            async with self._lock:
                await self._put(made, fence)
            self._count("approved")
        return made

    def _stands(self, entry: Entry) -> bool:
        """Whether an entry is in force: fresh, and nobody said that it is wrong."""
        feedback = self._means.feedback
        bad = feedback is not None and feedback.quarantined(entry, entry.fingerprint)
        return self._means.clock.now() < entry.expires_s and not bad

    async def _personal(self, query: Query, entries: Iterable[Entry]) -> bool:
        """Whether anything of it may be personal; where nobody can tell, it may be."""
        gate = self._means.pii
        if gate is None:
            return True
        return bool(await gate.find([query.text, query.system, *(one.reply.body for one in entries)], PII_KINDS))

    async def _put(self, entry: Entry, fence: int) -> None:
        means = self._means
        if not await means.store.put(entry, fence):
            return
        for parent in entry.parents:
            if await means.store.get(parent) is None:  # purged just now: what was made of it goes, too
                await means.store.purge([entry.id])
                return
        if entry.vector is not None:
            means.index.add(entry.partition, entry.id, entry.vector)
        log.info("answer_shared", entry=entry.id, principals=len(entry.principals))

    def _count(self, result: str) -> None:
        self._means.telemetry.shared.labels(result).inc()


def _alike(one: Entry, other: Entry) -> bool:
    """Whether two entries answer alike: equal but for spaces, or nine words in ten and every number, negation, name."""
    first, second = told(one.reply.body), told(other.reply.body)
    return bool(first and second) and agrees(first, second)
