"""Examining: what a proxy's own labelled pairs, and its pack's probes, say of another similarity head."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from cacheproxy.errors import ConfigError, PackError
from cacheproxy.learn.pairfile import read_pairs
from cacheproxy.policy.calibrate import best_f, curve
from cacheproxy.policy.gate import BETA, Told, decide
from cacheproxy.policy.loader import find_pack
from cacheproxy.policy.plan import plain_epoch, threshold_of
from cacheproxy.policy.probes import load_probes

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from cacheproxy.govern.book import PolicyBook
    from cacheproxy.index.space import Projection
    from cacheproxy.learn.pairfile import PairRows
    from cacheproxy.model import Embedding
    from cacheproxy.policy.active import Policy
    from cacheproxy.policy.gate import Terms, Verdict
    from cacheproxy.ports import Progress

    Rows = NDArray[np.float32]
    Cosines = NDArray[np.float64]

_AT_ONCE = 4096
"""Pairs that are projected together: a file may hold 200,000."""

_TOLD_AT_ONCE = 64
"""Texts after which progress is told."""

MOST_TEXTS = 2000
"""Pairs, the latest ones, whose texts are encoded to examine an encoder with changed layers: half a minute."""


class Embeds(Protocol):
    """An encoder of its own (`embed.slow.Slow`, `recoding.Recoding`)."""

    async def embedded(self, texts: Collection[str]) -> Mapping[str, Embedding]:
        """Return the embeddings of texts; those that it cannot read are left out. Raises EmbedderUnavailable."""
        ...


class Counted:
    """An encoder that tells how many texts it has encoded, of those that it was asked for so far."""

    def __init__(self, own: Embeds, progress: Progress) -> None:
        self._own = own
        self._progress = progress

    async def embedded(self, texts: Collection[str]) -> dict[str, Embedding]:
        """Return the embeddings of texts, as the encoder does."""
        ordered, found = sorted(texts, key=len), dict[str, "Embedding"]()
        self._progress.total += len(ordered)
        for at in range(0, len(ordered), _TOLD_AT_ONCE):
            part = ordered[at : at + _TOLD_AT_ONCE]
            found |= await self._own.embedded(part)
            self._progress.done += len(part)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A head, an encoder with changed layers (`own`), or the encoder alone, as pairs are looked at with it."""

    epoch: str
    head: Projection | None
    own: Embeds | None = None

    def cosines(self, pairs: _Pairs) -> NDArray[np.float64]:
        """Return the similarity of each pair, shape (n,); a few megabytes at a time."""
        a, b = pairs.own.get(self.epoch, (pairs.a, pairs.b))
        found = np.empty(len(a), dtype=np.float64)
        for at in range(0, len(a), _AT_ONCE):
            left, right = a[at : at + _AT_ONCE], b[at : at + _AT_ONCE]
            if self.head is not None:
                left, right = self.head.project(left), self.head.project(right)
            found[at : at + _AT_ONCE] = np.einsum("ij,ij->i", left, right, dtype=np.float64)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Examining:
    """Where labelled pairs are, and what a head must show on those that are held back from training."""

    pairs: Path
    base: str
    book: PolicyBook
    terms: Terms

    async def examine(self, before: Seen, after: Seen, policy: Policy) -> Verdict:
        """Return whether a head may take the place of another. `policy` knows the thresholds of both.

        What cannot be read is a problem, not a pass. Raises EmbedderUnavailable when the probes cannot be embedded.
        """
        problems: list[str] = []
        seen = (before, after)
        rows = await asyncio.to_thread(self._rows, problems)
        probes = await self._probes(policy, problems)
        held = None
        if rows is not None:
            held = _held(rows, policy, problems, texts=any(one.own for one in seen), least=self.terms.least_pairs)
            held = await _embedded(held, seen)
        if probes is not None:
            probes = await _embedded(probes, seen)
        verdict = await asyncio.to_thread(self._decided, rows, held, probes, seen, policy)
        return replace(verdict, problems=(*problems, *verdict.problems))

    def _decided(
        self,
        rows: PairRows | None,
        held: _Pairs | None,
        probes: _Pairs | None,
        seen: tuple[Seen, Seen],
        policy: Policy,
    ) -> Verdict:
        if rows is None or held is None:
            return decide(_told(_NONE, seen, policy, {}), None, self.terms)
        # Whatever was trained brings thresholds of its own.
        usual = {one.epoch: _usual(rows, one) for one in seen if one.own is None}
        elsewhere = None if probes is None else _told(probes, seen, policy, usual)
        return decide(_told(held, seen, policy, usual), elsewhere, self.terms)

    def _rows(self, problems: list[str]) -> PairRows | None:
        if not self.pairs.exists():
            return None  # none were collected
        try:
            return read_pairs(self.pairs, self.base)
        except ConfigError as exc:
            problems.append(exc.message)
            return None

    async def _probes(self, policy: Policy, problems: list[str]) -> _Pairs | None:
        try:
            found = await asyncio.to_thread(lambda: load_probes(find_pack(self.book.source), policy.pack))
        except PackError as exc:
            problems.append(f"the pack's probes cannot be asked: {exc.message.splitlines()[0]}")
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
            texts=[(one.cached, one.asked) for one in pairs],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pairs:
    a: Rows
    b: Rows
    right: NDArray[np.bool_]
    group: NDArray[np.int64]
    category: Sequence[str]
    texts: Sequence[tuple[str, str]] = ()
    own: Mapping[str, tuple[Rows, Rows]] = field(default_factory=dict)
    """By the epoch of an encoder of its own, what that one makes of the texts."""

    def at(self, rows: NDArray[np.bool_]) -> _Pairs:
        """Return the pairs of some rows, by a mask."""
        kept = np.flatnonzero(rows).tolist()
        return _Pairs(
            a=self.a[rows],
            b=self.b[rows],
            right=self.right[rows],
            group=self.group[rows],
            category=[self.category[at] for at in kept],
            texts=[self.texts[at] for at in kept] if self.texts else (),
            own={epoch: (a[rows], b[rows]) for epoch, (a, b) in self.own.items()},
        )


_NONE = _Pairs(
    a=np.empty((0, 1), np.float32),
    b=np.empty((0, 1), np.float32),
    right=np.empty(0, np.bool_),
    group=np.empty(0, np.int64),
    category=(),
)


def _held(rows: PairRows, policy: Policy, problems: list[str], *, texts: bool, least: int) -> _Pairs:
    """Return the pairs that are held back; where `texts` are needed, the latest of those that have them."""
    # A pair outlives its category's name; what the pack does not know any more is of its default category now.
    names = [name if name in policy.pack.categories else policy.pack.default_category for name in rows.category]
    chosen = rows.held.copy()
    if texts:
        told = rows.texts or (("", ""),) * len(rows.right)
        chosen &= np.array([bool(a and b) for a, b in told], dtype=np.bool_)
        chosen[np.flatnonzero(chosen)[:-MOST_TEXTS]] = False
        if chosen.sum() < least:
            problems.append(
                f"{chosen.sum()} of {rows.held.sum()} held-back pairs have texts, which an encoder with changed layers "
                "is examined by: set federated.keep_texts, and wait for more of them"
            )
    kept = np.flatnonzero(chosen).tolist()
    return _Pairs(
        a=rows.a[chosen],
        b=rows.b[chosen],
        right=rows.right[chosen],
        group=rows.group[chosen],
        category=[names[at] for at in kept],
        texts=[rows.texts[at] for at in kept] if rows.texts and texts else (),
    )


async def _embedded(pairs: _Pairs, seen: tuple[Seen, Seen]) -> _Pairs:
    """Return pairs with what encoders of their own make of them, without those that one cannot read."""
    for one in seen:
        if one.own is None or not pairs.texts:
            continue
        known = await one.own.embedded({text for pair in pairs.texts for text in pair})
        pairs = pairs.at(np.array([a in known and b in known for a, b in pairs.texts], dtype=np.bool_))
        made = [
            np.stack([known[pair[side]].vector for pair in pairs.texts]) if pairs.texts else pairs.a for side in (0, 1)
        ]
        pairs = replace(pairs, own={**pairs.own, one.epoch: (made[0], made[1])})
    return pairs


def _told(pairs: _Pairs, seen: tuple[Seen, Seen], policy: Policy, usual: dict[str, float]) -> Told:
    before, after = seen
    alone = Seen(epoch=plain_epoch(policy, before.epoch), head=None)
    plain, *cosines = (one.cosines(pairs) for one in (alone, *seen))
    return Told(
        right=pairs.right,
        group=pairs.group,
        category=pairs.category,
        before=cosines[0],
        after=cosines[1],
        threshold_before=_thresholds(pairs.category, before.epoch, policy, usual),
        threshold_after=_thresholds(pairs.category, after.epoch, policy, usual),
        asked_before=_asked(pairs.category, cosines[0], plain, before.epoch, policy),
        asked_after=_asked(pairs.category, cosines[1], plain, after.epoch, policy),
    )


def _asked(categories: Sequence[str], near: Cosines, plain: Cosines, epoch: str, policy: Policy) -> NDArray[np.bool_]:
    """Return of which pairs a verifier is asked, as the line does; of those that it is not for, all."""
    base = plain_epoch(policy, epoch)
    bars = {}
    for name in set(categories):
        (from_, verified), (least, _) = threshold_of(policy, name, epoch), threshold_of(policy, name, base)
        bars[name] = (from_ or 0.0, least or 0.0) if verified else (-1.0, -1.0)
    found = np.array([bars[name] for name in categories], dtype=np.float64).reshape(-1, 2)
    asked: NDArray[np.bool_] = (near >= found[:, 0]) & (plain >= found[:, 1])
    return asked


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
    if not free.any():
        return 1.0
    # All are compared: leaving out those held back first would copy the others.
    pairs = _Pairs(a=rows.a, b=rows.b, right=rows.right, group=rows.group, category=())
    best = best_f(curve(seen.cosines(pairs)[free], rows.right[free]), BETA)
    return 1.0 if best is None else best[1]
