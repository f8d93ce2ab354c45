"""Feedback: what was served lately, and what callers said of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheproxy.learn.serves import Serve, Serves
from cacheproxy.learn.verdicts import Verdict, Verdicts, Word

if TYPE_CHECKING:
    from cacheproxy.model import Entry, Lookup, Query
    from cacheproxy.ports import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One word of a caller on the answer with this id: a response id or an entry id."""

    tenant: str
    given_id: str
    word: Word
    comment: str = ""


class Feedback:
    """`ports.Feedback` on a file of verdicts and the serves this process remembers."""

    def __init__(self, verdicts: Verdicts, clock: Clock) -> None:
        self._verdicts = verdicts
        self._clock = clock
        self._serves = Serves()

    def quarantined(self, entry_id: str, question: bytes) -> bool:
        """Whether a caller said that this entry is no answer to this question."""
        return self._verdicts.quarantined(entry_id, question)

    def served(self, response_id: str, query: Query, entry: Entry, evidence: Lookup | None = None) -> None:
        """Remember that a question was answered from an entry (with `evidence`: by similarity) or became it."""
        self._serves.remember(
            response_id,
            Serve(
                tenant=query.scope.tenant,
                entry_id=entry.id,
                question=query.fingerprint,
                text="" if query.controls.no_store else query.text,
                category=entry.partition.category,
                similarity=evidence.similarity if evidence else None,
                threshold=evidence.threshold if evidence else None,
            ),
        )

    def recall(self, tenant: str, given_id: str) -> Serve | None:
        """Return the serve behind a response id, or the latest one of an entry, of this tenant."""
        return self._serves.find(tenant, given_id)

    def standing(self, entry_id: str) -> int:
        """Return good words minus bad words on an entry."""
        return self._verdicts.standing(entry_id)

    async def judge(self, said: Said, serve: Serve, entry: Entry | None) -> None:
        """Let a word take effect and keep it. Raises FeedbackUnavailable when it took effect but cannot be kept."""
        await self._verdicts.record(
            Verdict(
                at_s=self._clock.now(),
                tenant=said.tenant,
                entry_id=serve.entry_id,
                question=serve.question,
                word=said.word,
                category=serve.category,
                similarity=serve.similarity,
                threshold=serve.threshold,
                entry_text=entry.text if entry and serve.text else "",
                question_text=serve.text,
                comment=said.comment,
            )
        )
