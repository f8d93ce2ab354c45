"""Would one question be served another's cached answer? The proxy's own plan and judgement, asked about two texts."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from cacheproxy.errors import PackError
from cacheproxy.model import Candidate, Controls, Entry, Partition, Query, Reply, Scope, Tier, Trait, Wire
from cacheproxy.policy.decide import exact_reason, judge
from cacheproxy.policy.plan import plan

if TYPE_CHECKING:
    from cacheproxy.model import Embedding
    from cacheproxy.policy.pack import Pack

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


class PairRule:
    """One pack's rule for one encoder, over pairs of requests that differ in their last user text only."""

    def __init__(self, pack: Pack, epoch: str) -> None:
        self._pack = pack
        self._epoch = epoch

    def decide(self, cached: Text, asked: Text, category: str = "") -> Ruling:
        """Rule on serving `cached`'s answer, just stored, to `asked`. An empty category means the pack's default one.

        Raises PackError for a category that the pack does not have.
        """
        name = category or self._pack.default_category
        if name not in self._pack.categories:
            raise PackError(f"pack {self._pack.name}: no category {name!r}; known: {', '.join(self._pack.categories)}")
        query = _query(asked.text, name)
        allowed = plan(query, self._pack, self._epoch)
        entry = self._entry(cached, name, allowed.ttl_s)
        similarity = float(np.dot(cached.embedding.vector, asked.embedding.vector))
        tier, reason = None, allowed.reason
        if allowed.exact and not exact_reason(entry, query, allowed, _NOW_S):
            tier, reason = Tier.EXACT, "same_request"
        elif allowed.semantic:
            judgement = judge(
                Candidate(entry.id, similarity),
                entry,
                query=query,
                plan=allowed,
                partition=entry.partition,
                embedding=asked.embedding,
                now_s=_NOW_S,
            )
            tier, reason = Tier.SEMANTIC if judgement.served else None, judgement.reason
        return Ruling(
            served=tier is not None,
            tier=tier,
            reason=reason,
            category=name,
            similarity=similarity,
            threshold=allowed.threshold if allowed.semantic else None,
        )

    def _entry(self, cached: Text, category: str, ttl_s: float) -> Entry:
        query = _query(cached.text, category)
        return Entry(
            id=query.fingerprint[:16].hex(),
            fingerprint=query.fingerprint,
            partition=Partition(category=category, compatibility=_SAME, epoch=self._epoch),
            tenant=query.scope.tenant,
            text=cached.text,
            reply=Reply(body={}, source="body"),
            created_s=_NOW_S,
            expires_s=_NOW_S + ttl_s,
            fill_ms=0.0,
            unseen=cached.embedding.unseen,
            vector=cached.embedding.vector,
        )


def _query(text: str, category: str) -> Query:
    return Query(
        dialect="chat",
        scope=Scope(tenant="pairs"),
        model="",
        text=text,
        fingerprint=blake2b(text.encode(), digest_size=32).digest(),
        compatibility=_SAME,
        wire=Wire(),
        controls=Controls(category=category),
        traits=frozenset() if text.strip() else frozenset({Trait.NO_TEXT}),
    )
