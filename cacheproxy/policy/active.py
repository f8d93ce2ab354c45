"""The policy in force: one immutable snapshot of a pack, made ready to decide. Each request sees exactly one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Protocol

from cacheproxy.model import Classification
from cacheproxy.policy.pack import Category

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

    from cacheproxy.model import Query
    from cacheproxy.policy.pack import Pack
    from cacheproxy.policy.rules import Rules


class Classify(Protocol):
    """What tells a query's category from its embedding."""

    def __call__(self, vector: NDArray[np.float32]) -> Classification:
        """Return the category of a unit vector of shape (dim,), never one that the pack does not have."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A pack with its compiled rules and, where categories have examples, what tells them apart."""

    pack: Pack
    rules: Rules
    version: int = 0
    classify: Classify | None = None
    """None where no category has examples, or no encoder made vectors of them."""

    @property
    def etag(self) -> str:
        """The version as an entity tag (RFC 9110 section 8.8.3)."""
        return f'"{self.version}"'

    def told(self, query: Query) -> Classification | None:
        """Return the category that the request or a rule names, or the default one where nothing else can decide.

        None where the text must be looked at: by the examples of the categories.
        """
        if query.controls.category is not None:
            return Classification(category=query.controls.category, source="request")
        if claimed := self.rules.claim(query):
            return Classification(category=claimed, source="rule")
        if not self.by_examples or not query.text.strip():
            return Classification(category=self.pack.default_category)
        return None

    @property
    def by_examples(self) -> tuple[str, ...]:
        """The categories that examples can claim queries for, and the default one."""
        named = [name for name, rules in self.pack.categories.items() if rules.examples]
        return tuple(dict.fromkeys([self.pack.default_category, *named])) if named else ()

    def unknown(self) -> Classification:
        """Return what stands for a query whose text could not be embedded: any category might be its own."""
        return Classification(category=self.pack.default_category, source="unknown")


def stricter(categories: Iterable[Category]) -> Category:
    """Return rules that allow what all of these allow, and nothing more."""
    return reduce(_stricter, categories)


def _stricter(one: Category, other: Category) -> Category:
    return Category(
        description=one.description,
        allow_caching=one.allow_caching and other.allow_caching,
        semantic=one.semantic and other.semantic,
        ttl_s=min(one.ttl_s, other.ttl_s),
        max_temperature=min(one.max_temperature, other.max_temperature),
        max_stale_s=min(one.max_stale_s, other.max_stale_s),
        stale_if_error_s=min(one.stale_if_error_s, other.stale_if_error_s),
        stale_while_revalidate_s=min(one.stale_while_revalidate_s, other.stale_while_revalidate_s),
        candidates=max(one.candidates, other.candidates),
        tool_calls=one.tool_calls and other.tool_calls,
        structured_output=one.structured_output and other.structured_output,
        priority=min(one.priority, other.priority),
        quota=one.quota,
        tenant_share=min(one.tenant_share, other.tenant_share),
        ttl_jitter=max(one.ttl_jitter, other.ttl_jitter),
        load_threshold_drop=min(one.load_threshold_drop, other.load_threshold_drop),
        load_ttl_stretch=min(one.load_ttl_stretch, other.load_ttl_stretch),
        near_miss_band=one.near_miss_band,
        pii=tuple(dict.fromkeys((*one.pii, *other.pii))),
    )


def widest(categories: Iterable[Category]) -> Category:
    """Return rules that allow what any of these allows: what may still be possible before the category is known."""
    return reduce(_wider, categories)


def _wider(one: Category, other: Category) -> Category:
    return Category(
        allow_caching=one.allow_caching or other.allow_caching,
        semantic=one.semantic or other.semantic,
        ttl_s=max(one.ttl_s, other.ttl_s),
        max_temperature=max(one.max_temperature, other.max_temperature),
        max_stale_s=max(one.max_stale_s, other.max_stale_s),
        stale_if_error_s=max(one.stale_if_error_s, other.stale_if_error_s),
        stale_while_revalidate_s=max(one.stale_while_revalidate_s, other.stale_while_revalidate_s),
        tool_calls=one.tool_calls or other.tool_calls,
        structured_output=one.structured_output or other.structured_output,
    )
