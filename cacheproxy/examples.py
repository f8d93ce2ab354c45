"""Examples: past answers of the caller's own scope that may help a small model with a question asked now.

Which of them are used, and in which order, is pure (augment/select.py); here the index is searched and documents read.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from cacheproxy.augment.example import Example
from cacheproxy.augment.prompt import example_tokens
from cacheproxy.augment.worth import UNKNOWN_QUALITY, Facts, Standing, admissible, faded, gives_orders, vouched
from cacheproxy.judging import orphaned, quarantined
from cacheproxy.model import FARTHER, Partition
from cacheproxy.policy.agreement import told
from cacheproxy.policy.freshness import stale_reason
from cacheproxy.query.variant import variant

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from cacheproxy.augment.example import Source
    from cacheproxy.augment.state import AugmentState
    from cacheproxy.journey import Journey
    from cacheproxy.model import Candidate, Entry, Scope
    from cacheproxy.parts import Parts
    from cacheproxy.ports import SmallModel

_FOR_EACH = 2
"""Candidates read for each example that may be used."""
_MOST_CHARS = 16_000
"""Of question and answer together; a longer one fits no small model's prompt beside others."""
_MOST_COUNTED = 20_000
_AT_ONCE_CHARS = 1_000
_PLANTED = "planted"

_Key = tuple[str, float, int]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A kept answer near enough to be an example, which may not be one, and why."""

    entry_id: str
    cosine: float
    reason: str


class Examples:
    """Finds examples, and remembers how many tokens each takes, and which of them give orders."""

    def __init__(
        self,
        parts: Parts,
        small: SmallModel,
        state: AugmentState,
        rests: Callable[[str], bool] = lambda entry_id: False,
    ) -> None:
        self._parts = parts
        self._small = small
        self._state = state
        self._rests = rests
        self._tokens: OrderedDict[_Key, int] = OrderedDict()
        self._orders: OrderedDict[_Key, bool] = OrderedDict()

    async def near(self, journey: Journey, refused: list[Refused] | None = None) -> list[Example]:
        """Return what may be an example to this question, nearest first; nothing in a conversation.

        A question of a conversation means little without what came before it, there and here. What is near and may not
        be one is added to `refused`. Raises PartUnavailable.
        """
        query, allowed, placed = journey.query, journey.plan.augment, journey.placed
        if allowed is None or placed is None or query.chain:
            return []
        most, planted = _FOR_EACH * allowed.most, _planted(journey)
        wanted: list[tuple[Candidate, Partition]] = []
        sought = placed.vector
        if journey.sought is not None and journey.sought[0] == journey.plan.epoch:
            sought = journey.sought[1]
        elif self._parts.index.encoder(journey.plan.epoch) is not None:
            return []  # it was not looked for in this epoch: another encoder would have to run
        for category in dict.fromkeys(journey.plan.searched):
            rules = journey.policy.pack.categories.get(category)
            if rules is None or rules.augment == "off":  # a category next to this one, verified for it all the same
                continue
            epoch = self._parts.embedder.epoch if self._parts.embedder else ""
            partition = Partition(category=category, compatibility=query.compatibility, epoch=epoch)
            near = await self._parts.index.search(replace(partition, epoch=journey.plan.epoch), sought, most)
            for candidate in near:
                if candidate.similarity < allowed.similarity:
                    continue
                if candidate.entry_id in planted:
                    _note(refused, candidate, _PLANTED)
                else:
                    wanted.append((candidate, partition))
        wanted = sorted(wanted, key=lambda one: -one[0].similarity)[:most]
        # All at once: of a file, one after the other takes as many turns of the loop and of the reader's thread.
        entries = await asyncio.gather(*(self._parts.store.get(candidate.entry_id) for candidate, _ in wanted))
        made: list[Example] = []
        for (candidate, partition), entry in zip(wanted, entries, strict=True):
            if entry is None or entry.partition != partition:
                continue
            answer = told(entry.reply.body)
            reason = self._unfit(journey, entry) or await self._refusal(entry, answer, query.scope)
            self._parts.count_violation("scope_violation" if reason == "other_scope" else "")
            if reason or entry.vector is None:
                _note(refused, candidate, reason)
            else:
                await self._counted(entry, answer)
                made.append(self._example(journey, candidate, entry, answer, entry.vector))
        return made

    def _unfit(self, journey: Journey, entry: Entry) -> str:
        """Return why this request may have nothing of an entry, "" where it may: what it may not be served, for one.

        `vary` (the backend chose the answer by headers, such as who is logged in), `quarantined` for this question,
        `expired`, `too_old` or `not_fresh_enough`.
        """
        if variant(journey.query, entry.vary) != entry.variant:
            return "vary"
        if quarantined(self._parts, entry, journey.query.fingerprint):
            return "quarantined"
        return stale_reason(entry, journey.plan, self._parts.clock.now())

    async def refusal(self, entry: Entry, scope: Scope) -> str:
        """Return why an entry may not be an example to who asks in this scope, "" where it may, as `admissible`.

        Besides: `no_vector` (kept for the very same request only), `conversation`, `too_long`, `source_removed`, and
        `no_room` (others help more for the room they take).
        """
        return await self._refusal(entry, told(entry.reply.body), scope)

    async def _refusal(self, entry: Entry, answer: str, scope: Scope) -> str:
        known = self._state.standing(entry.id)
        if entry.vector is None:
            return "no_vector"
        if entry.chain:
            return "conversation"
        if len(entry.text) + len(answer) > _MOST_CHARS:
            return "too_long"
        facts = Facts(
            scope=scope,
            verified=vouched(known, entry.created_s),
            quarantined=(known is not None and known.quarantined) or quarantined(self._parts, entry, entry.fingerprint),
            orders=self._orders_in(entry, answer),
        )
        reason = admissible(entry, answer, facts, self._parts.clock.now())
        if not reason and self._rests(entry.id):
            return "no_room"
        return reason or ("source_removed" if await orphaned(self._parts, entry) else "")

    def standing(self, entry: Entry) -> Standing:
        """Return what is known of an entry as an example; of one that never was, what would be known of it first."""
        now_s = self._parts.clock.now()
        return self._state.standing(entry.id) or Standing(
            entry_id=entry.id,
            tenant=entry.tenant,
            category=entry.partition.category,
            user=entry.user,
            tokens=self._count(entry, told(entry.reply.body)),
            since_s=entry.created_s,
            at_s=now_s,
        )

    def _example(
        self, journey: Journey, candidate: Candidate, entry: Entry, answer: str, vector: NDArray[np.float32]
    ) -> Example:
        now_s = self._parts.clock.now()
        known = self._state.standing(entry.id)
        now = None if known is None else faded(known, now_s)
        return Example(
            entry_id=entry.id,
            question=entry.text,
            answer=answer,
            question_cosine=candidate.similarity,
            answer_cosine=0.5,  # not measured: it would take a pass of the encoder for each
            vector=vector,
            tokens=self._count(entry, answer),
            age_s=now_s - entry.created_s,
            quality=UNKNOWN_QUALITY if now is None else now.quality,
            source=_source(entry, now),
            offloads=1.0 if now is None else now.offloads,
            same_category=entry.partition.category == journey.plan.category,
            user=entry.user,
        )

    async def _counted(self, entry: Entry, answer: str) -> None:
        """Count what is long in a thread, once: a tokenizer takes milliseconds for it."""
        if len(entry.text) + len(answer) > _AT_ONCE_CHARS and _key(entry, answer) not in self._tokens:
            _remember(self._tokens, _key(entry, answer), await asyncio.to_thread(self._tokens_of, entry, answer))

    def _count(self, entry: Entry, answer: str) -> int:
        found = self._tokens.get(_key(entry, answer))
        return _remember(self._tokens, _key(entry, answer), self._tokens_of(entry, answer)) if found is None else found

    def _tokens_of(self, entry: Entry, answer: str) -> int:
        return example_tokens(entry.text, answer, self._small.counter, form=self._small.form)

    def _orders_in(self, entry: Entry, answer: str) -> bool:
        found = self._orders.get(_key(entry, answer))
        return _remember(self._orders, _key(entry, answer), gives_orders(entry, answer)) if found is None else found


def _key(entry: Entry, answer: str) -> _Key:
    return entry.id, entry.created_s, hash(answer)


def _remember(kept: OrderedDict[_Key, T], key: _Key, value: T) -> T:
    kept[key] = value
    if len(kept) > _MOST_COUNTED:
        kept.popitem(last=False)
    return value


def _note(refused: list[Refused] | None, candidate: Candidate, reason: str) -> None:
    if refused is not None:
        refused.append(Refused(entry_id=candidate.entry_id, cosine=candidate.similarity, reason=reason))


def _source(entry: Entry, known: Standing | None) -> Source:
    if entry.origin == "augmented":
        return "small"
    if entry.origin == "warmed":
        return "operator"
    return "replayed" if known is not None and known.replays else "large"


def _planted(journey: Journey) -> frozenset[str]:
    """Return the candidates that the verifier refused as made to be found, or did not look at."""
    judgements = () if journey.missed is None else journey.missed.evidence.judgements
    return frozenset(
        one.candidate.entry_id
        for one in judgements
        if one.verified is not None
        and (one.verified.veto == _PLANTED or any(name == FARTHER for name, _ in one.verified.steps))
    )
