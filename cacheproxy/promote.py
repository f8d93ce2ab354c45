"""Promote: a near miss gets its candidate's answer as an entry of its own, because an operator says that it is right.

The next such question is an exact hit, and what is near to it may be one by similarity (Krites, arXiv 2602.13165,
without its judge). Nothing is served that policy, expiry or a caller's word speaks against.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cacheproxy.errors import NotFound, NotPromoted, PartUnavailable
from cacheproxy.learn.nearmisses import NearMiss
from cacheproxy.model import ALIAS_TAG, COMMON_TAG, CONSENT_TAG, Partition, entry_id
from cacheproxy.policy.whole import calls_tools

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cacheproxy.model import Entry, Looked
    from cacheproxy.parts import Parts
    from cacheproxy.policy.active import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """The entry that a near miss gets. `replaces` says whether its question has an entry already, and loses it."""

    entry: Entry
    source: Entry
    replaces: bool


async def promotion(parts: Parts, policy: Policy, near_miss: NearMiss) -> Promotion:
    """Return what promoting would do; nothing is changed.

    Raises NotFound when the candidate is gone, NotPromoted telling what speaks against it, and PartUnavailable.
    """
    looked = near_miss.looked
    source = await parts.store.get(looked.entry_id)
    if source is None:
        raise NotFound("the entry that was nearly served is gone; this near miss has nothing to be promoted to")
    if why := _against(parts, policy, looked, source) or await _personal(parts, policy, looked, source):
        raise NotPromoted(f"this near miss may not be promoted: {why}")
    own = await parts.store.get(entry_id(looked.question))
    return Promotion(entry=_alias(parts, policy, looked, source), source=source, replaces=own is not None)


async def promote(parts: Parts, policy: Policy, near_miss: NearMiss, fence: int) -> Promotion:
    """Keep what `promotion` returns. Raises as it does; what was purged meanwhile is not kept, nor any alias of it.

    `fence` is the store's of before the near miss and the policy were read.
    """
    made = await promotion(parts, policy, near_miss)
    entry = made.entry
    if not await parts.store.put(entry, fence):
        raise NotPromoted("this near miss may not be promoted: its question was purged just now")
    if await parts.store.get(made.source.id) is None:
        await parts.store.purge([entry.id])
        raise NotFound("the entry that was nearly served was purged just now")
    if entry.vector is not None:
        parts.index.add(entry.partition, entry.id, entry.vector)
    if parts.store.over_cap:
        parts.make_room()
    return made


async def promote_judged(parts: Parts, policy: Policy, looked: Looked, source_id: str) -> bool:
    """Give a question the answer of an entry that a judge found right for it; return whether that was done.

    Not where the question has an entry of its own: the backend's answer to it is as good, and newer.
    """
    near_miss = NearMiss(id="", serial=0, times=1, looked=replace(looked, entry_id=source_id))
    fence = parts.store.fence
    try:
        if (await promotion(parts, policy, near_miss)).replaces:
            return False
        await promote(parts, policy, near_miss, fence)
    except (NotFound, NotPromoted, PartUnavailable):
        return False
    return True


def _against(parts: Parts, policy: Policy, looked: Looked, source: Entry) -> str:
    """Return what speaks against it, or ""."""
    for category in (looked.category, source.partition.category):
        rules = policy.pack.categories.get(category)
        if rules is None or not rules.allow_caching:
            return f"the category {category} is not cached now"
    embedder = parts.embedder
    if looked.embedding is None or embedder is None or source.partition.epoch != embedder.epoch:
        return "it was found with another encoder than the one in use"
    if source.tenant != looked.tenant or source.partition.compatibility != looked.compatibility:
        return "the entry belongs to another scope"
    if parts.clock.now() >= source.expires_s:
        return "the entry has expired"
    if source.vary:
        return "the backend chose the entry's answer by request headers"
    if calls_tools(_dialect(source.reply.body), source.reply.body):
        return "the entry's answer calls tools"
    if parts.feedback is not None and parts.feedback.quarantined(source, looked.question):
        return "a caller said that this answer is wrong for this question"
    return ""


def _dialect(body: Mapping[str, Any]) -> str:
    """Return which of the APIs whose answers may call tools this one is of, or ""."""
    if "output" in body:
        return "responses"
    choices = body.get("choices", ())
    return "chat" if choices and all("message" in choice for choice in choices) else ""


async def _personal(parts: Parts, policy: Policy, looked: Looked, source: Entry) -> str:
    kinds = policy.pack.categories[looked.category].pii
    if not kinds:
        return ""
    if parts.pii is None or await parts.pii.find([looked.text, source.reply.body], kinds):
        return "it holds personal data that its category does not keep"
    return ""


def _alias(parts: Parts, policy: Policy, looked: Looked, source: Entry) -> Entry:
    """Return the near miss's own entry. It is as old as its answer, and lives no longer than the entry it is from."""
    embedding, embedder = looked.embedding, parts.embedder
    # Its question is the near miss's, and so is the word on what may be trained on.
    kept = (tag for tag in source.tags if tag != CONSENT_TAG and not tag.startswith((ALIAS_TAG, COMMON_TAG)))
    lifetime_s = policy.pack.categories[looked.category].ttl_s
    return replace(
        source,
        id=entry_id(looked.question),
        fingerprint=looked.question,
        partition=Partition(
            category=looked.category, compatibility=looked.compatibility, epoch=embedder.epoch if embedder else ""
        ),
        text=looked.text,
        chain=looked.chain,
        expires_s=min(source.expires_s, parts.clock.now() + lifetime_s),
        unseen=embedding.unseen if embedding else b"",
        vector=embedding.vector if embedding else None,
        user=looked.user or source.user,
        tags=(*kept, *((CONSENT_TAG,) if not looked.untaught else ()), f"{ALIAS_TAG}{source.id}"),
        origin="promoted",
        policy=policy.version,
    )
