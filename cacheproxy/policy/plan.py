"""Plan: what policy allows for one query, before anything is looked up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cacheproxy.errors import InvalidRequest
from cacheproxy.model import Plan, Staleness, Tier, Trait

if TYPE_CHECKING:
    from cacheproxy.model import Controls, Query
    from cacheproxy.policy.pack import Category, Pack

# Requests that the cache leaves alone: the answer depends on who or when, or cannot be kept whole.
_BYPASS = (Trait.UNREADABLE, Trait.ANONYMOUS, Trait.STATEFUL, Trait.LIVE_SEARCH, Trait.AUDIO)
# Requests that only the very same request may share: what must be equal is not all in the last user text.
_EXACT_ONLY = (
    Trait.TOOLS,
    Trait.IMAGE,
    Trait.MIXED_CONTENT,
    Trait.MANY_CHOICES,
    Trait.LOGPROBS,
    Trait.RESPONSE_FORMAT,
    Trait.LAST_MESSAGE,
    Trait.NO_TEXT,
    Trait.MANY_PROMPTS,
    Trait.BEST_OF,
    Trait.ECHO,
    Trait.SUFFIX,
)


def plan(query: Query, pack: Pack, epoch: str | None) -> Plan:
    """Decide which tiers may be read and whether the answer may be kept.

    `epoch` is the encoder's, or None when there is none. The first rule that narrows is the plan's reason; a bypass
    outranks an exact-only rule. Raises InvalidRequest when the caller names a category the pack does not have.
    """
    name = query.controls.category or pack.default_category
    category = pack.categories.get(name)
    if category is None:
        known = ", ".join(sorted(pack.categories))
        raise InvalidRequest(f"unknown category; this pack has: {known}", param="x-cacheproxy-category")
    threshold = pack.threshold(name, epoch) if epoch is not None else None
    bypass = _bypass_reason(query, category)
    exact_only = _exact_only_reason(query, category, epoch, threshold)
    controls = query.controls
    look = not bypass and not controls.no_cache
    return Plan(
        category=name,
        exact=look and Tier.EXACT in controls.tiers,
        semantic=look and not exact_only and Tier.SEMANTIC in controls.tiers,
        store=not bypass and not controls.no_store,
        embed=not bypass and not exact_only,
        threshold=max(threshold or 0.0, controls.threshold or 0.0),
        ttl_s=min(category.ttl_s, controls.ttl_s if controls.ttl_s is not None else category.ttl_s),
        candidates=category.candidates,
        reason=bypass or _control_reason(controls) or exact_only,
        max_age_s=controls.max_age_s,
        min_fresh_s=controls.min_fresh_s or 0.0,
        only_if_cached=controls.only_if_cached,
        stale=_staleness(controls, category),
        keep_tool_calls=category.tool_calls and Trait.TOOLS in query.traits,
    )


def _staleness(controls: Controls, category: Category) -> Staleness:
    return Staleness(
        cap_s=category.max_stale_s,
        asked_s=controls.max_stale_s,
        asked_on_error_s=controls.stale_if_error_s,
        on_error_s=category.stale_if_error_s,
        while_revalidate_s=category.stale_while_revalidate_s,
    )


def _bypass_reason(query: Query, category: Category) -> str:
    for trait in _BYPASS:
        if trait in query.traits:
            return trait.value
    if not category.allow_caching:
        return "category_not_cached"
    if Trait.RESPONSE_FORMAT in query.traits and not category.structured_output:
        return Trait.RESPONSE_FORMAT.value
    if query.temperature is not None and query.temperature > category.max_temperature:
        return "temperature"
    if not query.controls.tiers:
        return "tier_off"
    return ""


def _control_reason(controls: Controls) -> str:
    if controls.no_cache:
        return "request_no_cache"
    return "request_no_store" if controls.no_store else ""


def _exact_only_reason(query: Query, category: Category, epoch: str | None, threshold: float | None) -> str:
    for trait in _EXACT_ONLY:
        if trait in query.traits:
            return trait.value
    if Tier.SEMANTIC not in query.controls.tiers:
        return "tier_exact"
    if not category.semantic:
        return "category_exact_only"
    if epoch is None:
        return "no_encoder"
    return "" if threshold is not None else "encoder_not_calibrated"
