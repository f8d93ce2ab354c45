"""The maker: a pack made ready to decide, its rules compiled and a classifier fitted on its examples."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cacheproxy.errors import EmbedderUnavailable
from cacheproxy.model import Classification
from cacheproxy.policy.active import Policy
from cacheproxy.policy.rules import Rules

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from cacheproxy.model import Embedding
    from cacheproxy.policy.active import Classify
    from cacheproxy.policy.learnt import Learnt
    from cacheproxy.policy.pack import Pack
    from cacheproxy.policy.pairrule import Verify

    EmbedAll = Callable[[Sequence[str]], Awaitable[Sequence[Embedding]]]
    Fit = Callable[[Pack, Mapping[str, Sequence[NDArray[np.float32]]]], Classify | None]

MOST_TEXTS = 20_000
"""Most embeddings remembered: those that were wanted last."""
_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What a policy is made with. `embed_all` raises EmbedderUnavailable; `fit` blocks and gets a thread."""

    epoch: str
    """The fingerprint of the encoder behind `embed_all`."""
    tenant_of: Callable[[str], str]
    embed_all: EmbedAll
    fit: Fit
    verifier: Verify | None = None
    """What verifies hits, where it knows this encoder."""
    learnt: Mapping[str, Learnt] = field(default_factory=dict)
    """What similarity heads bring along; it grows with every head that is adopted."""


class PolicyMaker:
    """Makes policies. What stays from one pack to the next costs nothing: embeddings and the last fit are kept."""

    def __init__(self, means: Means) -> None:
        self.epoch = means.epoch
        self.verifier = means.verifier
        self._means = means
        self._memo: dict[str, Embedding] = {}
        self._fitted: tuple[object, Classify | None] = (None, None)

    async def make(self, pack: Pack, version: int) -> Policy:
        """Return a pack as a policy. Raises EmbedderUnavailable when its examples cannot be embedded."""
        rules = Rules(pack.categories, self._means.tenant_of)
        examples = {name: category.examples for name, category in pack.categories.items() if category.examples}
        if not examples:
            return self._policy(pack, rules, version, None)
        never = [name for name, category in pack.categories.items() if not category.allow_caching]
        fitted_on = (examples, never, [*pack.categories], pack.default_category, pack.classifier)
        if fitted_on != self._fitted[0]:
            seen = await self.embed([text for texts in examples.values() for text in texts])
            vectors = {name: [seen[text].vector for text in texts] for name, texts in examples.items()}
            self._fitted = fitted_on, await asyncio.to_thread(self._means.fit, pack, vectors)
        return self._policy(pack, rules, version, self._fitted[1])

    def unknowing(self, pack: Pack, version: int) -> Policy:
        """Return a pack as a policy that knows of no text which category it is of: any, so the strictest applies."""
        unknown = Classification(category=pack.default_category, source="unknown")
        return self._policy(pack, Rules(pack.categories, self._means.tenant_of), version, lambda _: unknown)

    def _policy(self, pack: Pack, rules: Rules, version: int, classify: Classify | None) -> Policy:
        return Policy(
            pack=pack,
            rules=rules,
            version=version,
            classify=classify,
            verifies=self.verifier is not None,
            learnt=self._means.learnt,
        )

    async def embed(self, texts: Sequence[str]) -> dict[str, Embedding]:
        """Return the embedding of each text. Raises EmbedderUnavailable."""
        wanted = dict.fromkeys(texts)
        seen = {text: self._memo[text] for text in wanted if text in self._memo}
        missing = [text for text in wanted if text not in seen]
        if missing:
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    found = await self._means.embed_all(missing)
            except TimeoutError as exc:
                raise EmbedderUnavailable(f"{len(missing)} texts took longer than {_TIMEOUT_S:g} s") from exc
            seen.update(zip(missing, found, strict=True))
        self._remember(seen)
        return {text: seen[text] for text in wanted}

    @property
    def remembered(self) -> int:
        """Embeddings that cost nothing now."""
        return len(self._memo)

    def _remember(self, seen: Mapping[str, Embedding]) -> None:
        others = {text: known for text, known in self._memo.items() if text not in seen}
        latest = [*others.items(), *seen.items()]
        self._memo = dict(latest[-MOST_TEXTS:])
