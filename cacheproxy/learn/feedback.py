"""Feedback: what was served lately, and what callers said of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cacheproxy.learn.budget import Label
from cacheproxy.learn.lookups import Heard
from cacheproxy.learn.serves import Serve, Serves, short
from cacheproxy.learn.traces import Trace, meant
from cacheproxy.learn.verdicts import Verdict, Verdicts, Word

if TYPE_CHECKING:
    from collections.abc import Collection

    from cacheproxy.learn.budget import Budget
    from cacheproxy.learn.lookups import LookupLog
    from cacheproxy.model import Entry, Lookup, Query, Selector
    from cacheproxy.ports import Clock


_QUESTION_BYTES = 16
"""As much of a question's fingerprint as the id of a similarity hit tells, and enough to tell questions apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One word of a caller on the answer with this id: a response id or an entry id."""

    tenant: str
    given_id: str
    word: Word
    comment: str = ""


class Feedback:
    """`ports.Feedback` on a file of verdicts and the serves this process remembers; `lookups` takes words as labels."""

    def __init__(
        self, verdicts: Verdicts, clock: Clock, lookups: LookupLog | None = None, budget: Budget | None = None
    ) -> None:
        self._verdicts = verdicts
        self._budget = budget
        self._clock = clock
        self._lookups = lookups
        self._serves = Serves()

    def quarantined(self, entry: Entry, question: bytes) -> bool:
        """Whether a caller said that this entry is no answer to this question (an exact fingerprint, 32 bytes).

        Another question stays another one whatever the entry answers. Of the entry's own question only an answer was
        wrong: what the backend answered after the verdict is a new one.
        """
        said_s = self._verdicts.quarantined_s(entry.tenant, entry.id, question[:_QUESTION_BYTES])
        own = question[:_QUESTION_BYTES] == entry.fingerprint[:_QUESTION_BYTES]
        return said_s is not None and (not own or entry.created_s < said_s)

    def served(self, response_id: str, query: Query, entry: Entry, evidence: Lookup, untaught: str = "unknown") -> None:
        """Remember a hit. An exact one is not kept: its id tells the entry, and the question is the entry's own."""
        if evidence.similarity is None:
            self._serves.forget_latest(query.scope.tenant, entry.id)
        else:
            text = "" if query.controls.no_store else short(query.text)
            epoch = self._lookups.noted if self._lookups is not None else ""
            serve = replace(_serve(query, entry, evidence), text=text, untaught=untaught, epoch=epoch)
            self._serves.remember(response_id, replace(serve, since_s=self._clock.now()))

    def kept(self, response_id: str, query: Query, entry: Entry) -> None:
        """Remember that the backend's answer of this id became an entry."""
        self._serves.remember(response_id, _serve(query, entry, None))

    def recall(self, tenant: str, given_id: str) -> Serve | None:
        """Return the serve behind a response id, or the latest one of an entry, of this tenant."""
        return self._serves.find(tenant, given_id)

    def standing(self, tenant: str, entry_id: str) -> int:
        """Return for how many questions an entry was last called good, minus for how many bad."""
        return self._verdicts.standing(tenant, entry_id)

    async def judge(self, said: Said, serve: Serve, entry: Entry | None) -> None:
        """Let a word take effect and keep it. Raises FeedbackUnavailable when it took effect but cannot be kept."""
        self._label(said, serve, entry)
        await self._verdicts.record(
            Verdict(
                at_s=self._clock.now(),
                tenant=said.tenant,
                entry_id=serve.entry_id,
                question=serve.question[:_QUESTION_BYTES],
                word=said.word,
                category=serve.category,
                similarity=serve.similarity,
                threshold=serve.threshold,
                entry_text=short(entry.text) if entry and serve.text else "",
                question_text=serve.text,
                comment=said.comment,
                user=serve.user,
            )
        )

    async def found_wrong(self, query: Query, entry: Entry, similarity: float, probability: float | None) -> None:
        """Quarantine an entry for a question that it was compared on and found wrong. Raises FeedbackUnavailable."""
        texts = not query.controls.no_store and short(query.text) and short(entry.text)
        await self._verdicts.record(
            Verdict(
                at_s=self._clock.now(),
                tenant=query.scope.tenant,
                entry_id=entry.id,
                question=query.fingerprint[:_QUESTION_BYTES],
                word=Word.BAD,
                category=entry.partition.category,
                similarity=similarity,
                threshold=probability,
                entry_text=entry.text if texts else "",
                question_text=query.text if texts else "",
                comment="",
                user=query.user,
            )
        )

    async def forget(self, selector: Selector, erased: Collection[str] = ()) -> int:
        """Forget serves and verdicts that a selector means, or that are about the entries `erased`; return how many.

        Raises FeedbackUnavailable when the file of verdicts could not be written.
        """
        ids = frozenset(erased)

        def is_meant(serve: Serve) -> bool:
            trace = Trace(0.0, serve.tenant, serve.entry_id, serve.question, serve.category, serve.user)
            return meant(selector, ids, trace)

        return self._serves.forget(is_meant) + await self._verdicts.forget(selector, ids)

    def _label(self, said: Said, serve: Serve, entry: Entry | None) -> None:
        if self._budget is not None and serve.similarity is not None:
            self._budget.hear(
                Label(
                    source="feedback",
                    tenant=said.tenant,
                    category=serve.category,
                    entry_id=serve.entry_id,
                    question=serve.question,
                    probability=serve.probability,
                    right=said.word is Word.GOOD,
                    user=serve.user,
                )
            )
        if self._lookups is None:
            return
        now_s = self._clock.now()
        self._lookups.heard(
            Heard(
                at_s=now_s,
                tenant=said.tenant,
                category=serve.category,
                entry_id=serve.entry_id,
                question=serve.question,
                user=serve.user,
                similarity=serve.similarity,
                probability=serve.probability,
                good=said.word is Word.GOOD,
                age_s=now_s - entry.created_s if entry else 0.0,
                text=serve.text,
                untaught=serve.untaught,
                epoch=serve.epoch,
                since_s=serve.since_s,
            )
        )


def _serve(query: Query, entry: Entry, evidence: Lookup | None) -> Serve:
    """Return the serve of an entry, as far as its question may be remembered of all callers: without the text."""
    return Serve(
        tenant=query.scope.tenant,
        entry_id=entry.id,
        question=query.fingerprint,
        text="",
        category=entry.partition.category,
        similarity=evidence.similarity if evidence else None,
        threshold=evidence.threshold if evidence else None,
        probability=evidence.probability if evidence else None,
        user=query.user,
    )
