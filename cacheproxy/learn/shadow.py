"""Shadow: finds out, beside the answers, whether what was served, or nearly was, was right.

A drawn hit's question goes to the backend as its caller sent it, with that caller's own credentials, and nobody sees
the answer. What a miss brought anyway is compared with the answer that was refused. No word on any failure.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import structlog

from cacheproxy.errors import CacheProxyError
from cacheproxy.learn.aside import likeness, whole
from cacheproxy.learn.budget import Label
from cacheproxy.learn.judge import Case, ask_judge
from cacheproxy.learn.lookups import Heard
from cacheproxy.model import Reply, Stale, Tier
from cacheproxy.policy.agreement import agree, told
from cacheproxy.policy.price import cost_usd
from cacheproxy.policy.teach import untaught

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from random import Random
    from typing import Any

    from cacheproxy import settings
    from cacheproxy.learn.budget import Budget
    from cacheproxy.learn.lookups import LookupLog
    from cacheproxy.learn.meter import LearningMeter
    from cacheproxy.model import Entry, Hit, Judgement, Looked, Miss, Plan, Query
    from cacheproxy.policy.active import Policy
    from cacheproxy.policy.pack import Category
    from cacheproxy.ports import Answered, Call, Clock, Dialect, Embedder, EntryStore, Upstream
    from cacheproxy.telemetry import Telemetry

log = structlog.get_logger()

_BUSY = 0.5
"""Load of a backend from which on it is spared."""
_GREY = 0.5
"""Probability from which on a judge is worth asking: below it a yes would be a wonder."""
_REFUSED = frozenset({"improbable", "over_budget"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What comparing takes."""

    store: EntryStore
    embedder: Embedder | None
    upstream: Upstream
    budget: Budget
    meter: LearningMeter
    lookups: LookupLog
    telemetry: Telemetry
    clock: Clock
    random: Random
    policy: Callable[[], Policy]
    load: Callable[[str], float]
    spawn: Callable[[Coroutine[object, object, None]], object]
    quarantine: Callable[[Query, Entry, float, float | None], Coroutine[object, object, None]] | None = None
    """Told of a question to which an entry was served wrongly."""
    promote: Callable[[Looked, str], Coroutine[object, object, bool]] | None = None
    """Gives a question that has no entry of its own the answer of an entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """A question and the entry that was served to it, or refused."""

    query: Query
    plan: Plan
    entry: Entry
    probability: float | None
    similarity: float
    source: str
    since_s: float | None = None
    """When the comparison was begun: what is erased from then on is not taught."""
    call: Call = field(repr=False)


class Shadow:
    """`ports.Learning`: at most `queue` comparisons at a time, each within `timeout_s`; more are not begun."""

    def __init__(self, means: Means, config: settings.Learn) -> None:
        self._means = means
        self._config = config
        self.pending = 0

    def draws(self, query: Query, plan: Plan, hit: Hit) -> bool:
        """Whether this hit is to be compared with a fresh answer: drawn by chance, and nothing speaks against it."""
        means = self._means
        if hit.tier is not Tier.SEMANTIC or hit.stale is not Stale.NO or not self._may(query, plan):
            return False
        if means.random.random() >= plan.shadow_rate or means.load(query.model) >= _BUSY:
            return False
        rules = self._rules(plan)
        if rules is None or not means.meter.take(plan.category, rules):
            means.telemetry.learning.labels("shadow", "no_budget").inc()
            return False
        return True

    def fetch(self, query: Query, plan: Plan, hit: Hit, call: Call, dialect: Dialect) -> None:
        """Have the backend answer this hit's question, and compare both answers."""
        served = next((one for one in hit.evidence.judgements if one.candidate.entry_id == hit.entry.id), None)
        if served is None:
            return
        pair = replace(_pair(query, plan, hit.entry, served, call, "shadow"), since_s=self._means.clock.now())
        self._begin(self._shadow(pair, dialect), "shadow")

    def answered(self, answered: Answered) -> None:
        """Compare the backend's answer with that of the most probable candidate refused for its probability alone."""
        refused = _refused(answered.miss)
        if refused is None or not self._may(answered.query, answered.plan):
            return
        if self._means.random.random() < answered.plan.explore_rate or _judges(answered.plan, refused):
            looked, now_s = answered.looked, self._means.clock.now()
            self._begin(self._explore(answered, refused, now_s if looked is None else looked.at_s), "explored")

    async def approves(self, query: Query, plan: Plan, miss: Miss, call: Call) -> str:
        """Return the entry of the grey zone that a judge finds right for the question, "" for none."""
        refused = _refused(miss)
        if refused is None or query.chain or not _judges(plan, refused) or not self._may(query, plan):
            return ""
        since_s = self._means.clock.now()
        try:
            entry = await self._means.store.get(refused.candidate.entry_id)
            if entry is None or entry.tenant != query.scope.tenant:
                return ""
            pair = replace(_pair(query, plan, entry, refused, call, "judge"), since_s=since_s)
            case = Case(asked=query.text, kept=entry.text, answer=told(entry.reply.body))
            right = await self._judged(pair, case, self._config.judge_timeout_ms / 1000)
            if right is not None:
                await self._label(pair, "judge", right=right)
        except CacheProxyError:
            return ""
        return entry.id if right else ""

    # Within

    def _may(self, query: Query, plan: Plan) -> bool:
        return self._config.shadow and plan.store and not query.controls.no_store and self.pending < self._config.queue

    def _rules(self, plan: Plan) -> Category | None:
        rules = self._means.policy().pack.categories.get(plan.category)
        return rules if rules is not None and rules.allow_caching else None

    def _begin(self, work: Coroutine[object, object, str], source: str) -> None:
        self.pending += 1
        self._means.spawn(self._within(work, source))

    async def _within(self, work: Coroutine[object, object, str], source: str) -> None:
        try:
            async with asyncio.timeout(self._config.timeout_s):
                came = await work
        except TimeoutError:
            came = "timeout"
        except CacheProxyError as exc:
            came = exc.code
        finally:
            self.pending -= 1
        self._means.telemetry.learning.labels(source, came).inc()

    async def _shadow(self, pair: _Pair, dialect: Dialect) -> str:
        reply = await self._fetched(pair, dialect)
        return await self._compare(pair, reply) if isinstance(reply, Reply) else reply

    async def _explore(self, answered: Answered, refused: Judgement, since_s: float) -> str:
        entry = await self._means.store.get(refused.candidate.entry_id)
        if entry is None or entry.tenant != answered.query.scope.tenant:
            return "gone"
        pair = _pair(answered.query, answered.plan, entry, refused, answered.call, "explored")
        pair = replace(pair, since_s=since_s)
        if answered.reply is not None:
            return await self._compare(pair, answered.reply)
        case = Case(asked=pair.query.text, kept=entry.text, answer=told(entry.reply.body))
        right = await self._judged(pair, case, self._config.timeout_s) if _judges(pair.plan, refused) else None
        if right is None:
            return "unsure"
        await self._label(pair, "judge", right=right)
        if right and answered.looked is not None and self._means.promote is not None:
            # The question has no entry of its own: the next one like it gets this answer.
            promoted = await self._means.promote(answered.looked, entry.id)
            self._means.telemetry.learning.labels("judge", "promoted" if promoted else "not_promoted").inc()
        return "right" if right else "wrong"

    async def _fetched(self, pair: _Pair, dialect: Dialect) -> Reply | str:
        """Return the backend's answer, or why there is none. Raises UpstreamError."""
        answer = await self._means.upstream.send(pair.call)
        async with answer:
            if answer.status != 200:
                return "refused"
            reply = await whole(answer, dialect, pair.query.wire)
        if isinstance(reply, str):
            return "not_whole"
        self._charge(pair, reply.body)
        return reply

    async def _compare(self, pair: _Pair, reply: Reply) -> str:
        cached, fresh = told(pair.entry.reply.body), told(reply.body)
        right = agree(cached, fresh, await likeness(self._means.embedder, pair.query.scope.tenant, cached, fresh))
        source = pair.source
        if right is None:
            case = Case(asked=pair.query.text, kept=pair.entry.text, answer=cached, fresh=fresh)
            right = await self._judged(pair, case, self._config.timeout_s)
            source = "judge" if source == "explored" else source
        if right is None:
            return "unsure"
        if not await self._label(pair, source, right=right):
            return "gone"
        if not right and pair.source == "shadow" and self._means.quarantine is not None:
            await self._means.quarantine(pair.query, pair.entry, pair.similarity, pair.probability)
        return "right" if right else "wrong"

    async def _judged(self, pair: _Pair, case: Case, timeout_s: float) -> bool | None:
        """Return a judge's word, where the category asks for one and its budget allows it; else None.

        Not within a conversation: a judge who is told the last question alone cannot know.
        """
        means, rules, plan = self._means, self._rules(pair.plan), pair.plan
        if rules is None or plan.judge == "off" or pair.query.chain or not case.answer.strip():
            return None
        if not case.whole:
            means.telemetry.learning.labels("judge", "too_long").inc()
            return None
        if not means.meter.take(plan.category, rules):
            means.telemetry.learning.labels("judge", "no_budget").inc()
            return None
        model = self._config.judge_model or pair.query.model
        said = await ask_judge(means.upstream, pair.call, case, model=model, timeout_s=timeout_s)
        self._charge(pair, said.body)
        word = "no_word" if said.right is None else "right" if said.right else "wrong"
        means.telemetry.learning.labels("judge", word).inc()
        return said.right

    async def _label(self, pair: _Pair, source: str, *, right: bool) -> bool:
        """Tell the budget and the log of lookups, and return True; not of what was purged, or is cached no longer."""
        means, query = self._means, pair.query
        if self._rules(pair.plan) is None or await means.store.get(pair.entry.id) is None:
            return False
        means.budget.label(
            Label(
                source=source,
                tenant=query.scope.tenant,
                category=pair.plan.category,
                entry_id=pair.entry.id,
                question=query.fingerprint,
                probability=pair.probability,
                right=right,
                user=query.user,
            ),
            pair.plan,
        )
        means.lookups.heard(
            Heard(
                at_s=means.clock.now(),
                tenant=query.scope.tenant,
                category=pair.plan.category,
                entry_id=pair.entry.id,
                question=query.fingerprint,
                similarity=pair.similarity,
                probability=pair.probability,
                good=right,
                user=query.user,
                source=source,
                text=query.text,
                untaught=untaught(query, pair.plan),
                epoch=pair.plan.epoch,
                since_s=pair.since_s,
            )
        )
        return True

    def _charge(self, pair: _Pair, body: Mapping[str, Any]) -> None:
        rules, means = self._rules(pair.plan), self._means
        if rules is not None:
            price = means.policy().pack.price(str(body.get("model") or ""))
            means.meter.charge(pair.plan.category, rules, cost_usd(body, price))


def _pair(query: Query, plan: Plan, entry: Entry, judgement: Judgement, call: Call, source: str) -> _Pair:
    return _Pair(
        query=query,
        plan=plan,
        entry=entry,
        probability=judgement.verified.probability if judgement.verified else None,
        similarity=judgement.candidate.similarity,
        source=source,
        call=call,
    )


def _judges(plan: Plan, refused: Judgement) -> bool:
    """Whether a refused candidate is in the grey zone of a category that has it judged."""
    return plan.judge != "off" and refused.verified is not None and refused.verified.probability >= _GREY


def _refused(miss: Miss) -> Judgement | None:
    """Return the most probable candidate that nothing but its probability stood against."""
    found = [one for one in miss.evidence.judgements if one.reason in _REFUSED and one.verified is not None]
    return max(found, key=lambda one: one.verified.probability if one.verified else 0.0, default=None)
