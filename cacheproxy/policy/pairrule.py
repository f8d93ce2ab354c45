"""Would one question be served another's cached answer? The proxy's own plan and judgement, asked about two texts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Protocol

import numpy as np

from cacheproxy.errors import PackError
from cacheproxy.model import (
    Candidate,
    Classification,
    Controls,
    Entry,
    Partition,
    Query,
    Reply,
    Scope,
    Tier,
    Trait,
    Wire,
    entry_id,
)
from cacheproxy.policy.decide import exact_reason, judge
from cacheproxy.policy.plan import plan

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cacheproxy.model import Embedding, Judgement, Plan, Verification
    from cacheproxy.policy.active import Policy

_NOW_S = 0.0
_SAME = bytes(32)
"""The compatibility fingerprint of both: nothing but the last user text differs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A question and what the encoder made of it."""

    text: str = field(repr=False)
    embedding: Embedding


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """Whether the cached answer is served, on which tier (None for a miss), why, and by which threshold.

    `threshold` is None where the pack lets nothing be served by similarity.
    """

    served: bool
    tier: Tier | None
    reason: str
    category: str
    similarity: float
    threshold: float | None
    verified: Verification | None = None
    """What the verifier said, where it was asked."""


class Verify(Protocol):
    """What tells how probable it is that a kept answer is right."""

    def verify(self, asked: str, kept: Iterable[tuple[str, float]]) -> list[Verification]:
        """Return a verification for each kept text, given with its cosine."""
        ...


class PairRule:
    """One policy's rule for one encoder, over pairs of requests that differ in their last user text only.

    `verifier` is asked where the policy `verifies`; several threads may rule at once.
    """

    def __init__(self, policy: Policy, epoch: str, verifier: Verify | None = None) -> None:
        self._policy = policy
        self._epoch = epoch
        self._verifier = verifier

    def classify(self, asked: Text, category: str = "") -> Classification:
        """Return the category of a question: the one given, else what rules and examples say, as for a request.

        Raises PackError for a category that the pack does not have.
        """
        pack = self._policy.pack
        if category and category not in pack.categories:
            raise PackError(f"pack {pack.name}: no category {category!r}; known: {', '.join(pack.categories)}")
        if category:
            return Classification(category=category, source="request")
        told = self._policy.told(_query(asked.text))
        if told is not None and (self._policy.settled(told) or self._policy.classify is None):
            return told
        assert self._policy.classify is not None
        return self._policy.settle(told, [self._policy.classify(asked.embedding.vector)])

    def decide(self, cached: Text, asked: Text, category: str = "") -> Ruling:
        """Rule on serving `cached`'s answer, just stored, to `asked`, both under a category or each under its own.

        Raises PackError for a category that the pack does not have.
        """
        query, told = _query(asked.text), self.classify(asked, category)
        allowed = plan(query, self._policy, self._epoch, told)
        entry = self._entry(cached, self.classify(cached, category))
        similarity = float(np.dot(cached.embedding.vector, asked.embedding.vector))
        tier, reason, verified = None, allowed.reason, None
        if entry is None:
            reason = reason or "answer_not_kept"
        elif allowed.exact and not exact_reason(entry, query, allowed, _NOW_S):
            tier, reason = Tier.EXACT, "same_request"
        elif allowed.semantic and entry.vector is None:
            reason = "not_in_index"
        elif allowed.semantic:
            tier, judgement = self._similar(entry, query, allowed, asked.embedding, similarity)
            reason, verified = judgement.reason, judgement.verified
        return Ruling(
            served=tier is not None,
            tier=tier,
            reason=reason,
            category=told.category,
            similarity=similarity,
            threshold=allowed.threshold if allowed.semantic else None,
            verified=verified,
        )

    def _similar(
        self, entry: Entry, query: Query, allowed: Plan, embedding: Embedding, similarity: float
    ) -> tuple[Tier | None, Judgement]:
        searched = entry.partition.category in allowed.searched
        partition = entry.partition if searched else replace(entry.partition, category=allowed.category)
        ruled = partial(
            judge,
            Candidate(entry.id, similarity),
            entry,
            query=query,
            plan=allowed,
            partition=partition,
            embedding=embedding,
            now_s=_NOW_S,
        )
        judgement = ruled()
        if judgement.reason == "not_verified" and self._verifier is not None:
            judgement = ruled(verified=self._verifier.verify(query.text, [(entry.text, similarity)])[0])
        return (Tier.SEMANTIC if judgement.served else None), judgement

    def _entry(self, cached: Text, told: Classification) -> Entry | None:
        """Return what the cache would keep of a question's answer; None for nothing."""
        query = _query(cached.text)
        allowed = plan(query, self._policy, self._epoch, told)
        if not allowed.store:
            return None
        return Entry(
            id=entry_id(query.fingerprint),
            fingerprint=query.fingerprint,
            partition=Partition(category=told.category, compatibility=_SAME, epoch=self._epoch),
            tenant=query.scope.tenant,
            text=cached.text,
            reply=Reply(body={}, source="body"),
            created_s=_NOW_S,
            expires_s=_NOW_S + allowed.ttl_s,
            fill_ms=0.0,
            unseen=cached.embedding.unseen,
            vector=cached.embedding.vector if allowed.embed else None,
        )


def _query(text: str) -> Query:
    return Query(
        dialect="chat",
        scope=Scope(tenant="pairs"),
        model="",
        text=text,
        fingerprint=blake2b(text.encode(), digest_size=32).digest(),
        compatibility=_SAME,
        wire=Wire(),
        controls=Controls(),
        traits=frozenset() if text.strip() else frozenset({Trait.NO_TEXT}),
    )
