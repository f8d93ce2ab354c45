"""Judging: which of the candidates that a search found is served, each on its document, read just now.

The rules are pure (policy/decide.py); here documents are read, and the verifier and the error budget asked.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from cacheproxy.errors import PartUnavailable, VerifierUnavailable
from cacheproxy.model import Asking, Judgement, Stale, Verification
from cacheproxy.policy.decide import judge, near_enough

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cacheproxy.contexts import Contexts
    from cacheproxy.journey import Journey
    from cacheproxy.model import Candidate, Embedding, Entry, Partition, Plan
    from cacheproxy.parts import Parts


_MOST_REPEATS = 8
"""An entry may repeat one that repeats another; so many are looked at."""
_TOO_FAR = Verification(probability=0.0, steps=(("too_far", 1.0),))
"""Of what a head finds near and the encoder does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What became of all candidates, the nearest first."""

    judgements: tuple[Judgement, ...]
    served: tuple[Entry, Judgement] | None
    """A fresh entry before a stale one, then the most probable one; None where nothing is served."""

    @property
    def best(self) -> Judgement | None:
        """The candidate that is served, or that says most about why none is."""
        return self.served[1] if self.served else most_telling(self.judgements)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A candidate, the partition that it was found in, and its document."""

    candidate: Candidate
    partition: Partition
    entry: Entry | None
    """None where it is gone, or not read since it is not near enough."""


class Judging:
    """Judges candidates. Those without a document are removed from the index."""

    def __init__(self, parts: Parts, contexts: Contexts) -> None:
        self._parts = parts
        self._contexts = contexts

    async def judge_all(
        self, journey: Journey, embedding: Embedding, candidates: Sequence[tuple[Candidate, Partition]]
    ) -> Judged:
        """Judge what was found by `embedding`, the nearest first, each in the partition it was found in.

        Raises StoreUnavailable, EmbedderUnavailable and VerifierUnavailable.
        """
        entries = await self._documents([one for one, _ in candidates if near_enough(one, journey.plan)])
        found = [
            _Found(candidate=candidate, partition=partition, entry=entries.get(candidate.entry_id))
            for candidate, partition in candidates
        ]
        if journey.query.chain and not journey.plan.verify:
            found = [await self._plainly(journey, one) for one in found]
        judgements = [await self._judged(journey, embedding, one) for one in found]
        unsure = [place for place, judgement in enumerate(judgements) if judgement.reason == "not_verified"]
        if unsure:
            began_s = perf_counter()
            words = await self._verified(journey, embedding, [found[at] for at in unsure])
            self._parts.telemetry.stages.verify.since(began_s)
            for at, verified in zip(unsure, words, strict=True):
                judgements[at] = await self._judged(journey, embedding, found[at], verified)
        for judgement in judgements:
            if judgement.reason == "document_missing":
                self._parts.index.remove([judgement.candidate.entry_id])
                self._parts.telemetry.repairs.inc()
            self._parts.count_violation(judgement.reason)
        servable = [
            (one.entry, judgement)
            for one, judgement in zip(found, judgements, strict=True)
            if judgement.served and one.entry is not None
        ]
        served = max(servable, key=lambda one: (one[1].stale is Stale.NO, _rank(one[1])), default=None)
        return Judged(judgements=tuple(judgements), served=served)

    async def approved(self, journey: Journey, refused: Judgement) -> tuple[Entry, Stale] | None:
        """Return the entry of a refused candidate that may be served since a judge approved it, or None.

        It is looked at once more: all but its probability counts as before. Raises StoreUnavailable and
        EmbedderUnavailable.
        """
        entry = await self._parts.store.get(refused.candidate.entry_id)
        if entry is None or entry.partition.category not in journey.plan.searched:
            return None
        partition = replace(entry.partition, compatibility=journey.query.compatibility)
        found = _Found(candidate=refused.candidate, partition=partition, entry=entry)
        plan = replace(journey.plan, min_probability=0.0)
        judgement = self._ruled(journey, plan, await self._contexts.placed(journey), found, refused.verified)
        if not judgement.served or quarantined(self._parts, entry, journey.query.fingerprint):
            return None
        return None if await orphaned(self._parts, entry) else (entry, judgement.stale)

    async def _documents(self, near: Sequence[Candidate]) -> dict[str, Entry | None]:
        store = self._parts.store
        if len(near) == 1:
            return {near[0].entry_id: await store.get(near[0].entry_id)}
        # Together: a store that hangs costs one deadline, not one for each.
        ids = [one.entry_id for one in near]
        return dict(zip(ids, await asyncio.gather(*map(store.get, ids)), strict=True))

    async def _plainly(self, journey: Journey, found: _Found) -> _Found:
        """Return a candidate as near as its own question is: thresholds are of questions, not of conversations."""
        if found.entry is None or found.entry.chain != journey.query.chain:
            return found
        near = await self._contexts.alike(journey, found.entry, self._parts.index.alike)
        return replace(found, candidate=replace(found.candidate, similarity=near))

    async def _judged(
        self, journey: Journey, embedding: Embedding, found: _Found, verified: Verification | None = None
    ) -> Judgement:
        entry, candidate, budget = found.entry, found.candidate, self._parts.budget
        if entry is not None and quarantined(self._parts, entry, journey.query.fingerprint):
            return Judgement(candidate=candidate, served=False, reason="quarantined", verified=verified)
        judgement = self._ruled(journey, journey.plan, embedding, found, verified)
        if judgement.served and entry is not None and await orphaned(self._parts, entry):
            return replace(judgement, served=False, reason="source_removed")
        if judgement.served and verified is not None and budget is not None:
            allowed = budget.allows(journey.plan, candidate.entry_id, verified)
            return judgement if allowed else replace(judgement, served=False, reason="over_budget")
        return judgement

    def _ruled(
        self, journey: Journey, plan: Plan, embedding: Embedding, found: _Found, verified: Verification | None
    ) -> Judgement:
        return judge(
            found.candidate,
            found.entry,
            query=journey.query,
            plan=plan,
            partition=found.partition,
            embedding=embedding,
            now_s=self._parts.clock.now(),
            verified=verified,
        )

    async def _verified(
        self, journey: Journey, embedding: Embedding, found: Sequence[_Found]
    ) -> Sequence[Verification]:
        """Return what the verifier says of entries. Raises EmbedderUnavailable and VerifierUnavailable.

        A head's similarities choose what is looked at. The verifier was calibrated on the encoder's own, and what the
        pack asks of those holds under a head, too.
        """
        plan, embedder = journey.plan, self._parts.embedder
        kept = [(one.entry, one.candidate) for one in found if one.entry is not None]
        if embedder is None or plan.epoch == embedder.epoch:
            return await self._words(journey, embedding, kept, plan.threshold)
        plain = [(entry, _plain(entry, candidate, embedding)) for entry, candidate in kept]
        near = [one for one in plain if one[1].similarity >= plan.plain_threshold]
        said = iter(await self._words(journey, embedding, near, plan.plain_threshold) if near else ())
        return [next(said) if one[1].similarity >= plan.plain_threshold else _TOO_FAR for one in plain]

    async def _words(
        self, journey: Journey, embedding: Embedding, kept: Sequence[tuple[Entry, Candidate]], at_least: float
    ) -> Sequence[Verification]:
        query, verifier = journey.query, self._parts.verifier
        if verifier is None:
            raise VerifierUnavailable("there is no verifier")
        if query.chain:
            return await self._contexts.verified(query, kept, at_least)
        return await verifier.verify(
            Asking(text=query.text, vector=embedding.vector),
            [(Asking(text=entry.text, vector=entry.vector), candidate.similarity) for entry, candidate in kept],
        )


def _plain(entry: Entry, candidate: Candidate, embedding: Embedding) -> Candidate:
    near = -1.0 if entry.vector is None else float(np.dot(entry.vector, embedding.vector))
    return replace(candidate, similarity=near)


def quarantined(parts: Parts, entry: Entry, question: bytes) -> bool:
    """Whether a caller said that this entry is no answer to this question (an exact fingerprint)."""
    return parts.feedback is not None and parts.feedback.quarantined(entry, question)


async def orphaned(parts: Parts, entry: Entry) -> bool:
    """Whether an entry repeats the answer of another one that was removed, so that it goes with it.

    So it does where another answer took that one's place, since it may have been purged and asked for anew. Where the
    store fails to tell, it does.
    """
    try:
        for _ in range(_MOST_REPEATS):
            if not entry.alias_of:
                return False
            original = await parts.store.get(entry.alias_of)
            if original is None or original.reply.body != entry.reply.body:
                break
            entry = original
    except PartUnavailable as exc:
        parts.failed(exc)
    return True


def most_telling(judgements: Sequence[Judgement]) -> Judgement | None:
    """Return the candidate that says most about why nothing is served: the most probable one, else the nearest."""
    verified = [judgement for judgement in judgements if judgement.verified]
    return max(verified, key=_rank) if verified else next(iter(judgements), None)


def _rank(judgement: Judgement) -> tuple[float, float]:
    probability = judgement.verified.probability if judgement.verified else 0.0
    return probability, judgement.candidate.similarity
