"""Pairs: what is learnt of two questions becomes a training pair, where its callers and its category let it.

Nobody waits for it: beside the answers, the entry is read, the question asked is embedded, and both are written.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from cacheproxy.errors import PartUnavailable
from cacheproxy.learn.labels import HALF
from cacheproxy.learn.pairwriter import PairRow, PairWriter, erasing
from cacheproxy.learn.serves import short
from cacheproxy.model import CONSENT_TAG, Controls, Query, Scope, Wire
from cacheproxy.policy.teach import NO_CONSENT, barred, may_train

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine

    from numpy.typing import NDArray

    from cacheproxy import settings
    from cacheproxy.learn.pairwriter import Erases
    from cacheproxy.model import Entry, Selector
    from cacheproxy.policy.active import Policy
    from cacheproxy.ports import Clock, Embedder, EntryStore, PiiGate
    from cacheproxy.telemetry import Telemetry

_MOST_PENDING = 64
_MOST_REMEMBERED = 256
_REMEMBERED_S = 3600.0
EVERYBODY = "all"
"""The value of `federated.collect` by which the operator answers for all callers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """A label of an entry for a question asked, and whether it may be trained on: `untaught` is why not, or "".

    `category` is the question's, `question` its exact fingerprint or the first half of it, `text` itself.
    """

    source: str
    tenant: str
    category: str
    entry_id: str
    question: bytes
    right: bool
    untaught: str
    text: str = field(repr=False)
    user: str = ""
    since_s: float | None = None
    """When the question met the entry; None: it may be taken to be now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What making a pair takes."""

    store: EntryStore
    embedder: Embedder
    pii: PiiGate
    policy: Callable[[], Policy]
    clock: Clock
    telemetry: Telemetry


class PairLog:
    """Makes pairs of lessons, at most 64 at a time; what fails, or may not be one, is counted and forgotten."""

    def __init__(
        self,
        writer: PairWriter,
        means: Means,
        config: settings.Federated,
        spawn: Callable[[Coroutine[object, object, None]], object],
    ) -> None:
        self._writer = writer
        self._means = means
        self._everybody = config.collect == EVERYBODY
        self._keep_texts = config.keep_texts
        self._spawn = spawn
        self._erased: deque[tuple[float, Erases]] = deque(maxlen=_MOST_REMEMBERED)
        self.pending = 0

    def hear(self, lesson: Lesson) -> None:
        """Begin to make a pair of a lesson, unless something speaks against it. Never waits, never raises.

        What an erasure meant since the question met the entry is not made, as far as an hour and 256 erasures back:
        longer than answers are compared.
        """
        why = lesson.untaught
        if why == NO_CONSENT and self._everybody:
            why = ""
        if not why and not short(lesson.text):
            why = "too_long" if lesson.text else "no_text"
        if not why and self.pending >= _MOST_PENDING:
            why = "busy"
        if why:
            self._means.telemetry.training_pairs_refused.labels(why).inc()
            return
        self.pending += 1
        self._spawn(self._take(lesson, self._writer.fence))

    async def forget(self, selector: Selector, erased: Collection[str] = ()) -> int:
        """Forget pairs as `PairWriter.forget`."""
        now_s = self._means.clock.now()
        while self._erased and self._erased[0][0] < now_s - _REMEMBERED_S:
            self._erased.popleft()
        self._erased.append((now_s, erasing(selector, erased)))
        return await self._writer.forget(selector, erased)

    async def forget_entries(self, selector: Selector, erased: Collection[str] = ()) -> int:
        """Forget pairs as `PairWriter.forget_entries`: who purges a category has its answers in mind."""
        return await self._writer.forget_entries(selector, erased)

    async def follow(self, before: Policy, after: Policy) -> None:
        """Forget pairs of categories that trained before and do not now: a listener of the policy book.

        Raises TrainingUnavailable.
        """
        known, trains = before.pack.categories, after.pack.categories
        gone = [name for name, rules in known.items() if may_train(rules) and not may_train(trains.get(name))]
        if gone:
            await self._writer.forget_categories(gone)

    async def _take(self, lesson: Lesson, fence: int) -> None:
        telemetry = self._means.telemetry
        try:
            made = await self._made(lesson)
            if isinstance(made, PairRow):
                gone = self._erased_since(lesson, made)
                made = "" if not gone and await self._writer.record(made, fence) else "erased"
        except PartUnavailable as exc:
            made = f"{exc.part}_failed"
        finally:
            self.pending -= 1
        if made:
            telemetry.training_pairs_refused.labels(made).inc()
        else:
            telemetry.training_pairs.labels(lesson.source, "true" if lesson.right else "false").inc()

    def _erased_since(self, lesson: Lesson, made: PairRow) -> bool:
        if lesson.since_s is None:
            return False
        asked, kept = replace(made, at_s=lesson.since_s).traces()
        return any(erases(asked, kept) for at_s, erases in self._erased if at_s >= lesson.since_s)

    async def _made(self, lesson: Lesson) -> PairRow | str:
        """Return the pair, or why there is none. Raises PartUnavailable."""
        means = self._means
        entry = await means.store.get(lesson.entry_id)
        if entry is None:
            return "gone"
        if why := self._refused(lesson, entry):
            return why
        kinds = self._personal(lesson, entry)
        if kinds and await means.pii.find([lesson.text, entry.text], kinds):
            return "pii"
        embedding = await means.embedder.embed(lesson.text, scope=lesson.tenant)
        if embedding.unseen:
            return "too_long"
        if entry.vector is None or entry.vector.shape != embedding.vector.shape:
            return "encoder"
        policy = means.policy()  # the latest: it may have changed since the question was asked
        second = _second(policy, lesson, embedding.vector)
        if not self._may_train(lesson, entry):
            return "category"
        for text, vector in ((lesson.text, embedding.vector), (entry.text, entry.vector)):
            if barred(policy, _asked(entry, text), vector):
                return "category"
        return replace(self._row(lesson, entry, embedding.vector), second=second)

    def _refused(self, lesson: Lesson, entry: Entry) -> str:
        if entry.tenant != lesson.tenant:
            return "shared"  # the entry's question is of other tenants
        if not self._everybody and CONSENT_TAG not in entry.tags:
            return NO_CONSENT
        if entry.chain:
            return "conversation"
        if not self._may_train(lesson, entry):
            return "category"
        if entry.unseen or not short(entry.text):
            return "too_long"
        if entry.fingerprint[:HALF] == lesson.question[:HALF]:
            return "own_question"
        if entry.vector is None or entry.partition.epoch != self._means.embedder.epoch:
            return "encoder"
        return ""

    def _may_train(self, lesson: Lesson, entry: Entry) -> bool:
        rules = self._means.policy().pack.categories
        return all(may_train(rules.get(name)) for name in _categories(lesson, entry))

    def _personal(self, lesson: Lesson, entry: Entry) -> tuple[str, ...]:
        rules = self._means.policy().pack.categories
        return tuple(dict.fromkeys(kind for name in _categories(lesson, entry) for kind in rules[name].pii))

    def _row(self, lesson: Lesson, entry: Entry, asked: NDArray[np.float32]) -> PairRow:
        return PairRow(
            at_s=self._means.clock.now(),
            tenant=lesson.tenant,
            entry_id=entry.id,
            question=lesson.question[:HALF],
            category=lesson.category,
            user=lesson.user,
            kept=entry.fingerprint[:HALF],
            kept_at_s=entry.created_s,
            kept_category=entry.partition.category,
            kept_second=entry.second,
            kept_user=entry.user,
            right=lesson.right,
            source=lesson.source,
            base=self._means.embedder.epoch,
            a=_bytes(entry.vector),
            b=_bytes(asked),
            a_text=entry.text if self._keep_texts else "",
            b_text=lesson.text if self._keep_texts else "",
        )


def _categories(lesson: Lesson, entry: Entry) -> list[str]:
    """Return the categories that the two questions are of, and the one that the kept one may be of as well."""
    return [name for name in dict.fromkeys((lesson.category, entry.partition.category, entry.second)) if name]


def _second(policy: Policy, lesson: Lesson, vector: NDArray[np.float32]) -> str:
    """Return what a question may be of as well as of its category, "" for nothing: as examples tell it now."""
    if policy.classify is None:
        return ""
    told = policy.classify(vector)
    return next((name for name in (told.category, told.second) if name not in ("", lesson.category)), "")


def _asked(entry: Entry, text: str) -> Query:
    """Return what is known of a request with this text that the entry might answer: what else it was, is equal."""
    return Query(
        dialect="",
        scope=Scope(tenant=entry.tenant, namespace=entry.namespace),
        model=entry.model,
        text=text,
        fingerprint=entry.fingerprint,
        compatibility=entry.partition.compatibility,
        wire=Wire(),
        controls=Controls(),
    )


def _bytes(vector: NDArray[np.float32] | None) -> bytes:
    return b"" if vector is None else np.asarray(vector, dtype="<f4").tobytes()
