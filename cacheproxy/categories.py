"""Categories: of which one a query is, told by what its texts are near to, or by the entry of the very same request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cacheproxy.errors import EmbedderUnavailable, PartUnavailable
from cacheproxy.model import Classification
from cacheproxy.policy.active import of_conversation

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cacheproxy.contexts import Contexts
    from cacheproxy.journey import Journey
    from cacheproxy.model import Entry
    from cacheproxy.parts import Parts
    from cacheproxy.policy.active import Policy


class Categories:
    """Settles queries' categories. No embedding is kept of what turns out not to be cached."""

    def __init__(self, parts: Parts, contexts: Contexts) -> None:
        self._parts = parts
        self._contexts = contexts

    async def classify(self, journey: Journey) -> None:
        """Settle the category by what the text is near to.

        Raises EmbedderUnavailable where the encoder fails; the strictest policy of all applies then: the text may be
        of any category.
        """
        query, policy = journey.query, journey.policy
        texts = [text for text in (query.text, *(query.earlier if policy.cautious else ())) if text.strip()]
        try:
            seen = await self._seen(journey, texts)
        except PartUnavailable:
            self._settle(journey, [policy.unknown()], texts)
            raise
        if not query.text.strip():
            seen.insert(0, Classification(category=policy.pack.default_category))
        journey.seen = seen[0]
        self._settle(journey, seen, texts)

    def give_up(self, journey: Journey) -> None:
        """Let the strictest policy apply to a query whose category could not be told in time."""
        if not journey.settled:
            self._settle(journey, [journey.policy.unknown()], (journey.query.text, *journey.query.earlier))

    def _settle(self, journey: Journey, seen: Sequence[Classification], texts: Iterable[str]) -> None:
        journey.settle(journey.policy.settle(journey.told, seen), self._parts.epoch)
        if not (journey.plan.lookup or journey.plan.store):
            self._contexts.forget(journey, texts)

    async def _seen(self, journey: Journey, texts: Sequence[str]) -> list[Classification]:
        """Return what each text is near to; the question's own embedding is kept for the lookup."""
        classify, query = journey.policy.classify, journey.query
        if self._parts.embedder is None or classify is None:
            raise EmbedderUnavailable("there is no encoder to classify by")
        seen = [classify((await self._contexts.embedded(journey, text)).vector) for text in texts]
        if query.chain and query.text.strip():
            whole = classify(await self._contexts.about(journey))
            seen = [of_conversation(whole, seen[0]), whole, *seen]
        return seen


def filed(policy: Policy, entry: Entry) -> Classification:
    """Return the category that an entry was kept under, as what the very same request is of."""
    known = policy.pack.categories
    category = entry.partition.category
    if category not in known:
        return Classification(category=policy.pack.default_category)  # and the entry is of another one
    return Classification(category=category, second=entry.second if entry.second in known else "", source="entry")
