"""The tiers: what the cache holds, read by fingerprint, read by similarity, and written. It asks pure rules for all."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import structlog

from cacheproxy.errors import IndexUnavailable, PartUnavailable
from cacheproxy.flight import Settlement
from cacheproxy.model import Destination, Entry, Hit, Judgement, Lookup, Miss, Partition, Stale, Tier
from cacheproxy.policy.decide import exact_reason, judge, near_enough
from cacheproxy.policy.freshness import freshness
from cacheproxy.query.variant import variant, variant_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from cacheproxy.flight import Flights
    from cacheproxy.model import Candidate, Embedding, Plan, Query
    from cacheproxy.policy.admit import Keep
    from cacheproxy.ports import Clock, Embedder, EntryStore, Feedback, Upstream, VectorIndex
    from cacheproxy.telemetry import Telemetry

log = structlog.get_logger()

# What the exact tier says of the very same request tells more than what is near it.
_TELLING = frozenset({"expired", "too_old", "not_fresh_enough", "vary", "quarantined", "no_usage"})
_STALE_REASONS = {Stale.ASKED: "max_stale", Stale.REVALIDATING: "stale_while_revalidate"}


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
    feedback: Feedback | None = None
    resolve: Callable[[str], Destination] = field(default=lambda model: Destination(model=model))
    """Where requests for a model go."""


@dataclass(slots=True, kw_only=True)
class Journey:
    """One query on its way, with its embedding and its variant's key once they are known."""

    query: Query
    plan: Plan
    started_s: float
    embedding: Embedding | None = None
    embeddable: bool = True
    """False once the embedder failed on it: the answer is then kept for exact matches, without trying again."""
    variant_key: bytes | None = None

    @property
    def key(self) -> bytes:
        """What two requests must share to be answered by one exchange with the backend."""
        return self.variant_key or self.query.fingerprint


class Tiers:
    """Reads and writes what is kept; a failing part means a miss, or an answer that is not kept."""

    def __init__(self, parts: Parts, flights: Flights, *, settle_timeout_s: float) -> None:
        self._parts = parts
        self._flights = flights
        self._settle_timeout_s = settle_timeout_s

    async def exact(self, journey: Journey) -> Hit | Miss:
        """Look for the very same request."""
        query, plan = journey.query, journey.plan
        if not plan.exact:
            return self.miss(journey, plan.reason)
        try:
            entry = await self._find(journey)
        except PartUnavailable as exc:
            return self.miss(journey, self.failed(exc))
        if entry is None:
            return self.miss(journey, plan.reason or "no_entry")
        now_s = self._parts.clock.now()
        reason = exact_reason(entry, query, plan, now_s)
        if not reason and self.quarantined(entry, query.fingerprint):
            reason = "quarantined"
        if reason:
            self._count_violation(reason)
            return self.miss(journey, reason)
        stale = freshness(entry, plan, now_s).stale
        return self._hit(journey, entry, Tier.EXACT, "same_request", Lookup(), stale)

    async def semantic(self, journey: Journey, found: Miss) -> Hit | Miss:
        """Look for a request that is near enough; without a hit, `found` stays where it tells more."""
        query, plan, embedder = journey.query, journey.plan, self._parts.embedder
        if not plan.semantic or embedder is None:
            return found
        partition = Partition(category=plan.category, compatibility=query.compatibility, epoch=embedder.epoch)
        try:
            if journey.embedding is None:
                journey.embeddable = False  # unless the next line returns
                journey.embedding = await embedder.embed(query.text, scope=query.scope.tenant)
            candidates = await self._parts.index.search(partition, journey.embedding.vector, plan.candidates)
            hit, judgements = await self._judge_all(journey, partition, journey.embedding, candidates)
        except PartUnavailable as exc:
            return self.miss(journey, self.failed(exc))
        similarity = judgements[0].candidate.similarity if judgements else None
        evidence = Lookup(similarity=similarity, judgements=judgements)
        if hit is not None:
            entry, judgement = hit
            evidence = replace(evidence, similarity=judgement.candidate.similarity)
            return self._hit(journey, entry, Tier.SEMANTIC, "similar", evidence, judgement.stale)
        reason = judgements[0].reason if judgements else "no_candidate"
        return self.miss(journey, found.reason if found.reason in _TELLING else reason, evidence)

    async def keep(self, journey: Journey, kept: Keep, *, fence: int, fill_ms: float) -> Settlement:
        """Store first, then index: an id without a document would be a hint to nothing."""
        query, plan, parts, life = journey.query, journey.plan, self._parts, kept.life
        embedder = parts.embedder
        if plan.embed and journey.embeddable and embedder is not None and journey.embedding is None:
            try:
                journey.embedding = await embedder.embed(query.text, scope=query.scope.tenant)
            except PartUnavailable as exc:
                self.failed(exc)
        embedding, now_s = journey.embedding, parts.clock.now()
        partition = Partition(
            category=plan.category, compatibility=query.compatibility, epoch=embedder.epoch if embedder else ""
        )
        expires_s = now_s + life.ttl_s
        model = str(kept.reply.body.get("model") or "")
        kept_id = ""
        try:
            entry = Entry(
                id=entry_id(await self._place(query, life.vary, now_s)),
                fingerprint=query.fingerprint,
                partition=partition,
                tenant=query.scope.tenant,
                text=query.text,
                reply=kept.reply,
                created_s=now_s - life.age_s,
                expires_s=expires_s,
                stale_until_s=expires_s + life.stale_s,
                revalidate_s=life.revalidate_s,
                on_error_s=life.on_error_s,
                vary=life.vary,
                variant=variant(query, life.vary),
                fill_ms=fill_ms,
                unseen=embedding.unseen if embedding else b"",
                vector=embedding.vector if embedding else None,
                tags=query.controls.tags,
            )
            if not await parts.store.put(entry, fence):
                return Settlement(stored=False, reason="purged_meanwhile", model=model)
            kept_id = entry.id
            if embedding is not None:
                parts.index.add(partition, entry.id, embedding.vector)
            if parts.store.over_cap:
                parts.make_room()
        except PartUnavailable as exc:
            stored = bool(kept_id) and isinstance(exc, IndexUnavailable)
            return Settlement(stored=stored, reason=self.failed(exc), entry_id=kept_id if stored else "", model=model)
        if parts.feedback is not None:
            parts.feedback.kept(str(kept.reply.body.get("id") or ""), query, entry)
        return Settlement(stored=True, reason="kept", entry_id=entry.id, model=model)

    def quarantined(self, entry: Entry, question: bytes) -> bool:
        """Whether a caller said that this entry is no answer to this question (an exact fingerprint)."""
        feedback = self._parts.feedback
        return feedback is not None and feedback.quarantined(entry, question)

    def miss(self, journey: Journey, reason: str, evidence: Lookup | None = None) -> Miss:
        """Return a miss with the time it took to find out."""
        evidence = self._told(journey, evidence or Lookup())
        return Miss(category=journey.plan.category, reason=reason, evidence=evidence)

    def failed(self, exc: PartUnavailable) -> str:
        """Count a part's failure; return the reason that a caller reads."""
        self._parts.telemetry.part_failures.labels(exc.part).inc()
        log.warning("part_failed", part=exc.part, reason=exc.message)
        return f"{exc.part}_unavailable"

    async def _find(self, journey: Journey) -> Entry | None:
        """Return the entry of this request: of its variant, where the backend chose its answer by headers."""
        query, store = journey.query, self._parts.store
        await self._landed(query.fingerprint)
        first = await store.get(entry_id(query.fingerprint))
        if first is None or not first.vary:
            return first
        digest = variant(query, first.vary)
        journey.variant_key = variant_key(query, digest)
        if digest == first.variant:
            return first
        await self._landed(journey.variant_key)
        return await store.get(entry_id(journey.variant_key)) or first

    async def _landed(self, key: bytes) -> None:
        flight = self._flights.find(key)
        if flight is not None and flight.ended:
            await flight.settled(self._settle_timeout_s)  # its answer is being stored right now

    async def _place(self, query: Query, vary: tuple[str, ...], now_s: float) -> bytes:
        """Return the key to keep an answer under: the request's own, or its variant's beside a fresh first one."""
        if not vary:
            return query.fingerprint
        first = await self._parts.store.get(entry_id(query.fingerprint))
        if first is None or first.vary != vary or now_s >= first.expires_s:
            return query.fingerprint
        digest = variant(query, vary)
        return query.fingerprint if digest == first.variant else variant_key(query, digest)

    async def _judge_all(
        self, journey: Journey, partition: Partition, embedding: Embedding, candidates: list[Candidate]
    ) -> tuple[tuple[Entry, Judgement] | None, tuple[Judgement, ...]]:
        """Judge the nearest first, up to the first that is served; a fresh one goes before a nearer stale one."""
        judgements: list[Judgement] = []
        stale: tuple[Entry, Judgement] | None = None
        for candidate in candidates:
            near = near_enough(candidate, journey.plan)
            entry = await self._parts.store.get(candidate.entry_id) if near else None
            if entry is not None and self.quarantined(entry, journey.query.fingerprint):
                judgements.append(Judgement(candidate=candidate, served=False, reason="quarantined"))
                continue
            judgement = judge(
                candidate,
                entry,
                query=journey.query,
                plan=journey.plan,
                partition=partition,
                embedding=embedding,
                now_s=self._parts.clock.now(),
            )
            judgements.append(judgement)
            if judgement.served and entry is not None:
                if judgement.stale is Stale.NO:
                    return (entry, judgement), tuple(judgements)
                stale = stale or (entry, judgement)
            if judgement.reason == "document_missing":
                self._parts.index.remove([candidate.entry_id])
                self._parts.telemetry.repairs.inc()
            self._count_violation(judgement.reason)
        return stale, tuple(judgements)

    def _hit(self, journey: Journey, entry: Entry, tier: Tier, reason: str, evidence: Lookup, stale: Stale) -> Hit:
        return Hit(
            entry=entry,
            tier=tier,
            category=journey.plan.category,
            reason=_STALE_REASONS.get(stale, reason),
            evidence=self._told(journey, evidence),
            stale=stale,
        )

    def _told(self, journey: Journey, evidence: Lookup) -> Lookup:
        """Return the evidence with the threshold, where one applies to this request, whatever tier ended the lookup."""
        threshold = journey.plan.threshold if journey.plan.semantic else None
        return replace(evidence, threshold=threshold, lookup_ms=self._elapsed_ms(journey))

    def _elapsed_ms(self, journey: Journey) -> float:
        return (self._parts.clock.monotonic() - journey.started_s) * 1000

    def _count_violation(self, reason: str) -> None:
        if reason == "scope_violation":
            self._parts.telemetry.scope_violations.inc()
            log.error("scope_violated", what="a document of another scope was proposed and refused")


def entry_id(fingerprint: bytes) -> str:
    """Return the id of the entry that answers exactly this request: opaque, since its scope is keyed by the install."""
    return fingerprint[:16].hex()
