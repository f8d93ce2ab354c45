"""The error budget, live: what labels say of each category and entry, held in memory and written behind.

A category without labels is decided by its pack alone. With labels enough, no answer riskier than the ceiling is
served (policy/budget.py); the ceiling falls at once and rises slowly, and both are said in the log. Replicas learn from
the union of their labels (learn/sharedlabels.py), each of them within seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import msgspec
import structlog

from cacheproxy.learn.budget_file import BudgetFile, EntryRow
from cacheproxy.learn.labelexchange import LabelExchange
from cacheproxy.learn.sharedlabels import BEGINNING, SharedLabel
from cacheproxy.learn.traces import Trace, meant
from cacheproxy.policy.budget import Account
from cacheproxy.policy.trust import NEW, Effect, place

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from cacheproxy.learn.sharedlabels import Labels
    from cacheproxy.model import Plan, Selector, Verification
    from cacheproxy.policy.bound import Share
    from cacheproxy.ports import Clock

log = structlog.get_logger()

_MOST_ENTRIES = 100_000
_POSITION = ""
"""In the file, in the place of a category: up to where the labels of all replicas were learnt from."""
_MOST_SAID = 20_000
_MOST_DELTAS = 16
"""Of one category; a question in doubt between two is decided by the smaller delta of both."""
_SEEN_BETWEEN = 64
"""Candidates after which a ceiling is taken anew without a label: what is asked may change, too."""
_TOLD = 0.005
"""A change of the effective probability below it is not worth a line in the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """One word on one answer to one question. `source`: `shadow`, `explored`, `judge` or `feedback`.

    `probability` is what the verifier said back then; None where that is not known: then the entry alone learns.
    """

    source: str
    tenant: str
    category: str
    entry_id: str
    question: bytes
    probability: float | None
    right: bool
    user: str = ""


class Terms(Protocol):
    """What of a plan a label is learnt under."""

    @property
    def min_probability(self) -> float:
        """The lowest probability served."""
        ...

    @property
    def delta(self) -> float:
        """The share of wrong answers that is allowed."""
        ...


@dataclass(frozen=True, slots=True)
class _Terms:
    min_probability: float
    delta: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is known of a category's budget. `least` is the lowest probability served of a new entry."""

    labels: int
    share: Share
    least: float
    sources: dict[str, int]


class _State(msgspec.Struct, kw_only=True):
    """A category as it is written."""

    account: Account
    ceilings: dict[float, float] = {}
    """Held for each delta."""
    sources: dict[str, int] = {}


@dataclass(slots=True)
class _Category:
    state: _State
    told: dict[float, float] = field(default_factory=dict)
    """By delta: the lowest probability served, as the log says it."""
    unseen: int = 0
    dirty: bool = False


@dataclass(slots=True, kw_only=True)
class _Known:
    effect: Effect
    tenant: str
    category: str
    user: str
    at_s: float


@dataclass(slots=True)
class _Unwritten:
    entries: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)


class Budget:
    """`ports.Budget` on a file. Use it as an async context manager, and call `tend` every few seconds.

    `verifier` is the fingerprint of the one whose probabilities are meant. A crash loses what was learnt since the
    last `tend`.
    """

    def __init__(
        self,
        path: Path,
        verifier: str,
        clock: Clock,
        *,
        most_entries: int = _MOST_ENTRIES,
        labels: Labels | None = None,
    ) -> None:
        """`labels`, where replicas share them: `converge` is then to be called every few seconds, too."""
        self._exchange = LabelExchange(labels) if labels is not None else None
        self._position = BEGINNING
        self._moved = False
        self._file = BudgetFile(path, verifier)
        self._verifier = verifier
        self._clock = clock
        self._most_entries = most_entries
        self._categories: dict[str, _Category] = {}
        self._entries: OrderedDict[str, _Known] = OrderedDict()
        self._said: OrderedDict[tuple[str, str, bytes], bool] = OrderedDict()
        self._unwritten = _Unwritten()

    async def __aenter__(self) -> Budget:
        await self._file.open(self._take)
        return self

    async def __aexit__(self, *exc: object) -> None:
        try:
            await self.tend()
        finally:
            await self._file.close()

    # Decisions

    def allows(self, plan: Plan, entry_id: str, verified: Verification) -> bool:
        """Whether an entry may be served, as far as the error budget goes."""
        page = self._categories.get(plan.category)
        if page is None:
            return True
        held = self._held(plan.category, page, plan.delta)
        known = self._entries.get(entry_id)
        effect = known.effect if known is not None else NEW
        if held >= 1.0:  # nothing is known of the category: the pack's minimum, with the entry's own labels
            return place(verified.probability) + min(0.0, effect.mean) >= place(plan.min_probability)
        return page.state.account.allows(verified.probability, effect, held)

    def least(self, plan: Plan) -> float:
        """Return the lowest probability that is served of an entry without labels."""
        return self.standing(plan.category, plan.min_probability, plan.delta).least

    def saw(self, plan: Plan, verified: Verification) -> None:
        """Count a candidate that was verified without a veto."""
        page = self._page(plan.category)
        page.state.account.see(verified.probability)
        page.unseen += 1
        page.dirty = True
        if page.unseen >= _SEEN_BETWEEN:
            page.unseen = 0
            self._settle_all(plan.category, page, plan.delta)

    # Labels

    def hear(self, label: Label) -> bool:
        """Learn from a word of a caller; return whether it was news: it counts once for a pair.

        It moves its entry only: who complains is no random sample of those who were served. Without a verifier nothing
        is decided by it, and nothing learnt.
        """
        return bool(self._verifier) and self._learn(label, None) and self._tell(label, None)

    def label(self, label: Label, plan: Plan) -> bool:
        """Learn from a label of an answer that was served, or refused, under a plan; return whether it was news."""
        return self._learn(label, plan) and self._tell(label, plan)

    async def converge(self) -> None:
        """Tell other replicas what was labelled here, and learn from what was labelled there.

        Without the engine what was labelled waits, the newest 20,000 of it.
        """
        if self._exchange is not None and self._verifier:
            await self._exchange.converge(self._position, self._learn_all)

    def _tell(self, label: Label, plan: Terms | None) -> bool:
        if self._exchange is not None:
            self._exchange.owe(
                SharedLabel(
                    by=self._exchange.replica,
                    verifier=self._verifier,
                    source=label.source,
                    tenant=label.tenant,
                    category=label.category,
                    entry_id=label.entry_id,
                    question=label.question[:16],
                    probability=label.probability,
                    right=label.right,
                    user=label.user,
                    least=plan.min_probability if plan else None,
                    delta=plan.delta if plan else None,
                )
            )
        return True

    def _learn_all(self, labels: Sequence[SharedLabel], position: str) -> None:
        for one in labels:
            self._learn_from(one)
        self._position, self._moved = position, True  # written with what was learnt, or neither

    def _learn_from(self, one: SharedLabel) -> None:
        if one.verifier != self._verifier:
            return
        label = Label(
            source=one.source,
            tenant=one.tenant,
            category=one.category,
            entry_id=one.entry_id,
            question=one.question,
            probability=one.probability,
            right=one.right,
            user=one.user,
        )
        self._learn(label, _Terms(one.least, one.delta) if one.least is not None and one.delta is not None else None)

    def _learn(self, label: Label, plan: Terms | None) -> bool:
        pair = label.tenant, label.entry_id, label.question[:16]
        if self._said.get(pair) is label.right:
            return False
        self._said[pair] = label.right
        self._said.move_to_end(pair)
        if len(self._said) > _MOST_SAID:
            self._said.popitem(last=False)
        page = self._page(label.category)
        known = self._entries.get(label.entry_id)
        effect = known.effect if known is not None else NEW
        page.state.sources[label.source] = page.state.sources.get(label.source, 0) + 1
        page.dirty = True
        if plan is None or label.probability is None:
            effect = page.state.account.label_entry(label.probability, effect, right=label.right)
        else:
            hit, least = label.source == "shadow", plan.min_probability
            effect = page.state.account.label(label.probability, effect, right=label.right, hit=hit, least=least)
            self._settle_all(label.category, page, plan.delta)
        self._keep(label, effect)
        return True

    # What is known

    def standing(self, category: str, least: float, delta: float) -> Standing:
        """Return what is known of a category whose pack serves from the probability `least` on, within `delta`."""
        page = self._categories.get(category)
        if page is None:
            return Standing(labels=0, share=Account().share, least=least, sources={})
        state = page.state
        held = state.ceilings.get(delta)
        return Standing(
            labels=state.account.labels,
            share=state.account.share,
            least=max(least, state.account.least(state.account.ceiling(delta) if held is None else held)),
            sources=dict(state.sources),
        )

    # What must go, and what must stay

    async def forget(self, selector: Selector, erased: Collection[str] = ()) -> int:
        """Forget entries that an erasure means; return how many. Sums of a category tell of nobody.

        Raises FeedbackUnavailable when the file could not be written, and SharedUnavailable while other replicas could
        still learn from their labels.
        """
        ids = frozenset(erased)
        for pair in [pair for pair in self._said if _is_meant(selector, ids, pair)]:
            del self._said[pair]
        gone = [
            entry_id
            for entry_id, known in self._entries.items()
            if meant(selector, ids, Trace(known.at_s, known.tenant, entry_id, b"", known.category, known.user))
        ]
        for entry_id in gone:
            del self._entries[entry_id]
            self._unwritten.entries.discard(entry_id)
        erased_here = await self._file.erase(selector, {*gone, *ids})
        if self._exchange is not None:
            await self._exchange.forget(lambda one: _labelled(selector, ids, one))
        return len({*gone, *erased_here})

    async def tend(self) -> None:
        """Write what changed. Raises FeedbackUnavailable when that fails: it is tried again with the next call."""
        unwritten, self._unwritten = self._unwritten, _Unwritten()
        pages = {name: page for name, page in self._categories.items() if page.dirty}
        moved, self._moved = self._moved, False
        if not (pages or unwritten.entries or unwritten.gone or moved):
            return
        states = {name: msgspec.msgpack.encode(page.state) for name, page in pages.items()}
        if moved:
            states[_POSITION] = self._position.encode()
        rows = [self._row(entry_id) for entry_id in unwritten.entries if entry_id in self._entries]
        for page in pages.values():
            page.dirty = False
        try:
            await self._file.save(states, rows, unwritten.gone)
        except BaseException:
            for page in pages.values():
                page.dirty = True
            self._unwritten.entries |= unwritten.entries
            self._unwritten.gone |= unwritten.gone
            self._moved |= moved
            raise

    # Within

    def _held(self, category: str, page: _Category, delta: float) -> float:
        """Return the ceiling of a category for one delta."""
        held = page.state.ceilings.get(delta)
        return self._settle(category, page, delta) if held is None else held

    def _settle_all(self, category: str, page: _Category, delta: float) -> None:
        """Take all ceilings of a category anew: what is learnt of it counts for every delta."""
        for one in {**page.state.ceilings, delta: 0.0}:
            self._settle(category, page, one)

    def _settle(self, category: str, page: _Category, delta: float) -> float:
        account, ceilings = page.state.account, page.state.ceilings
        held = account.settled(delta, ceilings.get(delta))
        ceilings[delta] = held
        if len(ceilings) > _MOST_DELTAS:  # an operator changed it again and again
            page.told.pop(next(iter(ceilings)), None)
            del ceilings[next(iter(ceilings))]
        least, before = account.least(held), page.told.get(delta, 0.0)
        if abs(least - before) >= _TOLD:
            what = "budget_tightened" if least > before else "budget_loosened"
            told = {"wrong": account.wrong, "labelled": account.labelled, "labels": account.labels}
            log.info(what, category=category, delta=delta, served_from=round(least, 4), before=round(before, 4), **told)
            page.told[delta] = least
        return held

    def _page(self, category: str) -> _Category:
        page = self._categories.get(category)
        if page is None:
            page = self._categories[category] = _Category(_State(account=Account()))
        return page

    def _keep(self, label: Label, effect: Effect) -> None:
        self._entries[label.entry_id] = _Known(
            effect=effect, tenant=label.tenant, category=label.category, user=label.user, at_s=self._clock.now()
        )
        self._entries.move_to_end(label.entry_id)
        self._unwritten.entries.add(label.entry_id)
        self._unwritten.gone.discard(label.entry_id)
        if len(self._entries) > self._most_entries:
            oldest, _ = self._entries.popitem(last=False)
            self._unwritten.entries.discard(oldest)
            self._unwritten.gone.add(oldest)

    def _row(self, entry_id: str) -> EntryRow:
        known = self._entries[entry_id]
        return EntryRow(
            entry_id=entry_id,
            tenant=known.tenant,
            category=known.category,
            user=known.user,
            at_s=known.at_s,
            mean=known.effect.mean,
            variance=known.effect.variance,
        )

    def _take(self, states: dict[str, bytes], rows: list[EntryRow]) -> None:
        self._position = states.pop(_POSITION, BEGINNING.encode()).decode("ascii", "replace")
        for category, raw in states.items():
            try:
                state = msgspec.msgpack.decode(raw, type=_State)
            except msgspec.MsgspecError as exc:
                log.warning("budget_state_unreadable", category=category, error=type(exc).__name__)
                continue
            told = {delta: state.account.least(held) for delta, held in state.ceilings.items()}
            self._categories[category] = _Category(state, told)
        for row in rows[-self._most_entries :]:
            self._entries[row.entry_id] = _Known(
                effect=Effect(mean=row.mean, variance=row.variance),
                tenant=row.tenant,
                category=row.category,
                user=row.user,
                at_s=row.at_s,
            )


def _labelled(selector: Selector, erased: frozenset[str], one: SharedLabel) -> bool:
    return meant(selector, erased, Trace(0.0, one.tenant, one.entry_id, one.question, one.category, one.user))


def _is_meant(selector: Selector, erased: frozenset[str], pair: tuple[str, str, bytes]) -> bool:
    tenant, entry_id, question = pair
    return meant(selector, erased, Trace(0.0, tenant, entry_id, question, "", ""))
