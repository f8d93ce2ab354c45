"""The filling of a list: one call to the backend for the missing inputs, and an entry for each of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import msgspec

from cacheproxy.batch.groups import apply, groups
from cacheproxy.dialect import usage
from cacheproxy.dialect.embeddings import Batch, EmbeddingsFold, Item, batch_of, flaw, read_item, said, single
from cacheproxy.errors import PartUnavailable
from cacheproxy.filing import Filing, entry_of, private
from cacheproxy.flight import Settlement
from cacheproxy.model import Reply, entry_id
from cacheproxy.policy.admit import Keep, Lifetime, Refuse, admit

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from cacheproxy.batch.keeping import Keeping
    from cacheproxy.flight import Flight, Head
    from cacheproxy.joining import Flown
    from cacheproxy.journey import Journey
    from cacheproxy.model import Entry, Miss
    from cacheproxy.pipeline import Pipeline
    from cacheproxy.ports import Call
    from cacheproxy.query.embeddings import Asked, Input

_PURGED = "purged_meanwhile"
_CHANGED = "policy_changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Landed(Settlement):
    """A settlement together with the answer, when that is sound. `stored` is None: its items are yet to be kept."""

    batch: Batch | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Filling:
    """What a call asks for and how its answer may be kept."""

    journey: Journey
    inputs: tuple[Input, ...]
    dimensions: int | None
    fence: int
    fill_ms: float


class BatchFill:
    """Has the backend answer for what is missing. The caller's answer never waits for the store."""

    def __init__(
        self, pipeline: Pipeline, threads: Executor, keeping: Keeping, *, whole_bytes: int, max_entry_bytes: int
    ) -> None:
        self._pipeline = pipeline
        self._keeping = keeping
        self._parts = pipeline.parts
        self._threads = threads
        self._whole_bytes = whole_bytes
        self._max_entry_bytes = max_entry_bytes

    async def fly(self, journey: Journey, asked: Asked, missing: tuple[Input, ...], miss: Miss, call: Call) -> Flown:
        """Join or lead the exchange that answers for the missing inputs; `call` asks for exactly them, in their order.

        Raises UpstreamError as `Pipeline.fly`.
        """
        plan = journey.plan if journey.plan.store else replace(journey.plan, exact=False)  # then nobody else joins
        query = replace(journey.query, fingerprint=asked.key(missing))

        async def exchange(flight: Flight) -> None:
            with self._keeping.during(flight, [one.fingerprint for one in missing]):
                await self._exchange(flight, journey, asked, missing, call)

        apart = replace(journey, query=query, plan=plan)
        return await self._pipeline.share(apart, miss, exchange, whole_bytes=self._whole_bytes)

    async def _exchange(
        self, flight: Flight, journey: Journey, asked: Asked, inputs: tuple[Input, ...], call: Call
    ) -> None:
        parts, fence = self._parts, self._parts.store.fence
        relayed = await self._pipeline.relay(flight, call, lambda headers, _: EmbeddingsFold(headers, most=len(inputs)))
        filling = _Filling(
            journey=journey, inputs=inputs, dimensions=asked.dimensions, fence=fence, fill_ms=relayed.fill_ms
        )
        batch, life = await self._admit(filling, relayed.head, relayed.fold)
        model = str(batch.model or "") if batch is not None else ""
        if batch is None or isinstance(life, Refuse):
            reason = life.reason if isinstance(life, Refuse) else "malformed_body"
            flight.settle(Landed(stored=False, reason=reason, model=model, batch=batch))
        else:
            alone = entry_id(inputs[0].fingerprint) if len(inputs) == 1 else ""
            flight.settle(Landed(stored=None, reason="being_kept", entry_id=alone, model=model, batch=batch))
            reason = await self._keep(filling, batch, life)
        parts.telemetry.admissions.labels(str(reason == "kept").lower(), reason).inc()

    async def _admit(
        self, filling: _Filling, head: Head, fold: EmbeddingsFold
    ) -> tuple[Batch | None, Lifetime | Refuse]:
        """Return the answer if it is sound, and how long it may be kept or why not."""
        journey, reply, now_s = filling.journey, fold.reply(), self._parts.clock.now()
        admitted = admit(journey.query.dialect, head.status, head.headers, reply, journey.plan, now_s=now_s)
        if head.status != 200 or isinstance(reply, str) or reply.body.get("error") is not None:
            return None, admitted if isinstance(admitted, Refuse) else Refuse(reason="malformed_body")
        items: list[Item] = []
        for group in groups(fold.elements):
            for item in await apply(self._threads, read_item, group, sum(map(len, group))):
                if isinstance(item, str):
                    return None, Refuse(reason=item)
                items.append(item)
        reason = flaw(items, len(filling.inputs), filling.dimensions)
        if reason:
            return None, Refuse(reason=reason)
        batch = batch_of(reply.body, items)
        if isinstance(admitted, Refuse):
            return batch, admitted
        if not journey.plan.store:
            return batch, Refuse(reason=journey.plan.reason or "request_no_store")
        if admitted.life.vary:
            return batch, Refuse(reason="upstream_vary")
        if not self._pipeline.still_kept(journey):
            return batch, Refuse(reason=_CHANGED)
        return batch, admitted.life

    async def _keep(self, filling: _Filling, batch: Batch, life: Lifetime) -> str:
        """Keep an entry for each input, a group at a time; the first failure of the store ends it, or another policy.

        Nothing is kept where the gate refuses any of it. Return "kept" when all of them are, else why one is not.
        """
        if refusal := await self._private(filling, batch):
            return refusal
        shares = usage.shares(batch.envelope.get("usage"), [one.weight for one in filling.inputs])
        envelope = {**batch.envelope, "data": []}
        room = self._max_entry_bytes - len(msgspec.json.encode(envelope))

        def entry_of(part: tuple[Input, Item, object]) -> Entry:
            return _entry(filling, part, single(envelope, part[1], part[2]), life, now_s)

        now_s = self._parts.clock.now()
        parts = [part for part in zip(filling.inputs, batch.items, shares, strict=True) if part[1].size_bytes <= room]
        reasons = [] if len(parts) == len(batch.items) else ["too_large"]
        for group in groups(parts):
            if not self._pipeline.still_kept(filling.journey):  # the gate and the store take their time
                reasons.append(_CHANGED)
                break
            entries = await apply(self._threads, entry_of, group, sum(part[1].size_bytes for part in group))
            async with asyncio.TaskGroup() as tasks:
                puts = [tasks.create_task(self._put(entry, filling.fence)) for entry in entries]
            refused = [reason for put in puts if (reason := put.result()) is not None]
            reasons += refused
            if any(reason != _PURGED for reason in refused):
                break
        return reasons[0] if reasons else "kept"

    async def _private(self, filling: _Filling, batch: Batch) -> str:
        """Return why personal data forbids keeping a list, or ""; what cannot be looked through is not kept.

        All is looked through at once: the texts and what the answer says beside its vectors. Tokens cannot be.
        """
        kinds = filling.journey.plan.check_pii
        texts = [one.value for one in filling.inputs if isinstance(one.value, str)]
        if kinds and len(texts) < len(filling.inputs):
            return "pii_unavailable"
        return await private(self._parts, (texts, said(batch)), kinds)

    async def _put(self, entry: Entry, fence: int) -> str | None:
        """Return why an entry was not kept, or None."""
        try:
            kept = await self._parts.store.put(entry, fence)
        except PartUnavailable as exc:
            return self._parts.failed(exc)
        if self._parts.store.over_cap:
            self._parts.make_room()
        return None if kept else _PURGED


def _entry(
    filling: _Filling, part: tuple[Input, Item, object], body: dict[str, object], life: Lifetime, now_s: float
) -> Entry:
    one, journey = part[0], filling.journey
    text = one.value if isinstance(one.value, str) else ""
    journey = replace(journey, query=replace(journey.query, fingerprint=one.fingerprint, text=text))
    fresh = Lifetime(ttl_s=life.ttl_s, age_s=life.age_s)  # vectors are never served stale
    kept = Keep(reply=Reply(body=body, source="body"), life=fresh)
    return entry_of(journey, kept, Filing(key=one.fingerprint, now_s=now_s, fill_ms=filling.fill_ms))
