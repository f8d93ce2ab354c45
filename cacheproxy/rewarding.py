"""Rewarding: what is said of answers to questions that the small model might have had, and what is learnt of it.

Numbers only are remembered of an answer, for a day and up to a bound; what needs texts is done at once, beside the
line (`assessing.py`).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import structlog

from cacheproxy.augment.arms import Arm
from cacheproxy.augment.augmentable import answer_tokens
from cacheproxy.augment.ledger import Ledger
from cacheproxy.augment.rewards import Source, Voices, repeated, said
from cacheproxy.augment.worth import Standing, heard, offloaded, used
from cacheproxy.errors import UpstreamBusy
from cacheproxy.learn.traces import Trace, meant
from cacheproxy.policy.agreement import told
from cacheproxy.policy.price import cost_usd
from cacheproxy.policy.whole import flaw

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from typing import Any

    from numpy.typing import NDArray

    from cacheproxy.augment.arms import Situation
    from cacheproxy.augment.rewards import Reward
    from cacheproxy.augment.state import AugmentState
    from cacheproxy.augmenting import Attempt
    from cacheproxy.journey import Journey
    from cacheproxy.model import Query, Reply, Selector
    from cacheproxy.parts import Parts
    from cacheproxy.policy.pack import Price
    from cacheproxy.ports import Call, Dialect

log = structlog.get_logger()

_MOST_SENT = 20_000
_REMEMBERED_S = 86_400.0
_REPEATED_WITHIN_S = 600.0
_CUT = ("finish_length", "response_incomplete")
_GOOD = 0.5
"""A reward above it counts as an answer that spared the large model."""
_LARGE_COST = 1.0
"""Costs of examples are relative to one answer of the large model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Came:
    """An answer that was given to its end. `arm` is who gave it, whoever was to."""

    journey: Journey
    attempt: Attempt
    arm: Arm
    reply: Reply = field(repr=False)
    fill_ms: float
    entry_id: str
    """What it was kept as; "" where it was not."""
    call: Call = field(repr=False)
    """What the large model was asked, or would have been."""
    dialect: Dialect


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What is remembered of an answer: numbers, and whose it is."""

    tenant: str
    user: str
    category: str
    question: bytes
    arm: Arm
    situation: Situation
    by_chance: bool
    """Whether this arm was drawn, so that it tells of examples what chosen ones cannot."""
    rows: tuple[tuple[str, NDArray[Any]], ...]
    entry_id: str
    at_s: float


def shortcoming(journey: Journey, reply: Reply | str) -> str:
    """Return why an answer of the small model is none, "" where it is one.

    `no_answer`, or `cut_short`, where it broke off and its caller had set no limit: the large one might have gone on.
    """
    if isinstance(reply, str) or not told(reply.body).strip():
        return "no_answer"
    found = flaw(journey.query.dialect, reply.body)
    if found in _CUT:
        return "" if answer_tokens(journey.body or {}) else "cut_short"
    return "no_answer" if found else ""


class Rewarding:
    """Remembers answers, takes rewards, and teaches `state`. Not for several threads at once.

    `assess` is told of every answer, to find out more beside the line; `remember` too, to ask some of them again.
    """

    def __init__(self, parts: Parts, state: AugmentState) -> None:
        self._parts = parts
        self._state = state
        self._voices = Voices()
        self._sent: OrderedDict[tuple[str, str], Sent] = OrderedDict()
        self._asked: OrderedDict[bytes, Sent] = OrderedDict()
        self._erased: OrderedDict[str, None] = OrderedDict()
        self.assess: Callable[[Came, Sent], None] | None = None
        self.remember: Callable[[Came], None] | None = None
        self.ledger = Ledger()

    def failed(self, journey: Journey, attempt: Attempt, reason: str) -> None:
        """Learn that the small model gave no answer, or none to its end; one that is busy may be good all the same."""
        self._parts.telemetry.offload_failures.labels(reason).inc()
        self.ledger.failed(journey.plan.category, reason)
        log.warning("small_model_failed", reason=reason, what="the model that was asked for answers instead")
        if reason != UpstreamBusy.code:
            self._state.router.ran(journey.plan.category, attempt.arm, self._parts.clock.now(), ok=False)

    def answered(self, came: Came) -> None:
        """Learn of an answer what is known at once, and remember it."""
        journey, now_s = came.journey, self._parts.clock.now()
        query, category = journey.query, journey.plan.category
        lacking = came.arm is not Arm.LARGE and shortcoming(journey, came.reply)
        self._state.router.ran(category, came.arm, now_s, ok=not lacking)
        self._measured(came, category, now_s)
        sent = Sent(
            tenant=query.scope.tenant,
            user=query.user,
            category=category,
            question=query.fingerprint,
            arm=came.arm,
            situation=came.attempt.situation,
            by_chance=came.attempt.choice.reason.value == "explored",
            rows=came.attempt.rows,
            entry_id=came.entry_id,
            at_s=now_s,
        )
        self._erased.pop(came.entry_id, None)  # the same question again has an entry of the same id
        if came.arm is Arm.AUGMENTED:
            self._used(sent, came)
        response_id = str(came.reply.body.get("id") or "")
        for given in {response_id, came.entry_id} - {""}:
            _remember(self._sent, (sent.tenant, given), sent)
        _remember(self._asked, sent.question, sent)
        if self.remember is not None:
            self.remember(came)
        if self.assess is not None:
            self.assess(came, sent)

    def heard(self, tenant: str, given_id: str, *, good: bool) -> bool:
        """Take a caller's word on the answer of a response id or an entry id; return whether it is known."""
        sent = self._recall(self._sent, (tenant, given_id), _REMEMBERED_S)
        if sent is not None:
            self._voiced(sent, said(Source.FEEDBACK, good=good))
        return sent is not None

    def asked_again(self, query: Query) -> None:
        """Take it that a caller wants another answer to the very same request, past the cache."""
        sent = self._recall(self._asked, query.fingerprint, _REPEATED_WITHIN_S)
        if sent is not None and sent.tenant == query.scope.tenant:
            self._voiced(sent, repeated())
            self._asked.pop(query.fingerprint, None)

    def learn(self, sent: Sent, reward: Reward, weight: float | None = None) -> None:
        """Teach everything that learns of rewards. `weight` stands in for the reward's own."""
        counts = reward.weight if weight is None else weight
        self._parts.telemetry.arm_rewards.labels(sent.arm.value, reward.source.value).inc()
        state, situation = self._state, sent.situation
        state.router.reward(sent.category, sent.arm, situation, reward.value, counts)
        if sent.rows and sent.by_chance and sent.arm is not Arm.LARGE:
            state.gains.learn(
                sent.category,
                situation.mean_helpfulness,
                reward.value,
                augmented=sent.arm is Arm.AUGMENTED,
                weight=counts,
            )
        if sent.arm is Arm.AUGMENTED:
            for entry_id, row in sent.rows:
                share = 1.0 / len(sent.rows)
                state.helpfulness.learn(row, reward.value, category=sent.category, weight=counts * share)
                known = state.standing(entry_id)
                if known is not None and reward.value > _GOOD:
                    state.put(offloaded(known, share * counts, self._parts.clock.now()))
        elif sent.arm is Arm.LARGE and sent.entry_id and sent.entry_id not in self._erased:
            state.put(heard(state.standing(sent.entry_id) or self._unused(sent), reward.value, counts))

    def gone(self, entry_ids: Iterable[str]) -> None:
        """Take note of entries that are gone: an answer on its way that had one as an example knows of none."""
        for entry_id in entry_ids:
            self._erased[entry_id] = None
            self._erased.move_to_end(entry_id)
            if len(self._erased) > _MOST_SENT:
                self._erased.popitem(last=False)

    def forget(self, selector: Selector, erased: Collection[str]) -> int:
        """Forget the answers that an erasure means, and those kept as entries that it erased; return how many."""
        ids = frozenset(erased)
        self.gone(ids)

        def gone_by(one: Sent) -> bool:
            trace = Trace(one.at_s, one.tenant, one.entry_id, one.question, one.category, one.user)
            return meant(selector, ids, trace) or any(entry_id in ids for entry_id, _ in one.rows)

        gone = [key for key, one in self._sent.items() if gone_by(one)]
        asked = [key for key, one in self._asked.items() if gone_by(one)]
        for key in gone:
            del self._sent[key]
        for question in asked:
            del self._asked[question]
        return len(gone)

    def _measured(self, came: Came, category: str, now_s: float) -> None:
        """Note what an answer took, and what it spared where the small model gave it."""
        pack, telemetry, took_s = came.journey.policy.pack, self._parts.telemetry, came.fill_ms / 1000
        usd = cost_usd(came.reply.body, pack.price(str(came.reply.body.get("model") or "")))
        if came.arm is not Arm.LARGE:
            usual, large = self._state.observed.estimate(category, Arm.LARGE, now_s), came.journey.query.model
            saved_usd = max(0.0, self._large_usd(came, pack.price(large)) - usd)
            saved_s = max(0.0, math.exp(usual.log_s) - took_s) if usual is not None else 0.0
            telemetry.offload_saved_usd.labels(category).inc(saved_usd)
            telemetry.offload_saved_seconds.labels(category).inc(saved_s)
            self.ledger.saved(category, seconds=saved_s, usd=saved_usd)
        self._state.observed.note(category, came.arm, took_s, usd, now_s)
        telemetry.arms.labels(category, came.arm.value, came.attempt.choice.reason.value).inc()
        telemetry.arm_regret.labels(category).inc(came.attempt.choice.regret)
        self.ledger.answered(category, came.arm, came.attempt.choice)

    def _large_usd(self, came: Came, price: Price | None) -> float:
        """Return what the same answer would have cost of the large model, which needs no examples."""
        examples = came.attempt.selection.tokens if price is not None and came.arm is Arm.AUGMENTED else 0
        input_usd = 0.0 if price is None else price.input_usd_per_mtok
        return cost_usd(came.reply.body, price) - examples * input_usd / 1e6

    def _voiced(self, sent: Sent, reward: Reward) -> None:
        # Not the end user: callers name as many of those as they like.
        weight = self._voices.weight(sent.category, sent.tenant, reward, self._parts.clock.now())
        self.learn(sent, reward, weight)

    def _unused(self, sent: Sent) -> Standing:
        """Return what is known of an answer that was no example yet: words on it come first, mostly."""
        tokens = max(1, sent.situation.question_tokens)  # until it is one, and its own are counted
        now_s = self._parts.clock.now()
        return Standing(
            entry_id=sent.entry_id,
            tenant=sent.tenant,
            category=sent.category,
            user=sent.user,
            tokens=tokens,
            since_s=sent.at_s,
            at_s=now_s,
        )

    def _used(self, sent: Sent, came: Came) -> None:
        now_s = self._parts.clock.now()
        for example in came.attempt.selection.examples:
            if example.entry_id in self._erased:
                continue
            known = self._state.standing(example.entry_id) or Standing(
                entry_id=example.entry_id,
                tenant=sent.tenant,
                category=sent.category,
                user=example.user,
                tokens=example.tokens,
                since_s=now_s - example.age_s,
                at_s=now_s,
            )
            self._state.put(used(replace(known, tokens=example.tokens), _LARGE_COST, now_s))

    def _recall(self, kept: OrderedDict[Any, Sent], key: object, within_s: float) -> Sent | None:
        found = kept.get(key)
        return found if found is not None and self._parts.clock.now() - found.at_s <= within_s else None


def _remember(kept: OrderedDict[Any, Sent], key: object, sent: Sent) -> None:
    kept[key] = sent
    kept.move_to_end(key)
    if len(kept) > _MOST_SENT:
        kept.popitem(last=False)
