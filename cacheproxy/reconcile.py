"""Reconcile: what is kept agrees with the policy in force. What may not be kept any more goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from cacheproxy.errors import EmbedderUnavailable
from cacheproxy.model import Controls, Query, Scope, Selector, Wire
from cacheproxy.policy.active import may_be_private
from cacheproxy.policy.edit import no_longer_kept, told_by

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cacheproxy.model import Entry
    from cacheproxy.policy.active import Policy
    from cacheproxy.ports import Embedder, EntryCatalogue

log = structlog.get_logger()

_PAGE = 200
_NONE_OF_THEM = Selector(before_s=0.0)
"""Entries made before the epoch: erasing them removes nothing, and refuses every fill that has begun."""


class Reconciler:
    """A listener of policy changes: removes what belongs to categories that are gone, or never cached from now on.

    `erase` removes what a selector means everywhere, and returns how many entries that were.
    """

    def __init__(
        self,
        catalogue: EntryCatalogue,
        embedder: Embedder | None,
        erase: Callable[[Selector], Awaitable[int]],
    ) -> None:
        self._catalogue = catalogue
        self._embedder = embedder
        self._erase = erase

    async def __call__(self, before: Policy, after: Policy) -> None:
        """Act on a change, to its end. Raises StoreUnavailable, and EmbedderUnavailable where texts cannot be read."""
        for name in no_longer_kept(before.pack, after.pack):
            removed = await self._erase(Selector(category=name))
            log.info("category_emptied", category=name, entries=removed)
        never = {name for name, rules in after.pack.categories.items() if not rules.allow_caching}
        if never and told_by(before.pack) != told_by(after.pack):
            await self._catalogue.erase(_NONE_OF_THEM, scrub=False)
            await self._look_again(after, frozenset(never))

    async def _look_again(self, policy: Policy, never: frozenset[str]) -> None:
        """Remove entries that, by their text or by rules, are now of a category that is never cached, or may be."""
        looked, private = 0, list[str]()
        after: int | None = 0
        while after is not None:
            page = await self._catalogue.page(Selector(), after=after, limit=_PAGE)
            private += [entry.id for entry in page.entries if await self._is_private(policy, never, entry)]
            looked, after = looked + len(page.entries), page.after
        removed = await self._erase(Selector(ids=tuple(private))) if private else 0
        log.info("entries_classified_again", entries=looked, removed=removed)

    async def _is_private(self, policy: Policy, never: frozenset[str], entry: Entry) -> bool:
        if policy.rules.claim(_asked(entry)) in never:
            return True
        if policy.classify is None or not policy.cautious or not entry.text.strip():
            return False
        vector, embedder = entry.vector, self._embedder
        if embedder is not None and (vector is None or entry.partition.epoch != embedder.epoch):
            try:
                vector = (await embedder.embed(entry.text, scope=entry.tenant)).vector
            except EmbedderUnavailable:
                if embedder.health():
                    raise
                return True  # this text alone cannot be read, and never will be
        if vector is None:
            raise EmbedderUnavailable("there is no encoder to classify by")
        seen = policy.classify(vector)
        if seen.source == "unknown":
            raise EmbedderUnavailable("the examples of the categories are not embedded yet")
        return may_be_private(policy, seen)


def _asked(entry: Entry) -> Query:
    """Return what is still known of the request that an entry answered: not its system prompt, headers and history."""
    return Query(
        dialect="",
        scope=Scope(tenant=entry.tenant, namespace=entry.namespace),
        model=entry.model,
        text=entry.text,
        fingerprint=entry.fingerprint,
        compatibility=entry.partition.compatibility,
        wire=Wire(),
        controls=Controls(),
    )
