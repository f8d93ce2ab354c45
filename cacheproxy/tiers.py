"""The tiers: what the cache holds, read by fingerprint, read by similarity, and written. It asks pure rules for all."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

from cacheproxy.categories import Categories, filed
from cacheproxy.contexts import Contexts
from cacheproxy.errors import IndexUnavailable, PartUnavailable
from cacheproxy.filing import Filing, entry_of, private
from cacheproxy.flight import Settlement
from cacheproxy.judging import Judging, orphaned, quarantined
from cacheproxy.model import Hit, Lookup, Miss, Partition, Stale, Tier, entry_id
from cacheproxy.policy.decide import exact_reason
from cacheproxy.policy.freshness import freshness
from cacheproxy.policy.share import in_common, visible
from cacheproxy.query.variant import variant, variant_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from cacheproxy.flight import Flights
    from cacheproxy.journey import Journey
    from cacheproxy.model import Candidate, Embedding, Entry, Plan, Query
    from cacheproxy.parts import Parts
    from cacheproxy.policy.admit import Keep

# What the exact tier says of the very same request tells more than what is near it.
_TELLING = frozenset({"expired", "too_old", "not_fresh_enough", "vary", "quarantined", "no_usage"})
_NOTHING = Lookup()
_STALE_REASONS = {Stale.ASKED: "max_stale", Stale.REVALIDATING: "stale_while_revalidate"}


class Tiers:
    """Reads and writes what is kept; a failing part means a miss, or an answer that is not kept."""

    def __init__(self, parts: Parts, flights: Flights, *, settle_timeout_s: float) -> None:
        self._parts = parts
        self._flights = flights
        self._settle_timeout_s = settle_timeout_s
        self._contexts = Contexts(parts.embedder, parts.verifier, parts.index.encoder)
        self._categories = Categories(parts, self._contexts)
        self._judging = Judging(parts, self._contexts)

    async def exact(self, journey: Journey) -> Hit | Miss:
        """Look for the very same request; where its category is not known yet, its entry's own tells it."""
        query, plan = journey.query, journey.plan
        if not plan.exact:
            return self.miss(journey, plan.reason)
        try:
            entry = await self._find(journey)
        except PartUnavailable as exc:
            return self.miss(journey, self._parts.failed(exc))
        if entry is None:
            return self.miss(journey, plan.reason or "no_entry")
        told = journey.told or filed(journey.policy, entry)
        if journey.told is None:
            plan = journey.planned(told, self._parts.epoch)
            if not plan.exact:
                return self.miss(journey, plan.reason)
        now_s = self._parts.clock.now()
        reason = exact_reason(entry, query, plan, now_s)
        if not reason and quarantined(self._parts, entry, query.fingerprint):
            reason = "quarantined"
        if not reason and await orphaned(self._parts, entry):
            reason = "no_entry"
        if reason:
            self._parts.count_violation(reason)
            return self.miss(journey, reason)
        journey.plan, journey.told, journey.settled = plan, told, True
        stale = freshness(entry, plan, now_s).stale
        return self._hit(journey, entry, Tier.EXACT, "same_request", _NOTHING, stale)

    async def classify(self, journey: Journey) -> Miss | None:
        """Settle the category by what the text is near to; return a miss where the encoder fails.

        The strictest policy of all applies then: the text may be of any category.
        """
        try:
            await self._categories.classify(journey)
        except PartUnavailable as exc:
            return self.miss(journey, self._parts.failed(exc))
        return None

    def give_up(self, journey: Journey) -> None:
        """Let the strictest policy apply to a query whose category could not be told in time."""
        self._categories.give_up(journey)

    async def semantic(self, journey: Journey, found: Miss) -> Hit | Miss:
        """Look for a request that is near enough; without a hit, `found` stays where it tells more."""
        plan, embedder = journey.plan, self._parts.embedder
        if not plan.semantic or embedder is None:
            return found
        partitions = [
            Partition(category=category, compatibility=journey.query.compatibility, epoch=embedder.epoch)
            for category in dict.fromkeys(plan.searched)
        ]
        stages, began_s = self._parts.telemetry.stages, perf_counter()
        try:
            embedding = await self._contexts.placed(journey)
            sought = await self._contexts.sought(journey)
            began_s = stages.embed.since(began_s)
            candidates = await self._near(partitions, sought, plan)
            began_s = stages.search.since(began_s)
            judged = await self._judging.judge_all(journey, embedding, candidates)
            stages.judge.since(began_s)
        except PartUnavailable as exc:
            return self.miss(journey, self._parts.failed(exc))
        best, evidence = judged.best, Lookup(judgements=judged.judgements)
        if best is not None:
            probability = best.verified.probability if best.verified else None
            evidence = replace(evidence, similarity=best.candidate.similarity, probability=probability)
        if judged.served is not None:
            entry, judgement = judged.served
            return self._hit(journey, entry, Tier.SEMANTIC, "similar", evidence, judgement.stale)
        reason = best.reason if best else "no_candidate"
        return self.miss(journey, found.reason if found.reason in _TELLING else reason, evidence)

    async def approved(self, journey: Journey, miss: Miss, entry_id: str) -> Hit | None:
        """Return the hit that a judge's approval makes of a refused candidate; it is looked at once more for that."""
        judgement = next((one for one in miss.evidence.judgements if one.candidate.entry_id == entry_id), None)
        if judgement is None or judgement.verified is None or judgement.verified.veto:
            return None
        try:
            approved = await self._judging.approved(journey, judgement)
        except PartUnavailable as exc:
            self._parts.failed(exc)
            return None
        if approved is None:
            return None
        entry, stale = approved
        hit = self._hit(journey, entry, Tier.SEMANTIC, "judged", miss.evidence, stale)
        return hit if isinstance(hit, Hit) else None

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
            self._parts.count_violation("scope_violation")
            return found
        # What the caller said of it is kept under the caller's own tenant and question.
        own = replace(entry, tenant=journey.query.scope.tenant)
        said = quarantined(self._parts, own, journey.query.fingerprint)
        if said or not visible(entry, journey.query.scope.tenant, terms):
            return found
        similarity = 1.0 if hit.evidence.similarity is None else hit.evidence.similarity
        return replace(hit, reason="shared", evidence=replace(hit.evidence, similarity=similarity))

    async def keep(self, journey: Journey, kept: Keep, *, fence: int, fill_ms: float) -> Settlement:
        """Store first, then index: an id without a document would be a hint to nothing."""
        query, plan, parts = journey.query, journey.plan, self._parts
        model = str(kept.reply.body.get("model") or "")
        if not parts.may_keep(query.scope.tenant):
            return Settlement(stored=False, reason="insert_rate", model=model)
        if refusal := await self._private(journey, kept):
            return Settlement(stored=False, reason=refusal, model=model)
        embedding = await self._kept_by(journey)
        now_s, kept_id = parts.clock.now(), ""
        try:
            filing = Filing(
                key=await self._place(query, kept.life.vary, now_s),
                now_s=now_s,
                fill_ms=fill_ms,
                epoch=parts.embedder.epoch if parts.embedder else "",
                embedding=embedding,
            )
            entry = entry_of(journey, kept, filing)
            if not await parts.store.put(entry, fence):
                return Settlement(stored=False, reason="purged_meanwhile", model=model)
            kept_id = entry.id
            if embedding is not None:
                parts.index.add(entry.partition, entry.id, embedding.vector, journey.sought)
            if parts.store.over_cap:
                parts.make_room()
        except PartUnavailable as exc:
            stored = bool(kept_id) and isinstance(exc, IndexUnavailable)
            reason = parts.failed(exc)
            return Settlement(stored=stored, reason=reason, entry_id=kept_id if stored else "", model=model)
        if parts.feedback is not None:
            parts.feedback.kept(str(kept.reply.body.get("id") or ""), query, entry)
        if parts.sharing is not None:
            parts.sharing.kept(query, plan, entry)
        return Settlement(stored=True, reason="kept", entry_id=entry.id, model=model)

    async def holds(self, journey: Journey) -> bool:
        """Whether a fresh answer to the very same request is kept that the small model did not give.

        Another caller may have got it meanwhile, or this one may have wanted a newer one. Where the store fails to
        tell, it is.
        """
        try:
            entry = await self._parts.store.get(entry_id(journey.key))
        except PartUnavailable as exc:
            self._parts.failed(exc)
            return True
        return entry is not None and entry.origin != "augmented" and self._parts.clock.now() < entry.expires_s

    def miss(self, journey: Journey, reason: str, evidence: Lookup | None = None) -> Miss:
        """Return a miss with the time it took to find out."""
        evidence = self._told(journey, evidence or _NOTHING)
        return Miss(category=journey.plan.category, reason=reason, evidence=evidence)

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

    async def _kept_by(self, journey: Journey) -> Embedding | None:
        """Return the embedding that an answer is kept under; None where it serves the exact tier only."""
        if not journey.plan.embed or not journey.embeddable or self._parts.embedder is None:
            return None
        try:
            return await self._contexts.placed(journey)
        except PartUnavailable as exc:
            self._parts.failed(exc)
            return None

    async def _near(
        self, partitions: Sequence[Partition], vector: NDArray[np.float32], plan: Plan
    ) -> list[tuple[Candidate, Partition]]:
        """Return the nearest of all partitions, nearest first, each with the one it was found in.

        They are searched in the epoch that the plan was made for: its threshold means nothing in another one.
        """
        found: list[tuple[Candidate, Partition]] = []
        k = plan.candidates
        for partition in partitions:
            where = partition if partition.epoch == plan.epoch else replace(partition, epoch=plan.epoch)
            near = await self._parts.index.search(where, vector, k)
            found += [(candidate, partition) for candidate in near]
        return sorted(found, key=lambda one: one[0].similarity, reverse=True)[:k] if len(partitions) > 1 else found

    async def _private(self, journey: Journey, kept: Keep) -> str:
        told = (journey.query.text, journey.query.chain if journey.plan.embed else (), kept.reply.body)
        return await private(self._parts, told, journey.plan.check_pii)

    def _hit(
        self, journey: Journey, entry: Entry, tier: Tier, reason: str, evidence: Lookup, stale: Stale
    ) -> Hit | Miss:
        """Return a hit, unless its entry was removed while others had their say: verifiers take their time."""
        if not self._parts.store.still_holds(entry, journey.fence):
            return self.miss(journey, "no_entry", evidence)
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
        return Lookup(
            similarity=evidence.similarity,
            threshold=journey.plan.threshold if journey.plan.semantic else None,
            probability=evidence.probability,
            judgements=evidence.judgements,
            lookup_ms=self._elapsed_ms(journey),
        )

    def _elapsed_ms(self, journey: Journey) -> float:
        return (self._parts.clock.monotonic() - journey.started_s) * 1000
