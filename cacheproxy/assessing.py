"""Assessing: finds out, beside the line, how good an answer was: checked, judged, or compared with the other model's.

What costs money is drawn by chance, within what the category's learning may take, on the caller's own account. No word
on any failure.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cacheproxy.augment.arms import Arm, Reason
from cacheproxy.augment.rewards import Source, compiles, said, valid_json
from cacheproxy.errors import CacheProxyError
from cacheproxy.learn.aside import likeness, whole
from cacheproxy.learn.judge import Case, ask_judge
from cacheproxy.model import Reply
from cacheproxy.policy.agreement import agree, told
from cacheproxy.policy.price import cost_usd
from cacheproxy.refusals import Refusals

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from random import Random

    from cacheproxy import settings
    from cacheproxy.augment.rewards import Reward
    from cacheproxy.augmenting import Attempt, Augmenting
    from cacheproxy.journey import Journey
    from cacheproxy.learn.meter import LearningMeter
    from cacheproxy.parts import Parts
    from cacheproxy.policy.pack import Category
    from cacheproxy.ports import Call, SmallModel, Upstream
    from cacheproxy.rewarding import Came, Rewarding, Sent

_DAY_S = 86_400.0
_BUSY = 0.5
"""Load of the large model from which on it is spared."""
_CHARS_A_TOKEN = 4.0
_MOST_BYTES = 256 * 1024
"""Of an answer that is fetched to be compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What assessing takes."""

    parts: Parts
    small: SmallModel
    augmenting: Augmenting
    rewarding: Rewarding
    meter: LearningMeter
    config: settings.Learn
    random: Random
    spawn: Callable[[Coroutine[object, object, None]], object]


class Assessing:
    """At most `learn.queue` assessments at a time, each within `learn.timeout_s`; more are not begun."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._purse = Purse()
        self._refusals = Refusals(means.parts.clock)
        self.pending = 0

    def __call__(self, came: Came, sent: Sent) -> None:
        """Begin what an answer is drawn for. Never waits, never raises."""
        words = told(came.reply.body)
        if not words.strip() or self.pending >= self._means.config.queue:
            return
        other = self._drawn_other(came)
        judged = other is None and self._drawn_judge(came)
        if other is not None or judged or "```" in words or "~~~" in words or words.lstrip()[:1] in ("{", "["):
            self.pending += 1
            self._means.spawn(self._within(came, sent, words, other, judged=judged))

    async def _within(self, came: Came, sent: Sent, words: str, other: Arm | None, *, judged: bool) -> None:
        try:
            async with asyncio.timeout(self._means.config.timeout_s):
                checked = await asyncio.to_thread(_checked, words)
                if checked is not None:
                    self._means.rewarding.learn(sent, checked)
                if other is not None:
                    await self._compare(came, sent, words, other)
                elif judged:
                    await self._judge(came, sent, words)
        except (CacheProxyError, TimeoutError) as exc:
            self._count("failed" if isinstance(exc, CacheProxyError) else "timeout")
        finally:
            self.pending -= 1

    # What is drawn

    def _drawn_judge(self, came: Came) -> bool:
        allowed, means = came.journey.plan.augment, self._means
        if came.arm is Arm.LARGE:
            return False  # it would be its own judge, mostly
        if allowed is None or allowed.judge_rate <= 0 or came.journey.query.chain or not self._spared(came.journey):
            return False
        drawn = came.attempt.choice.judge or means.random.random() < allowed.judge_rate
        rules = self._rules(came.journey)
        return drawn and rules is not None and means.meter.take(rules[0], rules[1])

    def _drawn_other(self, came: Came) -> Arm | None:
        """Return the arm that is to answer the same question beside the line, within its budget."""
        allowed, choice = came.journey.plan.augment, came.attempt.choice
        other = choice.sampled_runner_up
        if allowed is None or other is None or other is came.arm or not self._spared(came.journey):
            return None
        if Arm.LARGE not in (other, came.arm):
            return None  # two small answers tell nothing of each other
        price, now_s = came.journey.policy.pack.price(came.journey.query.model), self._means.parts.clock.monotonic()
        unknown = price is None and other is Arm.LARGE  # a small model without a price is one's own
        category, daily_usd = came.journey.plan.category, allowed.double_run_usd_per_day
        if unknown or not self._purse.has(category, daily_usd, now_s):
            self._count("no_budget")
            return None
        self._purse.spend(category, self._expected_usd(came, other), daily_usd, now_s)
        return other

    def _expected_usd(self, came: Came, other: Arm) -> float:
        """Return what an answer is taken to cost before it is there, and if it never is: as long as the first one."""
        model = came.journey.query.model if other is Arm.LARGE else self._means.small.model
        price = came.journey.policy.pack.price(model)
        if price is None:
            return 0.0
        asked = came.attempt.situation.question_tokens + came.attempt.selection.tokens
        written = len(told(came.reply.body)) / _CHARS_A_TOKEN
        return (asked * price.input_usd_per_mtok + written * price.output_usd_per_mtok) / 1e6

    def _spared(self, journey: Journey) -> bool:
        return not journey.query.controls.no_store and self._means.parts.load(journey.query.model) < _BUSY

    def _rules(self, journey: Journey) -> tuple[str, Category] | None:
        rules = journey.policy.pack.categories.get(journey.plan.category)
        return (journey.plan.category, rules) if rules is not None and rules.allow_caching else None

    # What is done

    async def _judge(self, came: Came, sent: Sent, words: str) -> None:
        query = came.journey.query
        asked = "\n\n".join(filter(None, (query.system, query.text)))
        case = Case(asked=asked, kept="", answer=words)
        model = self._means.config.judge_model or query.model
        call = replace(came.call, charge=None)
        word = await ask_judge(
            self._means.parts.upstream, call, case, model=model, timeout_s=self._means.config.timeout_s
        )
        rules = self._rules(came.journey)
        if rules is not None:
            price = came.journey.policy.pack.price(str(word.body.get("model") or "") or model)
            self._means.meter.charge(rules[0], rules[1], cost_usd(word.body, price))
        self._count("no_word" if word.right is None else "right" if word.right else "wrong")
        if word.right is not None:
            self._means.rewarding.learn(sent, said(Source.JUDGE, good=word.right))

    async def _compare(self, came: Came, sent: Sent, words: str, other: Arm) -> None:
        """Have the other arm answer, too; the large model's answer is the measure of the small one's."""
        means, journey = self._means, came.journey
        if other is Arm.LARGE:
            upstream: Upstream = means.parts.upstream
            call = replace(came.call, charge=None, max_answer_bytes=_MOST_BYTES)
        else:
            attempt = means.augmenting.otherwise(came.attempt, other, journey)
            upstream, call = means.small.upstream, _bounded(means.augmenting, attempt, came, journey)
        reply = await self._fetched(upstream, call, came)
        if reply is None:
            self._count("no_answer")
            return
        self._spent(came, reply, other)
        small, large = (words, told(reply.body)) if other is Arm.LARGE else (told(reply.body), words)
        right = agree(small, large, await likeness(means.parts.embedder, journey.query.scope.tenant, small, large))
        self._count("unsure" if right is None else "right" if right else "wrong")
        if right is None:
            return
        reward = said(Source.COMPARED, good=right)
        arm = came.arm if other is Arm.LARGE else other
        drawn = came.attempt.choice.reason in (Reason.COLD, Reason.EXPLORED)
        means.rewarding.learn(replace(sent, arm=arm, by_chance=drawn), reward)
        means.rewarding.learn(replace(sent, arm=Arm.LARGE, entry_id=""), said(Source.COMPARED, good=True))

    async def _fetched(self, upstream: Upstream, call: Call, came: Came) -> Reply | None:
        """Return a whole answer, or None. Raises UpstreamError."""
        answer, altered = await self._refusals.send(upstream, call)
        async with answer:
            if answer.status != 200:
                return None
            reply = await whole(answer, came.dialect, came.journey.query.wire, altered=altered)
        return reply if isinstance(reply, Reply) else None

    def _spent(self, came: Came, reply: Reply, other: Arm) -> None:
        """Count what an answer cost beyond what was expected of it."""
        journey, pack = came.journey, came.journey.policy.pack
        model = journey.query.model if other is Arm.LARGE else self._means.small.model
        price = pack.price(str(reply.body.get("model") or "")) or pack.price(model)
        if journey.plan.augment is not None:
            more = cost_usd(reply.body, price) - self._expected_usd(came, other)
            daily_usd, now_s = journey.plan.augment.double_run_usd_per_day, self._means.parts.clock.monotonic()
            self._purse.spend(journey.plan.category, more, daily_usd, now_s)

    def _count(self, came: str) -> None:
        self._means.parts.telemetry.arm_assessed.labels(came).inc()


class Purse:
    """Money that was spent lately, by category, given back evenly over a day. In memory: a restart forgets it."""

    def __init__(self) -> None:
        self._spent: dict[str, tuple[float, float]] = {}

    def has(self, category: str, usd_per_day: float, now_s: float) -> bool:
        """Whether something may be spent still."""
        return self._left(category, usd_per_day, now_s) < usd_per_day

    def spend(self, category: str, usd: float, usd_per_day: float, now_s: float) -> None:
        """Count what was spent."""
        self._spent[category] = self._left(category, usd_per_day, now_s) + max(0.0, usd), now_s

    def _left(self, category: str, usd_per_day: float, now_s: float) -> float:
        spent, at_s = self._spent.get(category, (0.0, now_s))
        return max(0.0, spent - usd_per_day * (now_s - at_s) / _DAY_S)


def _checked(words: str) -> Reward | None:
    """Return what can be said of an answer's form alone."""
    return valid_json(words) or compiles(words)


def _bounded(augmenting: Augmenting, attempt: Attempt, came: Came, journey: Journey) -> Call:
    asking = augmenting.call(attempt, came.call, journey, came.dialect)
    return replace(asking, charge=None, max_answer_bytes=_MOST_BYTES)
