"""Filing: the entry that an answer is kept as, and whether personal data forbids it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheproxy.errors import PartUnavailable
from cacheproxy.model import CONSENT_TAG, Entry, Partition, entry_id
from cacheproxy.policy.active import may_be_private
from cacheproxy.policy.jitter import jittered
from cacheproxy.policy.share import common_tag
from cacheproxy.query.variant import variant

if TYPE_CHECKING:
    from cacheproxy.journey import Journey
    from cacheproxy.model import Embedding
    from cacheproxy.parts import Parts
    from cacheproxy.policy.admit import Keep, Lifetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Filing:
    """Under what an answer is kept, beside its question."""

    key: bytes
    """The request's fingerprint, or its variant's key: 32 bytes."""
    now_s: float
    fill_ms: float
    """How long the backend took."""
    epoch: str = ""
    """The encoder's; "" without one, and where no text is ever looked for by similarity."""
    embedding: Embedding | None = None
    """The question's, in its conversation; None for an answer that serves the exact tier only."""


def entry_of(journey: Journey, kept: Keep, filing: Filing) -> Entry:
    """Return the entry of an answer that may be kept. It lives as long as admitted, shortened by the plan's jitter."""
    query, plan, life, embedding = journey.query, journey.plan, kept.life, filing.embedding
    own = life.ttl_s == plan.ttl_s  # and not the backend's word
    ttl_s = jittered(life.ttl_s, plan.ttl_jitter, query.fingerprint) if own else life.ttl_s
    expires_s = filing.now_s + ttl_s
    return Entry(
        id=entry_id(filing.key),
        fingerprint=query.fingerprint,
        partition=Partition(category=plan.category, compatibility=query.compatibility, epoch=filing.epoch),
        tenant=query.scope.tenant,
        text=query.text,
        reply=kept.reply,
        created_s=filing.now_s - life.age_s,
        expires_s=expires_s,
        stale_until_s=expires_s + life.stale_s,
        revalidate_s=life.revalidate_s,
        on_error_s=life.on_error_s,
        vary=life.vary,
        variant=variant(query, life.vary),
        fill_ms=filing.fill_ms,
        unseen=embedding.unseen if embedding else b"",
        vector=embedding.vector if embedding else None,
        tags=(
            *query.controls.tags,
            *((CONSENT_TAG,) if query.scope.consents else ()),
            *_sharable(journey, life, embedding),
        ),
        namespace=query.scope.namespace,
        model=query.model,
        user=query.user,
        second=plan.second,
        chain=query.chain if embedding else (),
        origin=journey.origin,
        policy=journey.policy.version,
    )


async def private(parts: Parts, told: object, kinds: tuple[str, ...]) -> str:
    """Return why personal data of these kinds, none for no matter, forbids keeping what was told, or "".

    What cannot be looked through is not kept.
    """
    if not kinds:
        return ""
    if parts.pii is None:
        return "pii_unavailable"
    try:
        return "pii" if await parts.pii.find(told, kinds) else ""
    except PartUnavailable as exc:
        return parts.failed(exc)


def _sharable(journey: Journey, life: Lifetime, embedding: Embedding | None) -> tuple[str, ...]:
    """Return the tag of an answer that tenants may come to share, or nothing: where it may be private, above all."""
    common, seen = journey.query.common, journey.seen
    if journey.plan.shared is None or common is None or embedding is None or life.vary:
        return ()
    return () if seen is not None and may_be_private(journey.policy, seen) else (common_tag(common),)
