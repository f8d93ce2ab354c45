"""The straight line: plan, exact, semantic, flight. It holds no rule of its own; it asks pure functions, hands on.

What the backend answers comes by `joining.py` and `fetching.py`.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from cacheproxy.errors import AnsweredElsewhere, CacheProxyError, LookupBroke, LookupTooSlow, UpstreamError
from cacheproxy.fetching import Fetching
from cacheproxy.joining import Flown, Joining
from cacheproxy.journey import Journey
from cacheproxy.judging import most_telling
from cacheproxy.model import Bypass, Hit, Looked, Miss, Stale
from cacheproxy.policy.edit import told_by
from cacheproxy.policy.freshness import may_rescue
from cacheproxy.policy.plan import plan as plan_query
from cacheproxy.policy.plan import possible
from cacheproxy.policy.price import saved_usd
from cacheproxy.policy.teach import untaught
from cacheproxy.query.known import Known
from cacheproxy.query.recent import RecentQuestions
from cacheproxy.query.variant import selectable
from cacheproxy.tiers import Tiers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable

    from cacheproxy.augmenting import Considered
    from cacheproxy.errors import PartUnavailable
    from cacheproxy.flight import Flight, Flights, Reader, Settlement
    from cacheproxy.model import Outcome, Query
    from cacheproxy.offloading import Offloading
    from cacheproxy.parts import Parts
    from cacheproxy.policy.active import Policy
    from cacheproxy.policy.pack import Pack
    from cacheproxy.ports import Call, Dialect, Fold
    from cacheproxy.relay import Relayed

_MOST_REFRESHES = 64
"""Most answers fetched anew in the background at a time; beyond it a stale one stays as it is for now."""
_UNTIL_HEARD_S = (0.0, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16)
"""Pauses between looks for what another replica kept: what it tells is heard within milliseconds."""
_EXCUSES = frozenset({429, 500, 502, 503, 504, *range(520, 531)})
"""What counts as a failure that a stale answer may stand in for: RFC 5861 section 4, overload, and what CDNs add."""

F = TypeVar("F", bound="Fold")

_log = structlog.get_logger()


class Pipeline:
    """Answers queries from the cache, or lets the backend answer and keeps what may be kept."""

    def __init__(
        self,
        parts: Parts,
        policy: Callable[[], Policy],
        flights: Flights,
        *,
        lookup_timeout_s: float,
        coalesce_timeout_s: float,
        settle_timeout_s: float = 1.0,
        offloading: Offloading | None = None,
    ) -> None:
        self.parts = parts
        self.policy = policy
        self.flights = flights
        self.known = Known[Any]()
        """Of the edge: what it understood of requests whose answer is kept."""
        self._recent = RecentQuestions()
        self.tiers = Tiers(parts, flights, settle_timeout_s=settle_timeout_s)
        self._joining = Joining(flights, parts.telemetry, timeout_s=coalesce_timeout_s)
        self._offloading = offloading
        self._fetching = Fetching(parts, flights, self.tiers, self.still_kept, offloading)
        self._lookup_timeout_s = lookup_timeout_s
        self._coalesce_timeout_s = coalesce_timeout_s
        self._settle_timeout_s = settle_timeout_s

    def pack(self) -> Pack:
        """Return the pack in force."""
        return self.policy().pack

    def set_out(self, query: Query, headers: Iterable[tuple[bytes, bytes]] = (), user: str = "") -> Journey:
        """Plan one query, sent with these headers for this end user (a digest), under the policy in force now.

        Raises InvalidRequest for a category the pack does not have.
        """
        choosing = selectable(headers)
        if query.headers != choosing or query.user != user:  # else it is of a request that is known
            query = replace(query, headers=choosing, user=user)
        policy, epoch, load = self.policy(), self.parts.epoch, self.parts.load(query.model)
        told = policy.told(query)
        return Journey(
            query=query,
            plan=possible(query, policy, epoch) if told is None else plan_query(query, policy, epoch, told, load),
            policy=policy,
            told=told,
            settled=policy.settled(told),
            load=load,
            started_s=self.parts.clock.monotonic(),
            fence=self.parts.store.fence,
        )

    async def look_up(self, journey: Journey, *, remember: bool = True) -> Outcome:
        """Ask the tiers that the plan allows, within the lookup budget; nothing is changed but repairs of the index.

        Without `remember` nobody will know that the question was asked. Raises Overloaded where more come than can be
        answered in time, and the exact tier has nothing; never without `remember`: an operator looks into that very
        trouble.
        """
        if self._offloading is not None and journey.query.controls.no_cache and remember:
            self._offloading.asked_again(journey.query)
        outcome: Outcome = Bypass(category=journey.plan.category, reason=journey.plan.reason)
        if journey.plan.lookup or journey.plan.store:
            try:
                async with asyncio.timeout(self._lookup_timeout_s):
                    outcome = await self._look_up(journey, callers=remember)
            except TimeoutError:
                outcome = self._gone_on(journey, LookupTooSlow("the lookup took longer than its budget"))
            except CacheProxyError:
                raise
            except Exception:  # whatever is wrong in here, the backend can answer
                _log.exception("lookup_broke")
                outcome = self._gone_on(journey, LookupBroke("the lookup broke; its log line has the details"))
        if isinstance(outcome, Miss) and journey.query.text:
            otherwise = self._recent.asked_otherwise(journey.query, remember=remember and journey.plan.store)
            outcome = replace(outcome, asked_otherwise=otherwise)
        return outcome

    def _gone_on(self, journey: Journey, failure: PartUnavailable) -> Miss:
        """Return the miss that a lookup without an end goes on as: by the strictest policy where it is of none yet."""
        self.tiers.give_up(journey)
        return self.tiers.miss(journey, self.parts.failed(failure))

    def _hopeless(self, journey: Journey) -> bool:
        """Whether it would wait for its embedding for too long, or only to be turned away by the backend afterwards."""
        if journey.plan.only_if_cached:
            return False
        return self.parts.behind() or (self._offloading is None and self.parts.swamped(journey.query))

    async def _look_up(self, journey: Journey, *, callers: bool) -> Outcome:
        """Ask the exact tier, then, once the category is known, the semantic one. Raises Overloaded."""
        stages, began_s = self.parts.telemetry.stages, perf_counter()
        outcome = await self.tiers.exact(journey)
        began_s = stages.exact.since(began_s)
        if isinstance(outcome, Hit):
            return outcome
        flight = self._joining.flight_for(journey)
        if flight is not None:  # the very same text is being answered: what it is of is known
            if journey.told is None and flight.policy is journey.policy and flight.told is not None:
                journey.settle(flight.told, self.parts.epoch)
            if journey.settled:
                return replace(outcome, category=journey.plan.category)
        if callers:
            self.parts.admit_miss()
        if self._hopeless(journey):
            journey.embeddable = False
            self.tiers.give_up(journey)
            return self.tiers.miss(journey, "overloaded")
        if not callers or journey.plan.only_if_cached:
            return await self._by_meaning(journey, outcome, began_s)
        known, hit = self.parts.expect(journey.query), False
        try:
            found = await self._by_meaning(journey, outcome, began_s)
            hit = isinstance(found, Hit)
        finally:
            known(not hit)
        return found

    async def _by_meaning(self, journey: Journey, outcome: Miss, began_s: float) -> Outcome:
        """Tell the category and ask the semantic tier, where the exact one had nothing; `began_s` is now."""
        stages = self.parts.telemetry.stages
        if not journey.settled:
            failed = await self.tiers.classify(journey)
            stages.classify.since(began_s)
            if failed is not None:
                return failed
            if not (journey.plan.lookup or journey.plan.store):
                return Bypass(category=journey.plan.category, reason=journey.plan.reason)
            outcome = self.tiers.miss(journey, outcome.reason, outcome.evidence)
        found = await self.tiers.semantic(journey, outcome)
        return found if isinstance(found, Hit) else await self.tiers.shared(journey, found)

    def note(self, journey: Journey, outcome: Outcome) -> None:
        """Log a decision for those who tune policy; of what is not cached nothing is noted."""
        lookups, query, plan = self.parts.lookups, journey.query, journey.plan
        if lookups is None or isinstance(outcome, Bypass) or not (plan.lookup or plan.store):
            return
        evidence, hit = outcome.evidence, outcome if isinstance(outcome, Hit) else None
        best = most_telling(evidence.judgements)
        unseen = query.controls.no_store or not self.still_kept(journey)
        price = journey.policy.price(str(hit.entry.reply.body.get("model") or "")) if hit else None
        verified = [one.verified for one in evidence.judgements if one.verified is not None and not one.verified.veto]
        if verified and self.parts.budget is not None:
            self.parts.budget.saw(plan, max(verified, key=lambda one: one.probability))
        journey.looked = Looked(
            at_s=self.parts.clock.now(),
            tenant=query.scope.tenant,
            namespace=query.scope.namespace,
            category=plan.category,
            model=query.model,
            outcome="hit" if hit else "miss",
            tier=hit.tier.value if hit else "",
            reason=outcome.reason,
            question=query.fingerprint,
            text="" if unseen else query.text,
            similarity=evidence.similarity,
            threshold=evidence.threshold,
            probability=evidence.probability,
            min_probability=plan.min_probability if plan.verify and plan.semantic else None,
            refusal=best.reason if best and not hit else "",
            untaught=untaught(query, plan) or ("no_text" if unseen else ""),
            epoch=plan.epoch,
            entry_id=hit.entry.id if hit else best.candidate.entry_id if best else "",
            user=query.user,
            lookup_ms=evidence.lookup_ms,
            load=plan.load,
            embedding=None if unseen else journey.placed or journey.embedding,
            chain=() if unseen else query.chain,
            compatibility=query.compatibility,
            fill_ms=hit.entry.fill_ms if hit else 0.0,
            saved_usd=saved_usd(hit, price) if hit else 0.0,
        )
        lookups.note(journey.looked)

    async def approved(self, journey: Journey, miss: Miss, entry_id: str) -> Hit | None:
        """Return the hit that a judge's approval makes of a refused candidate, or None."""
        return await self.tiers.approved(journey, miss, entry_id)

    async def fly(self, journey: Journey, miss: Miss, call: Call, dialect: Dialect) -> Hit | Flown:
        """Have the backend answer a miss and keep the answer, together with everybody who asks the same meanwhile.

        A hit comes back where another caller's answer, asked for in another wire form, was awaited instead, and where
        the backend failed and a stale answer may be served. Raises UpstreamError when the backend fails before this
        caller got a byte.
        """
        try:
            journey.missed = miss
            flown = await self._fly(journey, miss, call, dialect)
        except UpstreamError:
            rescue = await self._rescue(journey, miss, None)
            if rescue is None:
                raise
            return rescue
        if isinstance(flown, Flown) and flown.head.status in _EXCUSES:
            try:
                rescue = await self._rescue(journey, miss, flown.head.status)
            except BaseException:
                flown.reader.leave()
                raise
            if rescue is not None:
                flown.reader.leave()
                return rescue
        return flown

    def refresh(self, journey: Journey, call: Call, dialect: Dialect) -> None:
        """Have the backend answer again in the background, unless it is doing so; a failure changes nothing."""
        if self.flights.find(journey.key) is None and self.flights.unattended < _MOST_REFRESHES:
            self.flights.leave_alone(self._fetching.open(journey, journey.key, call, dialect))

    async def share(
        self, journey: Journey, miss: Miss, exchange: Callable[[Flight], Awaitable[None]], *, whole_bytes: int
    ) -> Flown:
        """Join the exchange with the backend that answers a query, or lead it by `exchange`.

        A body beyond `whole_bytes` is not waited for. Raises as `fly`.
        """

        def lead(key: bytes | None) -> Reader:
            return self.flights.open(key, journey.query.wire, exchange, journey.query)

        return await self._joining.join_or_lead(journey, miss, lead, whole_bytes)

    async def relay(
        self, flight: Flight, call: Call, start_fold: Callable[[tuple[tuple[str, str], ...], bool], F]
    ) -> Relayed[F]:
        """Pass the backend's answer on to the flight, up to its clean end, and fold it, as `Fetching.relay`."""
        return await self._fetching.relay(flight, call, start_fold)

    def heard(self, tenant: str, given_id: str, *, good: bool) -> bool:
        """Take a caller's word on an answer that the small model gave, or might have; return whether it is known."""
        return self._offloading is not None and self._offloading.heard(tenant, given_id, good=good)

    async def considered(self, journey: Journey) -> Considered | None:
        """Return what the small model would make of a miss, changing nothing; None where there is none."""
        return None if self._offloading is None else await self._offloading.considered(journey)

    async def settlement(self, flown: Flown) -> Settlement:
        """Return what became of a flown answer, waiting a moment for it to be stored, so that headers can tell."""
        return await flown.reader.flight.settled(self._settle_timeout_s)

    def still_kept(self, journey: Journey) -> bool:
        """Whether the policy in force by now lets an answer be kept that was asked for under an earlier one.

        Not where it tells queries' categories otherwise, or what of them may be kept: the query is not told anew.
        """
        policy = self.policy()
        return policy is journey.policy or told_by(policy.pack) == told_by(journey.policy.pack)

    async def forget(self, entry_ids: Collection[str]) -> int:
        """Remove entries for good: no later lookup serves them. Return how many there were. Raises StoreUnavailable."""
        removed = await self.parts.store.purge(entry_ids)
        self.parts.index.remove(entry_ids)
        self.known.clear()
        return removed

    def forget_questions(self) -> int:
        """Forget what was asked lately, whoever asked it; return how many questions that were."""
        return self._recent.clear() + self.known.clear()

    # Flights

    async def _fly(self, journey: Journey, miss: Miss, call: Call, dialect: Dialect) -> Hit | Flown:
        flight = self.flights.find(journey.key) if journey.plan.exact else None
        if flight is not None and flight.form != journey.query.wire:
            await flight.settled(self._coalesce_timeout_s)
            found = await self.tiers.exact(journey)
            if isinstance(found, Hit):
                return found

        def lead(key: bytes | None) -> Reader:
            return self._fetching.open(journey, key, call, dialect)

        while True:
            try:
                return await self._joining.join_or_lead(journey, miss, lead)
            except AnsweredElsewhere:
                kept = await self._kept_elsewhere(journey)
                if kept is not None:
                    return kept
                journey.waits_until_s = self.parts.clock.monotonic()  # it is gone again: nobody else is waited for

    async def _kept_elsewhere(self, journey: Journey) -> Hit | None:
        """Return what another replica kept just now, once this one hears of it; None where that takes too long."""
        for pause_s in _UNTIL_HEARD_S:
            await asyncio.sleep(pause_s)
            found = await self.tiers.exact(journey)
            if isinstance(found, Hit):
                return found
        return None

    async def _rescue(self, journey: Journey, miss: Miss, status: int | None) -> Hit | None:
        """Return a stale answer that may be served now that the backend failed, with `status` or without a word.

        Everything is looked up once more: it may have been purged, or answered for somebody else, meanwhile.
        """
        if not may_rescue(journey.plan):
            return None
        again = replace(journey, plan=replace(journey.plan, failed=True))
        try:
            async with asyncio.timeout(self._lookup_timeout_s):
                found = await self.tiers.exact(again)
                if isinstance(found, Miss) and (again.embeddable or again.embedding is not None):
                    found = await self.tiers.semantic(again, found)
        except TimeoutError:
            return None
        if isinstance(found, Miss):
            return None
        if found.stale is Stale.NO:
            return found
        return replace(found, reason="stale_if_error", stale=Stale.ON_ERROR, instead_of=miss, failed_status=status)
