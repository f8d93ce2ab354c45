"""Examining: what a proxy's own labelled pairs, and its pack's probes, say of another similarity head."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cacheproxy.errors import ConfigError, PackError
from cacheproxy.learn.pairfile import read_pairs
from cacheproxy.policy.gate import Told, best_threshold, decide
from cacheproxy.policy.loader import find_pack
from cacheproxy.policy.plan import threshold_of
from cacheproxy.policy.probes import load_probes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from cacheproxy.govern.book import PolicyBook
    from cacheproxy.index.spaces import Projection
    from cacheproxy.learn.pairfile import PairRows
    from cacheproxy.policy.active import Policy
    from cacheproxy.policy.gate import Terms, Verdict

    Rows = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A head, or the encoder alone, as pairs are looked at with it."""

    epoch: str
    head: Projection | None

    def cosines(self, a: Rows, b: Rows) -> NDArray[np.float64]:
        """Return the similarity of each pair of the encoder's vectors, shape (n,)."""
        if self.head is not None:
            a, b = self.head.project(a), self.head.project(b)
        cosines: NDArray[np.float64] = np.einsum("ij,ij->i", a, b, dtype=np.float64)
        return cosines


@dataclass(frozen=True, slots=True, kw_only=True)
class Examining:
    """Where labelled pairs are, and what a head must show on those that are held back from training."""

    pairs: Path
    base: str
    book: PolicyBook
    terms: Terms

    async def examine(self, before: Seen, after: Seen, policy: Policy) -> Verdict:
        """Return whether a head may take the place of another. `policy` knows the thresholds of both.

        Raises EmbedderUnavailable when the probes cannot be embedded.
        """
        rows = await asyncio.to_thread(self._rows)
        probes = await self._probes(policy)
        return await asyncio.to_thread(self._decided, rows, probes, (before, after), policy)

    def _decided(
        self, rows: PairRows | None, probes: _Pairs | None, seen: tuple[Seen, Seen], policy: Policy
    ) -> Verdict:
        if rows is None:
            local = _told(_NONE, seen, policy, {})
            return decide(local, None, self.terms)
        usual = {one.epoch: _usual(rows, one) for one in seen}
        held = _Pairs(
            a=rows.a[rows.held],
            b=rows.b[rows.held],
            right=rows.right[rows.held],
            group=rows.group[rows.held],
            category=[name for name, held in zip(rows.category, rows.held, strict=True) if held],
        )
        elsewhere = None if probes is None else _told(probes, seen, policy, usual)
        return decide(_told(held, seen, policy, usual), elsewhere, self.terms)

    def _rows(self) -> PairRows | None:
        try:
            return read_pairs(self.pairs, self.base)
        except ConfigError:
            return None  # none were collected

    async def _probes(self, policy: Policy) -> _Pairs | None:
        try:
            found = await asyncio.to_thread(lambda: load_probes(find_pack(self.book.source), policy.pack))
        except PackError:
            return None
        pairs = [one for one in found.probes if not one.category or one.category in policy.pack.categories]
        if not pairs:
            return None
        known = await self.book.embed([text for one in pairs for text in (one.cached, one.asked)])
        return _Pairs(
            a=np.stack([known[one.cached].vector for one in pairs]),
            b=np.stack([known[one.asked].vector for one in pairs]),
            right=np.array([one.expect == "hit" for one in pairs]),
            group=np.arange(len(pairs)),
            category=[one.category or policy.pack.default_category for one in pairs],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pairs:
    a: Rows
    b: Rows
    right: NDArray[np.bool_]
    group: NDArray[np.int64]
    category: Sequence[str]


_NONE = _Pairs(
    a=np.empty((0, 1), np.float32),
    b=np.empty((0, 1), np.float32),
    right=np.empty(0, np.bool_),
    group=np.empty(0, np.int64),
    category=(),
)


def _told(pairs: _Pairs, seen: tuple[Seen, Seen], policy: Policy, usual: dict[str, float]) -> Told:
    before, after = seen
    return Told(
        right=pairs.right,
        group=pairs.group,
        category=pairs.category,
        before=before.cosines(pairs.a, pairs.b) if len(pairs.right) else np.empty(0),
        after=after.cosines(pairs.a, pairs.b) if len(pairs.right) else np.empty(0),
        threshold_before=_thresholds(pairs.category, before.epoch, policy, usual),
        threshold_after=_thresholds(pairs.category, after.epoch, policy, usual),
    )


def _thresholds(categories: Sequence[str], epoch: str, policy: Policy, usual: dict[str, float]) -> NDArray[np.float64]:
    """Return the threshold of each pair, as if no verifier were asked."""
    learnt, found = policy.learnt.get(epoch), {}
    for name in set(categories):
        threshold, verified = threshold_of(policy, name, epoch)
        if verified or threshold is None:
            threshold = None if learnt is None else learnt.thresholds.get(name, learnt.rest)
        if threshold is None:
            threshold = policy.pack.threshold(name, epoch)
        found[name] = usual.get(epoch, 1.0) if threshold is None else threshold
    return np.array([found[name] for name in categories], dtype=np.float64)


def _usual(rows: PairRows, seen: Seen) -> float:
    """Return where F-beta is best on the pairs that are not held back."""
    free = ~rows.held
    return best_threshold(seen.cosines(rows.a[free], rows.b[free]), rows.right[free])
