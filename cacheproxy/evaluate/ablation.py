"""Ablation: what each step of the verification adds, on the pairs that the whole of it was measured on.

Every way of deciding gets the threshold at which it is as precise as the whole cascade is, on one half of the pairs (no
question is in both halves); the other half tells what that serves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from cacheproxy.evaluate.split import chosen, components
from cacheproxy.policy.calibrate import (
    Interval,
    average_precision,
    counts_at,
    curve,
    ratio,
    threshold_for_precision,
    wilson,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from cacheproxy.evaluate.pairfile import LabelledPair
    from cacheproxy.model import Verification

_SPARED = frozenset({"sure", "equal"})
"""Steps of a pair that the cross-encoder did not read since nobody doubted it."""
_NEVER = -2.0
"""The rank of what a way of deciding does not serve at any threshold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What is known of a pair: its cosine, the verifier's word where it was asked, and its word with the rules off.

    The second one is of a verifier that reads every pair; it may be the first where that one read it, and no rule
    forbade it (`reads_less`).
    """

    similarity: float
    verified: Verification | None
    without_rules: Verification | None = None


class Ablated(msgspec.Struct, frozen=True, kw_only=True):
    """One way of deciding on the half that its threshold was not chosen on, with 95 % Wilson intervals.

    `threshold` is None where no threshold is as precise as was aimed at. `average_precision` does not depend on it.
    """

    steps: str
    average_precision: float | None
    threshold: float | None
    precision: float | None
    precision_interval: Interval | None
    recall: float | None
    recall_interval: Interval | None
    false_hit_rate: float | None
    false_hit_rate_interval: Interval | None


class Ablation(msgspec.Struct, frozen=True, kw_only=True):
    """The precision aimed at, None where the whole cascade serves nothing, and every way of deciding."""

    precision_aimed_at: float | None
    ways: list[Ablated]


def ablate(pairs: Sequence[LabelledPair], seen: Sequence[Seen], served: NDArray[np.bool_], seed: int = 0) -> Ablation:
    """Return every way of deciding that the verifier's steps allow.

    `served` says which pairs the whole cascade serves, of shape (n,).
    """
    labels = np.array([pair.label for pair in pairs])
    first = chosen(pairs, components(pairs), seed)
    hits = served & first
    aim = ratio(int(labels[hits].sum()), int(hits.sum()))
    names = {name for one in seen if one.verified for name, _ in one.verified.steps}
    ways = [way for way in _WAYS if way.needs <= names]
    if not any(one.without_rules for one in seen):
        ways = [way for way in ways if not way.unruled]
    return Ablation(precision_aimed_at=aim, ways=[_ablated(way, seen, labels, first, aim) for way in ways])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    name: str
    rank: Callable[[Seen], float]
    needs: frozenset[str] = frozenset()
    unruled: bool = False
    """Whether it takes the verifier's word with the rules off."""


def _free(one: Seen) -> bool:
    return one.verified is not None and not one.verified.veto


def reads_less(word: Verification) -> bool:
    """Whether a pair would be read otherwise with the rules off and nothing spared."""
    return bool(word.veto) or any(name in _SPARED for name, _ in word.steps)


def _cross(one: Seen) -> float:
    told = _step(one.verified, "cross")
    return told if told > _NEVER else _step(one.without_rules, "cross")


def _step(word: Verification | None, name: str) -> float:
    return dict(word.steps).get(name, _NEVER) if word is not None else _NEVER


_WAYS = (
    _Way(name="cosine", rank=lambda one: one.similarity),
    _Way(name="cosine, rules", rank=lambda one: one.similarity if _free(one) else _NEVER),
    _Way(
        name="features alone",
        rank=lambda one: _step(one.without_rules or one.verified, "cheap"),
        needs=frozenset({"cheap"}),
    ),
    _Way(
        name="rules, features",
        rank=lambda one: _step(one.verified, "cheap") if _free(one) else _NEVER,
        needs=frozenset({"cheap"}),
    ),
    _Way(
        name="rules, cross-encoder",
        rank=lambda one: _cross(one) if _free(one) else _NEVER,
        needs=frozenset({"cross"}),
    ),
    _Way(
        name="features, cross-encoder",
        rank=lambda one: one.without_rules.probability if one.without_rules else _NEVER,
        needs=frozenset({"cheap", "cross"}),
        unruled=True,
    ),
    _Way(
        name="rules, features, cross-encoder",
        rank=lambda one: one.verified.probability if one.verified and not one.verified.veto else _NEVER,
        needs=frozenset({"cheap", "cross"}),
    ),
)


def _ablated(
    way: _Way, seen: Sequence[Seen], labels: NDArray[np.bool_], first: NDArray[np.bool_], aim: float | None
) -> Ablated:
    ranks = np.array([way.rank(one) for one in seen], dtype=np.float64)
    rest, choosing, threshold = ~first, first & (ranks > _NEVER), None
    if aim is not None and choosing.any():
        threshold = threshold_for_precision(curve(ranks[choosing], labels[choosing]), aim)
    tally = counts_at(ranks[rest], labels[rest], threshold if threshold is not None else np.inf)
    return Ablated(
        steps=way.name,
        average_precision=average_precision(curve(ranks[rest], labels[rest])) if rest.any() else None,
        threshold=threshold,
        precision=tally.precision,
        precision_interval=wilson(tally.tp, tally.tp + tally.fp),
        recall=tally.recall,
        recall_interval=wilson(tally.tp, tally.tp + tally.fn),
        false_hit_rate=tally.false_hit_rate,
        false_hit_rate_interval=wilson(tally.fp, tally.fp + tally.tn),
    )
