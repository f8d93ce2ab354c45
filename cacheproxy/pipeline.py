"""The straight line: plan, exact, semantic, flight. It holds no rule of its own; it asks pure functions, hands on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog

from cacheproxy.errors import IndexUnavailable, LookupTooSlow, PartUnavailable, UpstreamBroken, UpstreamError
from cacheproxy.flight import Head, Settlement
from cacheproxy.model import Bypass, Entry, Hit, Lookup, Miss, Partition, Tier
from cacheproxy.policy.admit import Keep, Refuse, admit
from cacheproxy.policy.decide import exact_reason, judge, near_enough
from cacheproxy.policy.plan import plan as plan_query
from cacheproxy.ports import UNFINISHED

if TYPE_CHECKING:
    from collections.abc import Callable

    from cacheproxy.flight import Flight, Flights, Reader
    from cacheproxy.model import Candidate, Embedding, Judgement, Outcome, Plan, Query, Reply
    from cacheproxy.policy.pack import Pack
    from cacheproxy.ports import Call, Clock, Dialect, Embedder, EntryStore, Fold, Upstream, VectorIndex
    from cacheproxy.telemetry import Telemetry

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Flown:
    """An answer from the backend through a flight; the receiver must leave `reader`.

    `body` is the whole body, or None for an event stream that is still coming.
    """

    outcome: Miss
    reader: Reader
    head: Head
    body: bytes | None
    coalesced: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the line runs through. `embedder` is None when only exact matches are served."""

    store: EntryStore
    index: VectorIndex
    embedder: Embedder | None
    upstream: Upstream
    clock: Clock
    telemetry: Telemetry
    make_room: Callable[[], None]
    """Called after a put that took the store above its caps."""


@dataclass(slots=True, kw_only=True)
class Journey:
    """One query on its way, with its embedding once that is known."""

    query: Query
    plan: Plan
    started_s: float
    embedding: Embedding | None = None
    embeddable: bool = True
    """False once the embedder failed on it: the answer is then kept for exact matches, without trying again."""


class Pipeline:
    """Answers queries from the cache, or lets the backend answer and keeps what may be kept."""

    def __init__(
        self,
        parts: Parts,
        pack: Callable[[], Pack],
        flights: Flights,
        *,
        lookup_timeout_s: float,
        coalesce_timeout_s: float,
        settle_timeout_s: float = 1.0,
    ) -> None:
        self.parts = parts
        self.pack = pack
        self.flights = flights
        self._lookup_timeout_s = lookup_timeout_s
        self._coalesce_timeout_s = coalesce_timeout_s
        self._settle_timeout_s = settle_timeout_s

    @property
    def epoch(self) -> str | None:
        """The encoder's epoch, or None without an encoder."""
        return self.parts.embedder.epoch if self.parts.embedder else None

    def set_out(self, query: Query) -> Journey:
        """Plan one query. Raises InvalidRequest for a category the pack does not have."""
        plan = plan_query(query, self.pack(), self.epoch)
        return Journey(query=query, plan=plan, started_s=self.parts.clock.monotonic())

    async def look_up(self, journey: Journey) -> Outcome:
        """Ask the tiers that the plan allows, within the lookup budget; nothing is changed but repairs of the index."""
        plan = journey.plan
        outcome: Outcome = Bypass(category=plan.category, reason=plan.reason)
        if plan.lookup or plan.store:
            try:
                async with asyncio.timeout(self._lookup_timeout_s):
                    outcome = await self._exact(journey)
                    if isinstance(outcome, Miss) and self._joinable(journey) is None:
                        outcome = await self._semantic(journey, outcome)
            except TimeoutError:
                outcome = self._miss(journey, self._failed(LookupTooSlow("the lookup took longer than its budget")))
        return outcome

    async def fly(self, journey: Journey, miss: Miss, call: Call, dialect: Dialect) -> Hit | Flown:
        """Have the backend answer a miss and keep the answer, together with everybody who asks the same meanwhile.

        A hit comes back where another caller's answer, asked for in another wire form, was awaited instead. Raises
        UpstreamError when the backend fails before this caller got a byte.
        """
        flight = self.flights.find(journey.query.fingerprint) if journey.plan.exact else None
        if flight is not None and flight.form != journey.query.wire:
            await flight.settled(self._coalesce_timeout_s)
            found = await self._exact(journey)
            if isinstance(found, Hit):
                return found

        def lead(key: bytes | None) -> Reader:
            return self.flights.open(
                key, journey.query.wire, lambda flight: self._exchange(flight, journey, call, dialect)
            )

        return await self._join_or_lead(journey, miss, lead)

    async def settlement(self, flown: Flown) -> Settlement:
        """Return what became of a flown answer, waiting a moment for it to be stored, so that headers can tell."""
        return await flown.reader.flight.settled(self._settle_timeout_s)

    # Tiers

    async def _exact(self, journey: Journey) -> Hit | Miss:
        query, plan = journey.query, journey.plan
        if not plan.exact:
            return self._miss(journey, plan.reason)
        flight = self.flights.find(query.fingerprint)
        if flight is not None and flight.ended:
            await flight.settled(self._settle_timeout_s)  # its answer is being stored right now
        try:
            entry = await self.parts.store.get(entry_id(query.fingerprint))
        except PartUnavailable as exc:
            return self._miss(journey, self._failed(exc))
        if entry is None:
            return self._miss(journey, plan.reason or "no_entry")
        reason = exact_reason(entry, query, plan, self.parts.clock.now())
        if reason:
            self._count_violation(reason)
            return self._miss(journey, reason)
        return self._hit(journey, entry, Tier.EXACT, "same_request", Lookup())

    async def _semantic(self, journey: Journey, found: Miss) -> Hit | Miss:
        query, plan, embedder = journey.query, journey.plan, self.parts.embedder
        if not plan.semantic or embedder is None:
            return found
        partition = Partition(category=plan.category, compatibility=query.compatibility, epoch=embedder.epoch)
        try:
            journey.embeddable = False  # unless the next line returns
            journey.embedding = await embedder.embed(query.text, scope=query.scope.tenant)
            candidates = await self.parts.index.search(partition, journey.embedding.vector, plan.candidates)
            hit, judgements = await self._judge_all(journey, partition, journey.embedding, candidates)
        except PartUnavailable as exc:
            return self._miss(journey, self._failed(exc))
        similarity = judgements[0].candidate.similarity if judgements else None
        evidence = Lookup(similarity=similarity, threshold=plan.threshold, judgements=judgements)
        if hit is not None:
            evidence = replace(evidence, similarity=judgements[-1].candidate.similarity)
            return self._hit(journey, hit, Tier.SEMANTIC, "similar", evidence)
        reason = judgements[0].reason if judgements else "no_candidate"
        return self._miss(journey, reason, evidence)

    async def _judge_all(
        self, journey: Journey, partition: Partition, embedding: Embedding, candidates: list[Candidate]
    ) -> tuple[Entry | None, tuple[Judgement, ...]]:
        judgements: list[Judgement] = []
        for candidate in candidates:
            near = near_enough(candidate, journey.plan)
            entry = await self.parts.store.get(candidate.entry_id) if near else None
            judgement = judge(
                candidate,
                entry,
                query=journey.query,
                plan=journey.plan,
                partition=partition,
                embedding=embedding,
                now_s=self.parts.clock.now(),
            )
            judgements.append(judgement)
            if judgement.served:
                return entry, tuple(judgements)
            if judgement.reason == "document_missing":
                self.parts.index.remove([candidate.entry_id])
                self.parts.telemetry.repairs.inc()
            self._count_violation(judgement.reason)
        return None, tuple(judgements)

    # Flights

    def _joinable(self, journey: Journey) -> Flight | None:
        plan = journey.plan
        if not (plan.exact and plan.store) or plan.only_if_cached:
            return None
        flight = self.flights.find(journey.query.fingerprint)
        return flight if flight is not None and flight.form == journey.query.wire else None

    async def _join_or_lead(self, journey: Journey, outcome: Miss, lead: Callable[[bytes | None], Reader]) -> Flown:
        """Join or lead. A follower whose leader fails before giving it a byte tries once more, leading or following."""
        key = journey.query.fingerprint if journey.plan.exact else None
        for last_try in (False, True):
            flight = self._joinable(journey)
            if flight is None:
                break
            try:
                flown = await self._first_bytes(flight.attach(), outcome, coalesced=True)
            except TimeoutError:
                key = None  # waited long enough for the leader: alone from here
                break
            except UpstreamError:
                if last_try:
                    raise
                continue
            if last_try or not failed(flown.head.status):
                self.parts.telemetry.coalesced.inc()
                return flown
            flown.reader.leave()
        return await self._first_bytes(lead(key), outcome, coalesced=False)

    async def _first_bytes(self, reader: Reader, outcome: Miss, *, coalesced: bool) -> Flown:
        try:
            async with asyncio.timeout(self._coalesce_timeout_s if coalesced else None):
                head = await reader.head()
                streams = is_event_stream(head.headers)
                if streams and coalesced:
                    await reader.started()
            body = None if streams else await reader.body()
        except BaseException:
            reader.leave()
            raise
        return Flown(outcome=outcome, reader=reader, head=head, body=body, coalesced=coalesced)

    async def _exchange(self, flight: Flight, journey: Journey, call: Call, dialect: Dialect) -> None:
        parts = self.parts
        fence, started_s = parts.store.fence, parts.clock.monotonic()
        try:
            head, fold = await self._relay(flight, journey, call, dialect)
        except UpstreamError as exc:
            parts.telemetry.upstream_errors.labels(exc.code).inc()
            raise
        fill_s = parts.clock.monotonic() - started_s
        parts.telemetry.upstream_seconds.observe(fill_s)
        match admit(journey.query.dialect, head.status, head.headers, fold.reply(), journey.plan):
            case Refuse(reason=reason):
                settlement = Settlement(stored=False, reason=reason)
            case Keep(reply=reply, ttl_s=ttl_s):
                settlement = await self._keep(journey, reply, fence=fence, ttl_s=ttl_s, fill_ms=fill_s * 1000)
        parts.telemetry.admissions.labels(str(settlement.stored).lower(), settlement.reason).inc()
        flight.settle(settlement)

    async def _relay(self, flight: Flight, journey: Journey, call: Call, dialect: Dialect) -> tuple[Head, Fold]:
        """Pass the backend's answer on to the flight, up to its clean end."""
        answer = await self.parts.upstream.send(call)
        async with answer:
            head = Head(status=answer.status, headers=answer.headers)
            if failed(head.status):
                self.flights.ground(flight)
            fold = dialect.fold(journey.query.wire, head.headers)
            flight.begin(head)
            try:
                async for chunk in answer.chunks():
                    await flight.write(fold.feed(chunk))
            finally:
                flight.append(fold.flush())
            if answer.ends_unmarked and _unfinished(fold.reply()):
                raise UpstreamBroken("the backend's answer ended before its own end mark")
            flight.end()
        return head, fold

    async def _keep(self, journey: Journey, reply: Reply, *, fence: int, ttl_s: float, fill_ms: float) -> Settlement:
        """Store first, then index: an id without a document would be a hint to nothing."""
        query, plan, parts = journey.query, journey.plan, self.parts
        embedder = parts.embedder
        if plan.embed and journey.embeddable and embedder is not None and journey.embedding is None:
            try:
                journey.embedding = await embedder.embed(query.text, scope=query.scope.tenant)
            except PartUnavailable as exc:
                self._failed(exc)
        embedding, now_s = journey.embedding, parts.clock.now()
        partition = Partition(
            category=plan.category, compatibility=query.compatibility, epoch=embedder.epoch if embedder else ""
        )
        entry = Entry(
            id=entry_id(query.fingerprint),
            fingerprint=query.fingerprint,
            partition=partition,
            tenant=query.scope.tenant,
            text=query.text,
            reply=reply,
            created_s=now_s,
            expires_s=now_s + ttl_s,
            fill_ms=fill_ms,
            unseen=embedding.unseen if embedding else b"",
            vector=embedding.vector if embedding else None,
            tags=query.controls.tags,
        )
        model = str(reply.body.get("model") or "")
        try:
            if not await parts.store.put(entry, fence):
                return Settlement(stored=False, reason="purged_meanwhile", model=model)
            if embedding is not None:
                parts.index.add(partition, entry.id, embedding.vector)
            if parts.store.over_cap:
                parts.make_room()
        except PartUnavailable as exc:
            kept = isinstance(exc, IndexUnavailable)
            return Settlement(stored=kept, reason=self._failed(exc), entry_id=entry.id if kept else "", model=model)
        return Settlement(stored=True, reason="kept", entry_id=entry.id, model=model)

    # Evidence

    def _hit(self, journey: Journey, entry: Entry, tier: Tier, reason: str, evidence: Lookup) -> Hit:
        evidence = replace(evidence, lookup_ms=self._elapsed_ms(journey))
        return Hit(entry=entry, tier=tier, category=journey.plan.category, reason=reason, evidence=evidence)

    def _miss(self, journey: Journey, reason: str, evidence: Lookup | None = None) -> Miss:
        evidence = replace(evidence or Lookup(), lookup_ms=self._elapsed_ms(journey))
        return Miss(category=journey.plan.category, reason=reason, evidence=evidence)

    def _elapsed_ms(self, journey: Journey) -> float:
        return (self.parts.clock.monotonic() - journey.started_s) * 1000

    def _failed(self, exc: PartUnavailable) -> str:
        self.parts.telemetry.part_failures.labels(exc.part).inc()
        log.warning("part_failed", part=exc.part, reason=exc.message)
        return f"{exc.part}_unavailable"

    def _count_violation(self, reason: str) -> None:
        if reason == "scope_violation":
            self.parts.telemetry.scope_violations.inc()
            log.error("scope_violated", what="a document of another scope was proposed and refused")


def _unfinished(reply: Reply | str) -> bool:
    return isinstance(reply, str) and reply in UNFINISHED


def entry_id(fingerprint: bytes) -> str:
    """Return the id of the entry that answers exactly this request: opaque, since its scope is keyed by the install."""
    return fingerprint[:16].hex()


def failed(status: int) -> bool:
    """Whether an answer says that the backend could not do it now, so that another try may help."""
    return status == 429 or status >= 500


def is_event_stream(headers: tuple[tuple[str, str], ...]) -> bool:
    """Whether an answer with these headers is a server-sent event stream."""
    return any(
        name.lower() == "content-type" and value.lower().startswith("text/event-stream") for name, value in headers
    )
