"""Lookups: the log of decisions, in memory, from which operators learn what another threshold would have done.

Nothing of it is written to disk: it begins anew with each start, and what a category that is never cached was asked is
never in it. It holds text of near misses only, of callers who did not forbid storing.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from cacheproxy.learn.labels import HALF, Labelled, Labels, Source
from cacheproxy.learn.nearmisses import NearMiss, NearMisses, trace_of
from cacheproxy.learn.pairlog import Lesson
from cacheproxy.learn.tally import Tally
from cacheproxy.learn.traces import Trace, meant
from cacheproxy.policy.edit import told_by
from cacheproxy.policy.plan import threshold_of
from cacheproxy.policy.sweep import DOUBTED, Label, Seen

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from cacheproxy.model import Looked, Selector
    from cacheproxy.policy.active import Policy
    from cacheproxy.policy.pack import Category
    from cacheproxy.ports import Clock
    from cacheproxy.telemetry import Telemetry

_MOST_ROWS = 10_000  # of a category; a row is at most 1 kB (measured: 700 bytes)
_HIT, _MISS = (Seen(hit=hit, similarity=None, threshold=None) for hit in (True, False))
"""What there is to be seen of a lookup that similarity was not asked in."""


class _Row(NamedTuple):
    seen: Seen
    trace: Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What somebody said of an answer to a question. `similarity` is None where the entry is the question's own."""

    at_s: float
    tenant: str
    category: str
    entry_id: str
    question: bytes
    similarity: float | None
    good: bool
    user: str = ""
    age_s: float = 0.0
    """How old the answer was by then."""
    probability: float | None = None
    """What the verifier said of it, as far as that is known."""
    source: str = "feedback"
    """Whose word it is, as `budget.Label.source`."""
    text: str = field(default="", repr=False)
    """The question, where it is known and may be kept."""
    untaught: str = "unknown"
    """Why no model may be trained on it, as `Looked.untaught`."""
    epoch: str = ""
    """Whose similarity it is, as `Looked.epoch`."""
    since_s: float | None = None
    """When the question met the entry, as `pairlog.Lesson.since_s`."""


class _Page:
    """What is held of one category."""

    def __init__(self, category: str, telemetry: Telemetry, at_s: float, most: int) -> None:
        self.tally = Tally(since_s=at_s)
        self.near = NearMisses()
        self.labels = Labels()
        self.rows: deque[_Row] = deque(maxlen=most)
        self.similarity = telemetry.similarity.labels(category)
        self.near_misses = telemetry.near_misses.labels(category)
        self.saved_ms = telemetry.saved_seconds.labels(category)
        self.saved_usd = telemetry.category_saved_usd.labels(category)


class LookupLog:
    """`ports.LookupLog`: counts every decision, keeps the latest of each category, near misses apart, and labels.

    `policy` is the one in force: sums of a category begin anew when its rules or its threshold change.
    """

    def __init__(
        self,
        policy: Callable[[], Policy],
        telemetry: Telemetry,
        clock: Clock,
        epoch: str | None,
        *,
        most: int = _MOST_ROWS,
        teach: Callable[[Lesson], None] | None = None,
    ) -> None:
        """Hold `most` decisions of a category; `teach` is told every word on a question and another one's entry."""
        self._teach = teach
        self._read_policy = policy
        self._policy = policy()
        self._telemetry = telemetry
        self._clock = clock
        self._epoch = epoch
        self._searched = ""
        self.noted = ""
        """The epoch of the latest decision: what is served now was decided in it; "" while none is known."""
        self._most = most
        self._serial = 0
        self._pages: dict[str, _Page] = {}

    def note(self, looked: Looked) -> None:
        """Take one decision into account; not where its category is not cached any more.

        One that was planned before another head began to serve counts in the sums, and nowhere else.
        """
        self.noted = looked.epoch or self.noted
        self.policy_changed()
        if not self._cached(looked.category):
            return
        page = self._page(looked.category)
        page.tally.total.note(looked)
        page.tally.of(looked.model).note(looked)
        hit, similarity = looked.outcome == "hit", looked.similarity
        if hit:
            page.saved_usd.inc(looked.saved_usd)
            page.saved_ms.inc(max(0.0, looked.fill_ms - looked.lookup_ms) / 1000)
        if self._outdated(looked.epoch):
            return
        if not hit and _near(looked, self._policy.pack.categories[looked.category]):
            page.tally.near_misses += 1
            page.near_misses.inc()
            self._serial += 1
            page.near.keep(looked, self._serial)
        if similarity is not None and math.isfinite(similarity):
            page.similarity.observe(similarity)
        page.rows.append(_Row(seen=_seen(looked), trace=trace_of(looked)))

    def filled(self, category: str, model: str, fill_ms: float) -> None:
        """Take into account how long the backend took to answer a miss."""
        self.policy_changed()
        if not self._cached(category):
            return
        tally = self._page(category).tally
        tally.total.filled(fill_ms)
        tally.of(model).filled(fill_ms)

    def heard(self, heard: Heard) -> None:
        """Take what a caller said of an answer as a label; of the question's own answer it is a complaint, or nothing.

        Where the similarity is not known (it is NaN after a restart), the log may know it; else nothing is learnt. One
        of a head that serves no more is no label; the pair of questions is taught all the same.
        """
        self.policy_changed()
        if not self._cached(heard.category):
            return
        page, similarity, probability = self._page(heard.category), heard.similarity, heard.probability
        if similarity is None:
            if not heard.good:
                page.labels.complaint_ages_s.append(max(0.0, heard.age_s))
            return
        if self._teach is not None:
            self._teach(_lesson(heard))
        if self._outdated(heard.epoch):
            return
        if not math.isfinite(similarity):
            seen = next((row.seen for row in reversed(page.rows) if _same(row.trace, heard)), None)
            similarity, probability = (seen.similarity, seen.probability) if seen else (None, None)
        if similarity is not None:
            trace = Trace(
                at_s=heard.at_s,
                tenant=heard.tenant,
                entry_id=heard.entry_id,
                question=heard.question[:HALF],
                category=heard.category,
                user=heard.user,
            )
            page.labels.say(
                Labelled(
                    trace=trace,
                    similarity=similarity,
                    good=heard.good,
                    source=Source.FEEDBACK,
                    probability=probability,
                )
            )

    def promoted(self, near_miss: NearMiss) -> None:
        """Take a promotion as a label; the near miss is none any more."""
        looked = near_miss.looked
        page = self._page(looked.category)
        page.near.drop(near_miss.id)
        if self._teach is not None:
            self._teach(_lesson_of(looked))
        if looked.similarity is not None and not self._outdated(looked.epoch):
            trace, similarity = trace_of(looked)._replace(at_s=self._clock.now()), looked.similarity
            page.labels.say(
                Labelled(
                    trace=trace,
                    similarity=similarity,
                    good=True,
                    source=Source.PROMOTED,
                    probability=looked.probability,
                )
            )

    # What is known

    def seen(self, category: str) -> list[Seen]:
        """Return the logged lookups of a category."""
        page = self._pages.get(category)
        return [row.seen for row in page.rows] if page else []

    def labels(self, category: str) -> list[Label]:
        """Return the labels of a category."""
        page = self._pages.get(category)
        return page.labels.all() if page else []

    def complaint_ages_s(self, category: str) -> list[float]:
        """Return how old answers were of which their own askers said that they are wrong."""
        page = self._pages.get(category)
        return list(page.labels.complaint_ages_s) if page else []

    def tally(self, category: str) -> Tally:
        """Return the sums of a category; empty ones for a category without lookups."""
        self.policy_changed()
        page = self._pages.get(category)
        return page.tally if page else Tally(since_s=self._clock.now())

    def near_misses(self, category: str = "") -> list[NearMiss]:
        """Return the near misses of a category, or of all, the latest first."""
        self.policy_changed()
        pages = self._pages.values() if not category else [page for page in (self._pages.get(category),) if page]
        return sorted((one for page in pages for one in page.near.latest()), key=lambda one: -one.serial)

    def near_miss(self, near_miss_id: str) -> NearMiss | None:
        """Return one of them, or None."""
        self.policy_changed()
        return next((found for page in self._pages.values() if (found := page.near.get(near_miss_id))), None)

    # What must go

    def forget(self, selector: Selector, erased: Collection[str] = ()) -> int:
        """Forget what `traces.meant` says that an erasure means; return how much there was. Sums tell of nobody."""
        is_meant = partial(meant, selector, frozenset(erased))
        count = 0
        for page in self._pages.values():
            kept = deque((row for row in page.rows if not is_meant(row.trace)), maxlen=self._most)
            count += len(page.rows) - len(kept)
            page.rows = kept
            count += page.near.forget(is_meant) + page.labels.forget(is_meant)
        return count

    def policy_changed(self) -> None:
        """Forget all of a category that the policy in force does not cache; begin sums anew where its rules changed.

        It is noticed with the next decision, too. Where categories are told apart otherwise than before, all near
        misses go: one may be of a category that is never cached.
        """
        policy = self._read_policy()
        if policy is self._policy:
            return
        before, self._policy = self._policy, policy
        told_otherwise = told_by(before.pack) != told_by(policy.pack)
        for category, page in list(self._pages.items()):
            if not self._cached(category):
                del self._pages[category]
                continue
            if told_otherwise:
                page.near = NearMisses()
            epoch = self._searched or self._epoch
            if _rules(before, category, epoch) != _rules(policy, category, epoch):
                page.tally = Tally(since_s=self._clock.now())
                page.labels.complaint_ages_s.clear()  # they speak of the lifetime that was

    def restart(self, epoch: str = "") -> None:
        """Forget all: from now on similarities are another head's, and tell nothing beside those of before.

        What comes late and is known to be of another epoch than `epoch` is not taken; with "" all is.
        """
        self._pages.clear()
        self._searched = epoch

    async def follow(self, *_: Policy) -> None:
        """Act on a change of policy at once: a listener of the policy book."""
        self.policy_changed()

    # Within

    def _outdated(self, epoch: str) -> bool:
        return bool(epoch and self._searched) and epoch != self._searched

    def _cached(self, category: str) -> bool:
        rules = self._policy.pack.categories.get(category)
        return rules is not None and rules.allow_caching

    def _page(self, category: str) -> _Page:
        page = self._pages.get(category)
        if page is None:
            page = self._pages[category] = _Page(category, self._telemetry, self._clock.now(), self._most)
        return page


def _near(looked: Looked, rules: Category) -> bool:
    """Whether a miss is a near one: refused for its probability, or its similarity, and for nothing else."""
    if looked.min_probability is not None:
        place = looked.probability
        return (
            place is not None and looked.refusal in DOUBTED and place >= looked.min_probability - rules.probability_band
        )
    place, threshold = looked.similarity, looked.threshold
    return place is not None and threshold is not None and threshold - rules.near_miss_band <= place < threshold


def _seen(looked: Looked) -> Seen:
    hit, similarity = looked.outcome == "hit", looked.similarity
    if similarity is None or not math.isfinite(similarity):
        return _HIT if hit else _MISS
    return Seen(
        hit=hit,
        similarity=similarity,
        threshold=looked.threshold,
        verified=looked.min_probability is not None,
        probability=looked.probability,
        forbidden=not hit and looked.refusal != "improbable",
    )


def _rules(policy: Policy, category: str, epoch: str | None) -> tuple[Category | None, float | None]:
    known = policy.pack.categories.get(category)
    return known, threshold_of(policy, category, epoch)[0] if known is not None else None


def _lesson(heard: Heard) -> Lesson:
    return Lesson(
        source=heard.source,
        tenant=heard.tenant,
        category=heard.category,
        entry_id=heard.entry_id,
        question=heard.question,
        right=heard.good,
        untaught=heard.untaught,
        text=heard.text,
        user=heard.user,
        since_s=heard.since_s,
    )


def _lesson_of(looked: Looked) -> Lesson:
    """Return what an operator's promotion of a near miss teaches: the entry's answer is right for it."""
    return Lesson(
        source=Source.PROMOTED.value,
        tenant=looked.tenant,
        category=looked.category,
        entry_id=looked.entry_id,
        question=looked.question,
        right=True,
        untaught=looked.untaught,
        text=looked.text,
        user=looked.user,
        since_s=looked.at_s,
    )


def _same(trace: Trace, heard: Heard) -> bool:
    return (trace.tenant, trace.entry_id, trace.question) == (heard.tenant, heard.entry_id, heard.question[:HALF])
