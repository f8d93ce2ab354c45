"""The rule of `eval conversations`: two requests, read, planned, judged and verified as the proxy does it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from cacheproxy.errors import PackError
from cacheproxy.model import Asking, Candidate, Classification, Controls, Entry, Partition, Reply, Scope, Tier, entry_id
from cacheproxy.policy.active import of_conversation
from cacheproxy.policy.decide import exact_reason, judge
from cacheproxy.policy.plan import plan
from cacheproxy.query.chain import ABOUT, PLACED, in_context, leading_questions
from cacheproxy.query.chat import read_chat
from cacheproxy.verify.chains import compare, verify_chains

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from cacheproxy.evaluate.conversationfile import Talk
    from cacheproxy.model import Embedding, Plan, Query, Verification
    from cacheproxy.policy.active import Policy
    from cacheproxy.query.chain import Weights
    from cacheproxy.verify.chains import PairScorer

_NOW_S = 0.0
_SCOPE = Scope(tenant="pairs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """Whether the cached answer is served, on which tier (None for a miss), and why.

    `rank` is its place on a scale of certainty: 1 for the very same request, the probability where a verifier was
    asked, the similarity where thresholds decide, -1 where the conversations never meet.
    """

    served: bool
    tier: Tier | None
    reason: str
    category: str
    similarity: float
    threshold: float | None
    rank: float
    steps: tuple[tuple[str, float], ...] = field(default=())


class TalkRule:
    """One policy's rule for one encoder and verifier over pairs of conversations."""

    def __init__(self, policy: Policy, epoch: str, known: Mapping[str, Embedding], scorer: PairScorer | None) -> None:
        """Take the embeddings of all texts that `texts_of` names."""
        self._policy = policy
        self._epoch = epoch
        self._known = known
        self._scorer = scorer

    def decide(self, cached: Talk, asked: Talk, category: str = "") -> Word:
        """Rule on serving `cached`'s answer, just stored, to `asked`. Raises PackError for an unknown category."""
        query, kept = query_of(asked), query_of(cached)
        told = self._told(query, category)
        allowed, placed = plan(query, self._policy, self._epoch, told), self._placed(query)
        entry = self._entry(kept, self._told(kept, category))
        word = Word(
            served=False,
            tier=None,
            reason=allowed.reason,
            category=told.category,
            similarity=-1.0,
            threshold=allowed.threshold if allowed.semantic else None,
            rank=-1.0,
        )
        if entry is None:
            return replace(word, reason=allowed.reason or "answer_not_kept")
        if allowed.exact and not exact_reason(entry, query, allowed, _NOW_S):
            return replace(word, served=True, tier=Tier.EXACT, reason="same_request", similarity=1.0, rank=1.0)
        if not allowed.semantic:
            return word
        if entry.vector is None or entry.partition.compatibility != query.compatibility:
            return replace(word, reason="no_candidate")
        similarity = float(np.dot(placed.vector, entry.vector))
        if query.chain and not allowed.verify:
            similarity = self._cosine(query.text, entry.text)
        return self._similar(word, entry, query, allowed, placed, similarity)

    def _similar(
        self, word: Word, entry: Entry, query: Query, allowed: Plan, placed: Embedding, similarity: float
    ) -> Word:
        searched = entry.partition.category in (allowed.category, allowed.second)
        partition = entry.partition if searched else replace(entry.partition, category=allowed.category)

        def judged(verified: Verification | None) -> Word:
            judgement = judge(
                Candidate(entry.id, similarity),
                entry,
                query=query,
                plan=allowed,
                partition=partition,
                embedding=placed,
                now_s=_NOW_S,
                verified=verified,
            )
            return replace(
                word,
                served=judgement.served,
                tier=Tier.SEMANTIC if judgement.served else None,
                reason=judgement.reason,
                similarity=similarity,
                rank=similarity if verified is None else verified.probability * (not verified.veto),
                steps=verified.steps if verified else (),
            )

        found = judged(None)
        if found.reason != "not_verified" or self._scorer is None:
            return found
        asking = Asking(text=query.text, chain=query.chain)
        (verified,) = verify_chains(
            asking, [Asking(text=entry.text, chain=entry.chain)], self._scorer, self._cosine, allowed.threshold
        )
        return judged(verified)

    def _told(self, query: Query, category: str) -> Classification:
        pack = self._policy.pack
        if category and category not in pack.categories:
            raise PackError(f"pack {pack.name}: no category {category!r}; known: {', '.join(pack.categories)}")
        if category:
            return Classification(category=category, source="request")
        told = self._policy.told(query)
        if told is not None and (self._policy.settled(told) or self._policy.classify is None):
            return told
        assert self._policy.classify is not None
        texts = (query.text, *(query.earlier if self._policy.cautious else ()))
        seen = [self._policy.classify(self._known[text].vector) for text in texts if text.strip()]
        if query.chain and query.text.strip():
            whole = self._policy.classify(self._mixed(query, ABOUT))
            seen = [of_conversation(whole, seen[0]), whole, *seen]
        if not query.text.strip():
            seen.insert(0, Classification(category=pack.default_category))
        return self._policy.settle(told, seen)

    def _placed(self, query: Query) -> Embedding:
        question = self._known[query.text]
        if not query.chain:
            return question
        return replace(question, vector=self._mixed(query, PLACED))

    def _mixed(self, query: Query, weights: Weights) -> NDArray[np.float32]:
        asked = [self._known[text].vector for text in leading_questions(query.chain)]
        return in_context(self._known[query.text].vector, asked, weights)

    def _cosine(self, one: str, other: str) -> float:
        """Return the cosine of two texts, as the live line does: -1 where what the encoder cannot see differs."""
        a, b = self._known[one], self._known[other]
        return float(np.dot(a.vector, b.vector)) if a.unseen == b.unseen else -1.0

    def _entry(self, query: Query, told: Classification) -> Entry | None:
        """Return what the cache would keep of a question's answer; None for nothing."""
        allowed = plan(query, self._policy, self._epoch, told)
        if not allowed.store:
            return None
        placed = self._placed(query) if allowed.embed else None
        return Entry(
            id=entry_id(query.fingerprint),
            fingerprint=query.fingerprint,
            partition=Partition(category=told.category, compatibility=query.compatibility, epoch=self._epoch),
            tenant=query.scope.tenant,
            text=query.text,
            reply=Reply(body={}, source="body"),
            created_s=_NOW_S,
            expires_s=_NOW_S + allowed.ttl_s,
            fill_ms=0.0,
            unseen=placed.unseen if placed else b"",
            vector=placed.vector if placed else None,
            chain=query.chain if placed else (),
        )


def query_of(talk: Talk) -> Query:
    """Return the query of a conversation's request."""
    return read_chat({"model": "m", "messages": talk.messages()}, _SCOPE, Controls())


def texts_of(cached: Talk, asked: Talk) -> Iterator[str]:
    """Yield every text whose embedding a decision may need."""
    one, other = query_of(cached), query_of(asked)
    for query in (one, other):
        yield query.text
        yield from query.earlier
        yield from leading_questions(query.chain)
    asking, kept = Asking(text=other.text, chain=other.chain), Asking(text=one.text, chain=one.chain)
    for pair in compare(asking, kept).pairs:
        yield from (pair.asked, pair.kept)
