"""Pairs: what is learnt of two questions becomes a training pair, where its callers and its category let it.

Nobody waits for it: beside the answers, the entry is read, the question asked is embedded, and both are written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from cacheproxy.errors import PartUnavailable
from cacheproxy.learn.labels import HALF
from cacheproxy.learn.pairwriter import PairRow, PairWriter
from cacheproxy.learn.serves import short
from cacheproxy.model import CONSENT_TAG, Controls, Query, Scope, Wire
from cacheproxy.policy.teach import NO_CONSENT, barred, may_train

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine

    from numpy.typing import NDArray

    from cacheproxy import settings
    from cacheproxy.model import Entry, Selector
    from cacheproxy.policy.active import Policy
    from cacheproxy.ports import Clock, Embedder, EntryStore, PiiGate
    from cacheproxy.telemetry import Telemetry

_MOST_PENDING = 64
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
        self.pending = 0

    def hear(self, lesson: Lesson) -> None:
        """Begin to make a pair of a lesson, unless something speaks against it. Never waits, never raises."""
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
        self._spawn(self._take(lesson))

    async def forget(self, selector: Selector, erased: Collection[str] = ()) -> int:
        """Forget pairs as `PairWriter.forget`."""
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

    async def _take(self, lesson: Lesson) -> None:
        telemetry, fence = self._means.telemetry, self._writer.fence
        try:
            made = await self._made(lesson)
            if isinstance(made, PairRow):
                made = "" if await self._writer.record(made, fence) else "erased"
        except PartUnavailable as exc:
            made = f"{exc.part}_failed"
        finally:
            self.pending -= 1
        if made:
            telemetry.training_pairs_refused.labels(made).inc()
        else:
            telemetry.training_pairs.labels(lesson.source, "true" if lesson.right else "false").inc()

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
        if not self._may_train(lesson, entry):
            return "category"
        for text, vector in ((lesson.text, embedding.vector), (entry.text, entry.vector)):
            if barred(policy, _asked(entry, text), vector):
                return "category"
        return self._row(lesson, entry, embedding.vector)

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
