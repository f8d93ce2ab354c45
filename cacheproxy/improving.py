"""Improving: a question is asked again, both answers are compared, and the better one is kept as any answer would be.

No word on which is better keeps the old one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cacheproxy.augment.rewards import Source, said
from cacheproxy.augment.worth import UNKNOWN_QUALITY, heard, replayed
from cacheproxy.filing import Filing, entry_of, private
from cacheproxy.judging import quarantined
from cacheproxy.learn.aside import likeness, whole
from cacheproxy.learn.judge import Case, ask_judge
from cacheproxy.model import Embedding
from cacheproxy.policy.admit import Keep, admit
from cacheproxy.policy.agreement import agree, told
from cacheproxy.policy.price import cost_usd
from cacheproxy.refusals import Refusals

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from cacheproxy import settings
    from cacheproxy.augment.state import AugmentState
    from cacheproxy.augment.worth import Standing
    from cacheproxy.journey import Journey
    from cacheproxy.learn.meter import LearningMeter
    from cacheproxy.model import Entry
    from cacheproxy.parts import Parts
    from cacheproxy.policy.active import Policy
    from cacheproxy.ports import Call, Dialect

GONE = "gone"
"""The entry is not there any more, or not as it was: there is nothing to improve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What it takes."""

    parts: Parts
    state: AugmentState
    meter: LearningMeter
    config: settings.Learn
    policy: Callable[[], Policy]

    def models(self, journey: Journey) -> tuple[str, str]:
        """Return the models that are asked: the one that answers, and the one that judges."""
        return journey.query.model, self.config.judge_model or journey.query.model

    def take(self, journey: Journey) -> bool:
        """Take one call from what the category's learning may cost; False where nothing is left."""
        rules = journey.policy.pack.categories.get(journey.plan.category)
        return rules is not None and self.meter.take(journey.plan.category, rules)


@dataclass(slots=True, kw_only=True)
class Asked:
    """A question as it went to the large model; it is in memory only."""

    journey: Journey
    call: Call = field(repr=False)
    dialect: Dialect
    at_s: float
    not_before_s: float = 0.0
    """When it may be asked again."""


class Improving:
    """Asks again. Every call of a model is taken from what the category's learning may cost."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._refusals = Refusals(means.parts.clock)

    async def improve(self, asked_id: str, asked: Asked, still: Callable[[], bool]) -> str:
        """Ask again, compare, and keep the better answer; return what came of it. Raises CacheProxyError.

        `still` says, meanwhile, whether the question is remembered: what was erased is told to no judge.
        """
        parts, journey, fence = self._means.parts, asked.journey, self._means.parts.store.fence
        entry = await parts.store.get(asked_id)
        if entry is None or not self._still(entry, journey):
            return GONE
        started_s = parts.clock.monotonic()
        kept = await self._answer(asked)
        if not still():
            return GONE
        if kept is None:
            return "no_answer"
        if isinstance(kept, str) or kept.life.vary or not told(kept.reply.body).strip():
            self._weigh(asked_id, None, better=False)
            return "not_admitted"
        filing = Filing(
            key=journey.query.fingerprint,
            now_s=parts.clock.now(),
            fill_ms=(parts.clock.monotonic() - started_s) * 1000,
            epoch=entry.partition.epoch,
            embedding=None if entry.vector is None else Embedding(vector=entry.vector, unseen=entry.unseen),
        )
        made = entry_of(journey, kept, filing)
        right, fresh_right = await self._words(asked, entry, made, still)
        better = right is False and fresh_right is True
        if better and not await self._keep(made, entry, journey, fence):
            return GONE
        return self._weigh(asked_id, right, better=better, since_s=made.created_s)

    def _still(self, entry: Entry, journey: Journey) -> bool:
        """Whether an entry is what was asked for then, and may be an example now."""
        query, parts = journey.query, self._means.parts
        return (
            entry.fingerprint == query.fingerprint
            and entry.tenant == query.scope.tenant
            and entry.origin == "backend"
            and not (entry.parents or entry.vary or entry.chain)
            and entry.vector is not None
            and parts.embedder is not None
            and entry.partition.epoch == parts.embedder.epoch
            and parts.clock.now() < entry.expires_s
            and not quarantined(parts, entry, entry.fingerprint)
            and self._means.policy() is journey.policy
        )

    async def _answer(self, asked: Asked) -> Keep | str | None:
        """Return a new answer that may be kept, why it may not, or None for none. Raises UpstreamError."""
        parts, journey = self._means.parts, asked.journey
        answer, altered = await self._refusals.send(parts.upstream, asked.call)
        async with answer:
            if answer.status != 200:
                return None
            headers = answer.headers
            reply = await whole(answer, asked.dialect, journey.query.wire, altered=altered)
        if isinstance(reply, str):
            return reply
        self._charge(journey, reply.body)
        found = admit(journey.query.dialect, 200, headers, reply, journey.plan, now_s=parts.clock.now())
        if not isinstance(found, Keep):
            return found.reason
        return await private(parts, (journey.query.text, reply.body), journey.plan.check_pii) or found

    async def _words(
        self, asked: Asked, entry: Entry, made: Entry, still: Callable[[], bool]
    ) -> tuple[bool | None, bool | None]:
        """Return whether the old answer is right, and the new one, as far as anybody says.

        Two answers that agree need no judge: neither is better.
        """
        old, new = told(entry.reply.body), told(made.reply.body)
        tenant = asked.journey.query.scope.tenant
        if agree(old, new, await likeness(self._means.parts.embedder, tenant, old, new)):
            return None, None
        right = await self._judged(asked, old)
        return right, await self._judged(asked, new) if right is False and still() else None

    async def _judged(self, asked: Asked, answer: str) -> bool | None:
        means, journey = self._means, asked.journey
        if not self._means.take(journey):
            return None
        text, model = journey.query.text, self._means.models(journey)[1]
        case = Case(asked=text, kept=text, answer=answer)
        word = await ask_judge(means.parts.upstream, asked.call, case, model=model, timeout_s=means.config.timeout_s)
        self._charge(journey, word.body)
        return word.right

    async def _keep(self, made: Entry, entry: Entry, journey: Journey, fence: int) -> bool:
        """Put the new answer in the old one's place; return whether it is there. Raises PartUnavailable."""
        parts, now = self._means.parts, await self._means.parts.store.get(entry.id)
        if now is None or now.created_s != entry.created_s or now.partition != made.partition:
            return False  # gone, or answered anew for somebody who asked
        if not self._still(now, journey) or not await parts.store.put(made, fence):
            return False
        if made.vector is not None:
            parts.index.add(made.partition, made.id, made.vector)
        return True

    def _weigh(self, asked_id: str, right: bool | None, *, better: bool, since_s: float = 0.0) -> str:
        """Take down that it was asked again, and what was said of the old answer, or that the new one is better."""
        standing = self._means.state.standing(asked_id)
        if standing is not None:
            self._means.state.put(weighed(standing, right, better=better, since_s=since_s))
        return "better" if better else "no_word" if right is None else "kept"

    def _charge(self, journey: Journey, body: Mapping[str, Any]) -> None:
        pack, category = journey.policy.pack, journey.plan.category
        usd = cost_usd(body, pack.price(str(body.get("model") or "") or journey.query.model))
        self._means.meter.charge(category, pack.categories[category], usd)


def weighed(one: Standing, right: bool | None, *, better: bool, since_s: float) -> Standing:
    """Return it after its question was asked again: a judge said of the old answer whether it is right, or nothing.

    A `better` answer, of `since_s`, is known by the one good word that was said of it.
    """
    weight = said(Source.JUDGE, good=True).weight
    now = one if right is None else heard(one, float(right), weight)
    if not better:
        return replayed(now, now.quality)
    fresh = heard(replace(now, quality=UNKNOWN_QUALITY, words=0.0), 1.0, weight)
    return replace(replayed(now, fresh.quality), words=fresh.words, since_s=since_s)
