"""The tiers: what the cache holds, read by fingerprint, read by similarity, and written. It asks pure rules for all."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import structlog

from cacheproxy.contexts import Contexts
from cacheproxy.errors import EmbedderUnavailable, IndexUnavailable, PartUnavailable, VerifierUnavailable
from cacheproxy.flight import Settlement
from cacheproxy.model import (
    Asking,
    Classification,
    Destination,
    Entry,
    Hit,
    Judgement,
    Lookup,
    Miss,
    Partition,
    Stale,
    Tier,
)
from cacheproxy.policy.active import may_be_private, of_conversation
from cacheproxy.policy.decide import exact_reason, judge, near_enough
from cacheproxy.policy.freshness import freshness
from cacheproxy.policy.jitter import jittered
from cacheproxy.policy.plan import plan as plan_query
from cacheproxy.policy.share import common_tag, in_common, visible
from cacheproxy.query.chain import leading_questions
from cacheproxy.query.variant import variant, variant_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from cacheproxy.flight import Flights
    from cacheproxy.model import Candidate, Embedding, Looked, Plan, Query, Verification
    from cacheproxy.policy.active import Policy
    from cacheproxy.policy.admit import Keep, Lifetime
    from cacheproxy.ports import (
        Budget,
        Clock,
        Embedder,
        EntryStore,
        Feedback,
        Learning,
        LookupLog,
        PiiGate,
        Sharing,
        Upstream,
        VectorIndex,
        Verifier,
    )
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
    lookups: LookupLog | None = None
    pii: PiiGate | None = None
    verifier: Verifier | None = None
    budget: Budget | None = None
    learning: Learning | None = None
    sharing: Sharing | None = None
    may_keep: Callable[[str], bool] = field(default=lambda tenant: True)
    """Takes one of the answers that a tenant may have kept a minute; False when there is none left."""
    load: Callable[[str], float] = field(default=lambda model: 0.0)
    """How loaded the backend of a model is, 0 to 1."""
    resolve: Callable[[str], Destination] = field(default=lambda model: Destination(model=model))
    """Where requests for a model go."""


@dataclass(slots=True, kw_only=True)
class Journey:
    """One query on its way, with its embedding and its variant's key once they are known."""

    query: Query
    plan: Plan
    """Of the category, or while that is not known, the least narrow that it may turn out to be."""
    policy: Policy
    """The one in force when the query came: it is decided by this one to its end."""
    started_s: float
    told: Classification | None = None
    """Its category, as far as it is known."""
    settled: bool = True
    """Whether nothing that its text is near to can change the category any more."""
    load: float = 0.0
    seen: Classification | None = None
    """What its text turned out to be near to, where it was looked at."""
    embedding: Embedding | None = None
    placed: Embedding | None = None
    """The embedding in its conversation, where it has one: what it is looked for by, and kept under."""
    embeddable: bool = True
    """False once the embedder failed on it: the answer is then kept for exact matches, without trying again."""
    variant_key: bytes | None = None
    looked: Looked | None = None
    """The decision, as it was logged."""
    missed: Miss | None = None
    """What the backend was asked for."""
    origin: str = "backend"
    """Where the answer that is kept is from, as `Entry.origin`."""

    def settle(self, told: Classification, epoch: str | None) -> None:
        """Take a category for good, and the plan that goes with it."""
        self.plan = replace(plan_query(self.query, self.policy, epoch, told, self.load), failed=self.plan.failed)
        self.told, self.settled = told, True

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
        self._contexts = Contexts(parts.embedder, parts.verifier)

    @property
    def _epoch(self) -> str | None:
        return self._parts.embedder.epoch if self._parts.embedder else None

    async def exact(self, journey: Journey) -> Hit | Miss:
        """Look for the very same request; where its category is not known yet, its entry's own tells it."""
        query, plan = journey.query, journey.plan
        if not plan.exact:
            return self.miss(journey, plan.reason)
        try:
            entry = await self._find(journey)
        except PartUnavailable as exc:
            return self.miss(journey, self.failed(exc))
        if entry is None:
            return self.miss(journey, plan.reason or "no_entry")
        told = journey.told or self._filed(journey.policy, entry)
        if journey.told is None:
            plan = plan_query(query, journey.policy, self._epoch, told, journey.load)
            plan = replace(plan, failed=journey.plan.failed)
            if not plan.exact:
                return self.miss(journey, plan.reason)
        now_s = self._parts.clock.now()
        reason = exact_reason(entry, query, plan, now_s)
        if not reason and self.quarantined(entry, query.fingerprint):
            reason = "quarantined"
        if not reason and await self._orphaned(entry):
            reason = "no_entry"
        if reason:
            self._count_violation(reason)
            return self.miss(journey, reason)
        journey.plan, journey.told, journey.settled = plan, told, True
        stale = freshness(entry, plan, now_s).stale
        return self._hit(journey, entry, Tier.EXACT, "same_request", Lookup(), stale)

    async def classify(self, journey: Journey) -> Miss | None:
        """Settle the category by what the text is near to; return a miss where the encoder fails.

        The strictest policy of all applies then: the text may be of any category.
        """
        query, policy = journey.query, journey.policy
        texts = [text for text in (query.text, *(query.earlier if policy.cautious else ())) if text.strip()]
        try:
            seen = await self._seen(journey, texts)
        except PartUnavailable as exc:
            journey.settle(policy.settle(journey.told, [policy.unknown()]), self._epoch)
            self._forget_private(journey, texts)
            return self.miss(journey, self.failed(exc))
        if not query.text.strip():
            seen.insert(0, Classification(category=policy.pack.default_category))
        journey.seen = seen[0]
        journey.settle(policy.settle(journey.told, seen), self._epoch)
        self._forget_private(journey, texts)
        return None

    def give_up(self, journey: Journey) -> None:
        """Let the strictest policy apply to a query whose category could not be told in time."""
        if not journey.settled:
            journey.settle(journey.policy.settle(journey.told, [journey.policy.unknown()]), self._epoch)
            self._forget_private(journey, (journey.query.text, *journey.query.earlier))

    async def semantic(self, journey: Journey, found: Miss) -> Hit | Miss:
        """Look for a request that is near enough; without a hit, `found` stays where it tells more."""
        plan, embedder = journey.plan, self._parts.embedder
        if not plan.semantic or embedder is None:
            return found
        partitions = {
            category: Partition(category=category, compatibility=journey.query.compatibility, epoch=embedder.epoch)
            for category in plan.searched
        }
        try:
            embedding = await self._placed(journey)
            candidates = await self._near(partitions, embedding, plan.candidates)
            hit, judgements = await self._judge_all(journey, embedding, candidates)
        except PartUnavailable as exc:
            return self.miss(journey, self.failed(exc))
        best = hit[1] if hit else most_telling(judgements)
        evidence = Lookup(judgements=judgements)
        if best is not None:
            probability = best.verified.probability if best.verified else None
            evidence = replace(evidence, similarity=best.candidate.similarity, probability=probability)
        if hit is not None:
            return self._hit(journey, hit[0], Tier.SEMANTIC, "similar", evidence, hit[1].stale)
        reason = best.reason if best else "no_candidate"
        return self.miss(journey, found.reason if found.reason in _TELLING else reason, evidence)

    async def approved(self, journey: Journey, miss: Miss, entry_id: str) -> Hit | None:
        """Return the hit that a judge's approval makes of a refused candidate; it is looked at once more for that."""
        judgement = next((one for one in miss.evidence.judgements if one.candidate.entry_id == entry_id), None)
        if judgement is None or judgement.verified is None or judgement.verified.veto:
            return None
        plan = replace(journey.plan, min_probability=0.0)
        try:
            entry = await self._parts.store.get(entry_id)
            if entry is None or entry.partition.category not in plan.searched:
                return None
            embedding = await self._placed(journey)
            refusal = judge(
                judgement.candidate,
                entry,
                query=journey.query,
                plan=plan,
                partition=replace(entry.partition, compatibility=journey.query.compatibility),
                embedding=embedding,
                now_s=self._parts.clock.now(),
                verified=judgement.verified,
            )
            if not refusal.served or self.quarantined(entry, journey.query.fingerprint) or await self._orphaned(entry):
                return None
        except PartUnavailable as exc:
            self.failed(exc)
            return None
        return self._hit(journey, entry, Tier.SEMANTIC, "judged", miss.evidence, refusal.stale)

    async def shared(self, journey: Journey, found: Miss) -> Hit | Miss:
        """Look for what tenants share, where there is nothing of the caller's own; `found` tells why there is not.

        It is looked for as the caller's own is, in the scope that tenants share, and checked once more by itself.
        """
        query, terms = in_common(journey.query), journey.plan.shared
        if query is None or terms is None or found.reason in _TELLING:
            return found
        common = replace(journey, query=query, variant_key=None)
        hit = await self.exact(common)
        if isinstance(hit, Miss) and journey.placed is not None:
            hit = await self.semantic(common, hit)
        if isinstance(hit, Miss):
            return found
        entry = hit.entry
        if entry.tenant != query.scope.tenant or entry.origin != "shared":
            self._count_violation("scope_violation")
            return found
        # What the caller said of it is kept under the caller's own tenant and question.
        said = self.quarantined(replace(entry, tenant=journey.query.scope.tenant), journey.query.fingerprint)
        if said or not visible(entry, journey.query.scope.tenant, terms):
            return found
        similarity = 1.0 if hit.evidence.similarity is None else hit.evidence.similarity
        return replace(hit, reason="shared", evidence=replace(hit.evidence, similarity=similarity))

    async def keep(self, journey: Journey, kept: Keep, *, fence: int, fill_ms: float) -> Settlement:
        """Store first, then index: an id without a document would be a hint to nothing."""
        query, plan, parts, life = journey.query, journey.plan, self._parts, kept.life
        embedder = parts.embedder
        if not parts.may_keep(query.scope.tenant):
            return Settlement(stored=False, reason="insert_rate", model=str(kept.reply.body.get("model") or ""))
        if plan.check_pii and (refusal := await self._private(journey, kept)):
            return Settlement(stored=False, reason=refusal, model=str(kept.reply.body.get("model") or ""))
        embedding = None
        if plan.embed and journey.embeddable and embedder is not None:
            try:
                embedding = await self._placed(journey)
            except PartUnavailable as exc:
                self.failed(exc)
        now_s = parts.clock.now()
        partition = Partition(
            category=plan.category, compatibility=query.compatibility, epoch=embedder.epoch if embedder else ""
        )
        own = life.ttl_s == plan.ttl_s  # and not the backend's word
        ttl_s = jittered(life.ttl_s, plan.ttl_jitter, query.fingerprint) if own else life.ttl_s
        expires_s = now_s + ttl_s
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
                tags=(*query.controls.tags, *_sharable(journey, life, embedding)),
                namespace=query.scope.namespace,
                model=query.model,
                user=query.user,
                second=plan.second,
                chain=query.chain if embedding else (),
                origin=journey.origin,
                policy=journey.policy.version,
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
        if parts.sharing is not None:
            parts.sharing.kept(query, plan, entry)
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

    async def _orphaned(self, entry: Entry) -> bool:
        """Whether an entry repeats the answer of another one that was removed: then it goes with it."""
        if not entry.alias_of:
            return False
        try:
            return await self._parts.store.get(entry.alias_of) is None
        except PartUnavailable as exc:
            self.failed(exc)
            return True

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

    async def _embedded(self, journey: Journey) -> Embedding:
        """Return the embedding of the question, made once. Raises EmbedderUnavailable."""
        embedder = self._parts.embedder
        if embedder is None:
            raise EmbedderUnavailable("there is no encoder")
        if journey.embedding is None:
            journey.embeddable = False  # unless the next line returns
            journey.embedding = await embedder.embed(journey.query.text, scope=journey.query.scope.tenant)
            journey.embeddable = True
        return journey.embedding

    async def _placed(self, journey: Journey) -> Embedding:
        """Return the embedding of the question in its conversation, made once. Raises EmbedderUnavailable."""
        if journey.placed is None:
            journey.placed = await self._contexts.placed(journey.query, await self._embedded(journey))
        return journey.placed

    async def _seen(self, journey: Journey, texts: Sequence[str]) -> list[Classification]:
        """Return what each text is near to; the question's own embedding is kept for the lookup."""
        embedder, classify, query = self._parts.embedder, journey.policy.classify, journey.query
        if embedder is None or classify is None:
            raise EmbedderUnavailable("there is no encoder to classify by")
        seen = []
        for text in texts:
            own = text == query.text
            embedding = await (self._embedded(journey) if own else embedder.embed(text, scope=query.scope.tenant))
            seen.append(classify(embedding.vector))
        if query.chain and query.text.strip():
            whole = classify(await self._contexts.about(query, await self._embedded(journey)))
            seen = [of_conversation(whole, seen[0]), whole, *seen]
        return seen

    def _forget_private(self, journey: Journey, texts: Iterable[str]) -> None:
        """Keep no embedding of what turned out not to be cached."""
        embedder = self._parts.embedder
        if embedder is not None and not (journey.plan.lookup or journey.plan.store):
            journey.embedding = journey.placed = None
            for text in {*texts, *leading_questions(journey.query.chain)}:
                embedder.drop(text, scope=journey.query.scope.tenant)

    def _filed(self, policy: Policy, entry: Entry) -> Classification:
        """Return the category that an entry was kept under, as what the very same request is of."""
        known = policy.pack.categories
        category = entry.partition.category
        if category not in known:
            return Classification(category=policy.pack.default_category)  # and the entry is of another one
        return Classification(category=category, second=entry.second if entry.second in known else "", source="entry")

    async def _near(
        self, partitions: Mapping[str, Partition], embedding: Embedding, k: int
    ) -> list[tuple[Candidate, Partition]]:
        """Return the nearest of all partitions, nearest first, each with the one it was found in."""
        found: list[tuple[Candidate, Partition]] = []
        for partition in partitions.values():
            near = await self._parts.index.search(partition, embedding.vector, k)
            found += [(candidate, partition) for candidate in near]
        return sorted(found, key=lambda one: one[0].similarity, reverse=True)[:k] if len(partitions) > 1 else found

    async def _private(self, journey: Journey, kept: Keep) -> str:
        """Return why personal data forbids keeping an answer, or ""; what cannot be looked through is not kept."""
        if self._parts.pii is None:
            return "pii_unavailable"
        try:
            told = (journey.query.text, journey.query.chain if journey.plan.embed else (), kept.reply.body)
            kinds = await self._parts.pii.find(told, journey.plan.check_pii)
        except PartUnavailable as exc:
            return self.failed(exc)
        return "pii" if kinds else ""

    async def _judge_all(
        self, journey: Journey, embedding: Embedding, candidates: Sequence[tuple[Candidate, Partition]]
    ) -> tuple[tuple[Entry, Judgement] | None, tuple[Judgement, ...]]:
        """Judge what was found; return what is served, a fresh entry before a stale one, then the most probable one."""
        found = [await self._document(journey, candidate) for candidate, _ in candidates]
        if journey.query.chain and not journey.plan.verify:
            candidates = [
                (await self._plainly(journey, *one), one[0][1]) for one in zip(candidates, found, strict=True)
            ]
        judged = [
            await self._judged(journey, embedding, *one, entry) for one, entry in zip(candidates, found, strict=True)
        ]
        unsure = [place for place, judgement in enumerate(judged) if judgement.reason == "not_verified"]
        if unsure:
            words = await self._verified(journey, embedding, [(found[at], judged[at].candidate) for at in unsure])
            for at, verified in zip(unsure, words, strict=True):
                judged[at] = await self._judged(journey, embedding, *candidates[at], found[at], verified)
        for judgement in judged:
            if judgement.reason == "document_missing":
                self._parts.index.remove([judgement.candidate.entry_id])
                self._parts.telemetry.repairs.inc()
            self._count_violation(judgement.reason)
        servable = [(entry, one) for entry, one in zip(found, judged, strict=True) if one.served and entry is not None]
        best = max(servable, key=lambda one: (one[1].stale is Stale.NO, _rank(one[1])), default=None)
        return best, tuple(judged)

    async def _document(self, journey: Journey, candidate: Candidate) -> Entry | None:
        return await self._parts.store.get(candidate.entry_id) if near_enough(candidate, journey.plan) else None

    async def _plainly(self, journey: Journey, found: tuple[Candidate, Partition], entry: Entry | None) -> Candidate:
        """Return a candidate as near as its own question is: thresholds are of questions, not of conversations."""
        if entry is None or entry.chain != journey.query.chain:
            return found[0]
        near = await self._contexts.plainly(journey.query, await self._embedded(journey), entry)
        return replace(found[0], similarity=near)

    async def _judged(
        self,
        journey: Journey,
        embedding: Embedding,
        candidate: Candidate,
        partition: Partition,
        entry: Entry | None,
        verified: Verification | None = None,
    ) -> Judgement:
        if entry is not None and self.quarantined(entry, journey.query.fingerprint):
            return Judgement(candidate=candidate, served=False, reason="quarantined", verified=verified)
        judgement = judge(
            candidate,
            entry,
            query=journey.query,
            plan=journey.plan,
            partition=partition,
            embedding=embedding,
            now_s=self._parts.clock.now(),
            verified=verified,
        )
        if judgement.served and entry is not None and await self._orphaned(entry):
            return replace(judgement, served=False, reason="source_removed")
        budget = self._parts.budget
        if judgement.served and verified is not None and budget is not None:
            allowed = budget.allows(journey.plan, candidate.entry_id, verified)
            return judgement if allowed else replace(judgement, served=False, reason="over_budget")
        return judgement

    async def _verified(
        self, journey: Journey, embedding: Embedding, kept: Sequence[tuple[Entry | None, Candidate]]
    ) -> list[Verification]:
        """Return what the verifier says of entries. Raises VerifierUnavailable."""
        verifier = self._parts.verifier
        if verifier is None:
            raise VerifierUnavailable("there is no verifier")
        if journey.query.chain:
            pairs = [(entry, candidate) for entry, candidate in kept if entry is not None]
            return await self._contexts.verified(journey.query, pairs, journey.plan.threshold)
        asked = Asking(text=journey.query.text, vector=embedding.vector)
        return await verifier.verify(
            asked,
            [
                (Asking(text=entry.text, vector=entry.vector), candidate.similarity)
                for entry, candidate in kept
                if entry is not None
            ],
        )

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


def _sharable(journey: Journey, life: Lifetime, embedding: Embedding | None) -> tuple[str, ...]:
    """Return the tag of an answer that tenants may come to share, or nothing: where it may be private, above all."""
    common, seen = journey.query.common, journey.seen
    if journey.plan.shared is None or common is None or embedding is None or life.vary:
        return ()
    return () if seen is not None and may_be_private(journey.policy, seen) else (common_tag(common),)


def _rank(judgement: Judgement) -> tuple[float, float]:
    probability = judgement.verified.probability if judgement.verified else 0.0
    return probability, judgement.candidate.similarity


def most_telling(judgements: Sequence[Judgement]) -> Judgement | None:
    """Return the candidate that says most about why nothing is served: the most probable one, else the nearest."""
    verified = [judgement for judgement in judgements if judgement.verified]
    return max(verified, key=_rank) if verified else next(iter(judgements), None)
