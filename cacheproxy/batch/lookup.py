"""The lookup of a list: every input's own entry, and what together they answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cacheproxy.batch.groups import apply, groups
from cacheproxy.dialect import usage
from cacheproxy.dialect.embeddings import Item, item_of
from cacheproxy.errors import LookupTooSlow, PartUnavailable
from cacheproxy.judging import quarantined
from cacheproxy.model import Entry, Hit, Lookup, Miss, Reply, Staleness, Tier, entry_id
from cacheproxy.policy.decide import exact_reason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Executor

    from cacheproxy.batch.keeping import Keeping
    from cacheproxy.journey import Journey
    from cacheproxy.pipeline import Pipeline
    from cacheproxy.query.embeddings import Asked, Input


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the cache holds of a request: entries, and their data objects in the caller's encoding, by fingerprint."""

    entries: Mapping[bytes, Entry] = field(repr=False)
    items: Mapping[bytes, Item] = field(repr=False)
    missing: tuple[Input, ...]
    """Distinct, in order of first mention."""
    outcome: Hit | Miss
    """A hit's entry stands for all of them, see `whole`."""


class BatchLookup:
    """Looks up every distinct input of a request, each within its own entry, all within the lookup budget."""

    def __init__(
        self,
        pipeline: Pipeline,
        threads: Executor,
        keeping: Keeping,
        *,
        lookup_timeout_s: float,
        settle_timeout_s: float = 1.0,
    ) -> None:
        self._parts = pipeline.parts
        self._keeping = keeping
        self._threads = threads
        self._lookup_timeout_s = lookup_timeout_s
        self._settle_timeout_s = settle_timeout_s

    async def look_up(self, journey: Journey, asked: Asked) -> Found:
        """Return what may be served of a request. What fails, comes late or cannot be converted is missing.

        Entries that disagree on the model or on the number of dimensions are of different times of one backend: none
        of them is served, since vectors of two models must not be compared.
        """
        journey = replace(journey, plan=replace(journey.plan, stale=Staleness()))  # vectors are served fresh or not
        distinct, read = asked.distinct, _Read()
        if journey.plan.exact:
            try:
                async with asyncio.timeout(self._lookup_timeout_s):
                    await self._keeping.kept(distinct, self._settle_timeout_s)
                    for group in groups(distinct.values()):
                        await self._read_group(journey, asked, group, read)
            except TimeoutError:
                read.late = self._parts.failed(LookupTooSlow("the lookup took longer than its budget"))
        if not _agree(read):
            read = _Read(late="entries_differ")
        missing = tuple(one for key, one in distinct.items() if key not in read.items)
        return Found(
            entries=read.entries,
            items=read.items,
            missing=missing,
            outcome=self._outcome(journey, asked, read, missing),
        )

    def _outcome(self, journey: Journey, asked: Asked, read: _Read, missing: Sequence[Input]) -> Hit | Miss:
        if not missing:
            evidence = Lookup(lookup_ms=self._elapsed_ms(journey))
            entry = whole([read.entries[one.fingerprint] for one in asked.inputs])
            category = journey.plan.category
            return Hit(entry=entry, tier=Tier.EXACT, category=category, reason="same_request", evidence=evidence)
        if read.items:
            return self._miss(journey, "some_items_missing")
        asked_for = "" if journey.plan.exact and journey.plan.store else journey.plan.reason
        return self._miss(journey, read.late or asked_for or read.reasons.get(missing[0].fingerprint) or "no_entry")

    async def _read_group(self, journey: Journey, asked: Asked, group: list[Input], read: _Read) -> None:
        async with asyncio.TaskGroup() as tasks:
            reads = [tasks.create_task(self._read(journey, one)) for one in group]
        kept: list[tuple[bytes, Entry]] = []
        failures: list[PartUnavailable] = []
        for one, task in zip(group, reads, strict=True):
            match task.result():
                case Entry() as entry:
                    kept.append((one.fingerprint, entry))
                case PartUnavailable() as failure:
                    failures.append(failure)
                    read.reasons[one.fingerprint] = f"{failure.part}_unavailable"
                case reason:
                    read.reasons[one.fingerprint] = reason
        if failures:
            self._parts.failed(failures[0], len(failures))
        items = await apply(
            self._threads,
            lambda pair: item_of(pair[1].reply.body, asked.encoding),
            kept,
            sum(_written_bytes(entry) for _, entry in kept),
        )
        for (key, entry), item in zip(kept, items, strict=True):
            if item is None:
                read.reasons[key] = "not_convertible"
            else:
                read.entries[key], read.items[key] = entry, item

    async def _read(self, journey: Journey, one: Input) -> Entry | PartUnavailable | str:
        try:
            entry = await self._parts.store.get(entry_id(one.fingerprint))
        except PartUnavailable as exc:
            return exc
        if entry is None:
            return "no_entry"
        query = replace(journey.query, fingerprint=one.fingerprint)
        reason = exact_reason(entry, query, journey.plan, self._parts.clock.now())
        self._parts.count_violation(reason)
        if not reason and quarantined(self._parts, entry, one.fingerprint):
            return "quarantined"
        return reason or entry

    def _miss(self, journey: Journey, reason: str) -> Miss:
        evidence = Lookup(lookup_ms=self._elapsed_ms(journey))
        return Miss(category=journey.plan.category, reason=reason, evidence=evidence)

    def _elapsed_ms(self, journey: Journey) -> float:
        return (self._parts.clock.monotonic() - journey.started_s) * 1000


@dataclass(slots=True)
class _Read:
    """What was read so far; `late` is why the rest was not."""

    entries: dict[bytes, Entry] = field(default_factory=dict)
    items: dict[bytes, Item] = field(default_factory=dict)
    reasons: dict[bytes, str] = field(default_factory=dict)
    late: str = ""


def nothing_found(asked: Asked, miss: Miss) -> Found:
    """Return what stands for a lookup whose findings cannot be used."""
    return Found(entries={}, items={}, missing=tuple(asked.distinct.values()), outcome=miss)


def whole(entries: Sequence[Entry]) -> Entry:
    """Return an entry that stands for several: the newest one with all usage, the greatest age, the least life."""
    if len(entries) == 1:
        return entries[0]
    newest = max(entries, key=lambda entry: entry.created_s)
    body: dict[str, Any] = {**newest.reply.body}
    if "usage" in body:
        body["usage"] = usage.added([entry.reply.body.get("usage") for entry in entries])
    return replace(
        newest,
        reply=Reply(body=body, source=newest.reply.source),
        created_s=min(entry.created_s for entry in entries),
        expires_s=min(entry.expires_s for entry in entries),
    )


def _agree(read: _Read) -> bool:
    models = [entry.reply.body.get("model") for entry in read.entries.values()]
    lengths = {item.length for item in read.items.values()}
    return len(lengths) <= 1 and all(model == models[0] for model in models)


def _written_bytes(entry: Entry) -> int:
    kept: str = entry.reply.body["data"][0]["embedding"]
    return len(kept)
