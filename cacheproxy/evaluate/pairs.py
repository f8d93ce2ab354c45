"""`eval pairs`: whether b would be served a's cached answer, and whether that would be right."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from cacheproxy.evaluate.pairfile import read_pairs
from cacheproxy.evaluate.vectors import embed_texts, remembering
from cacheproxy.policy.calibrate import Interval, average_precision, best_f, counts, curve, wilson
from cacheproxy.policy.pairrule import PairRule, Text
from cacheproxy.policy.prepare import prepared

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from cacheproxy.evaluate.pairfile import LabelledPair
    from cacheproxy.evaluate.vectors import TextEncoder
    from cacheproxy.policy.pack import Pack
    from cacheproxy.policy.pairrule import Ruling

PLAIN_COSINE_DEFAULT = 0.8
"""What caches without a calibration commonly ship; only the baseline uses it."""


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """How decisions compare with labels. An undefined ratio (0/0) is None.

    `hit_rate` is the share of all pairs that are served. `false_hit_rate` is fp / (fp + tn), the share served of the
    pairs that must not be; the share of hits that are wrong is 1 - precision. The last three describe the ranking by
    similarity over all thresholds and do not depend on the pack's.
    """

    n: int
    tp: int
    fp: int
    fn: int
    tn: int
    precision: float | None
    recall: float | None
    f1: float | None
    f05: float | None
    hit_rate: float | None
    false_hit_rate: float | None
    average_precision: float | None
    best_f1: float | None
    best_f1_threshold: float | None


class ScoreAt(Score, frozen=True, kw_only=True):
    """A score and the threshold behind it; None where the pack serves nothing by similarity."""

    threshold: float | None


class Intervals(msgspec.Struct, frozen=True, kw_only=True):
    """95 % Wilson intervals; None where the ratio is undefined."""

    precision: Interval | None
    recall: Interval | None
    hit_rate: Interval | None
    false_hit_rate: Interval | None


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """Plain cosine on the same pairs. The tuned ones are tuned on these very pairs, which flatters them."""

    default: ScoreAt
    tuned_f1: ScoreAt | None
    tuned_f05: ScoreAt | None


class PairsReport(Score, frozen=True, kw_only=True):
    """What `eval pairs --json` prints. `vetoes` counts the pairs near enough to serve that were refused, by reason."""

    encoder: str
    policies: str
    by_category: dict[str, ScoreAt]
    vetoes: dict[str, int]
    intervals: Intervals
    baseline: Baseline | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ruled:
    """A pair, how it was ruled, and its rank."""

    group: str
    label: bool
    ruling: Ruling
    rank: float


def evaluate_pairs(
    file: Path,
    pack: Pack,
    encoder: TextEncoder,
    cache_dir: Path | None,
    *,
    baseline: Literal["cosine"] | None = None,
    category: str | None = None,
) -> PairsReport:
    """Rule on every pair of a file as the proxy would, and compare with the labels.

    A pair's own category counts when the pack has it; else each question is classified as the proxy would. `category`
    overrides both.
    Raises ConfigError for a bad file, PackError for an unknown `category`.
    """
    pairs = read_pairs(file)
    ruled = _rule(pairs, pack, encoder, cache_dir, category)
    score = _score(ruled)
    return PairsReport(
        **msgspec.structs.asdict(score),
        encoder=encoder.fingerprint,
        policies=pack.name,
        by_category=_by_category(ruled),
        vetoes=_vetoes(ruled),
        intervals=_intervals(score),
        baseline=_baseline(ruled) if baseline else msgspec.UNSET,
    )


def rank(cached: Text, asked: Text) -> float:
    """Return a pair's place on the scale a threshold cuts: cosine, 1 for equal texts, -1 where unseen text differs."""
    if cached.text == asked.text:
        return 1.0
    if cached.embedding.unseen != asked.embedding.unseen:
        return -1.0
    return min(float(np.dot(cached.embedding.vector, asked.embedding.vector)), 1.0)


def _rule(
    pairs: Sequence[LabelledPair], pack: Pack, encoder: TextEncoder, cache_dir: Path | None, category: str | None
) -> list[_Ruled]:
    seen = embed_texts((text for pair in pairs for text in (pair.a, pair.b)), encoder, cache_dir)
    rule = PairRule(prepared(pack, remembering(encoder, cache_dir)), encoder.fingerprint)
    ruled = []
    for pair in pairs:
        cached, asked = Text(text=pair.a, embedding=seen[pair.a]), Text(text=pair.b, embedding=seen[pair.b])
        ruling = rule.decide(cached, asked, category or (pair.category if pair.category in pack.categories else ""))
        ruled.append(
            _Ruled(
                group=category or pair.category or ruling.category,
                label=pair.label,
                ruling=ruling,
                rank=rank(cached, asked),
            )
        )
    return ruled


def _by_category(ruled: Sequence[_Ruled]) -> dict[str, ScoreAt]:
    groups: dict[str, list[_Ruled]] = {}
    for one in ruled:
        groups.setdefault(one.group, []).append(one)
    return {
        name: ScoreAt(**msgspec.structs.asdict(_score(group)), threshold=_threshold(group))
        for name, group in sorted(groups.items())
    }


def _threshold(group: Sequence[_Ruled]) -> float | None:
    """Return the category's own threshold: the lowest, since a doubt about the category can only raise it."""
    return min((one.ruling.threshold for one in group if one.ruling.threshold is not None), default=None)


def _vetoes(ruled: Iterable[_Ruled]) -> dict[str, int]:
    near = (
        one.ruling
        for one in ruled
        if one.ruling.threshold is not None and one.ruling.similarity >= one.ruling.threshold
    )
    return dict(sorted(Counter(ruling.reason for ruling in near if not ruling.served).items()))


def _baseline(ruled: Sequence[_Ruled]) -> Baseline:
    labels = np.array([one.label for one in ruled])
    similarities = np.array([one.ruling.similarity for one in ruled])
    swept = curve(similarities, labels)

    def at(threshold: float) -> ScoreAt:
        score = _measure(similarities >= threshold, labels, similarities)
        return ScoreAt(**msgspec.structs.asdict(score), threshold=threshold)

    f1, f05 = best_f(swept, 1.0), best_f(swept, 0.5)
    return Baseline(
        default=at(PLAIN_COSINE_DEFAULT), tuned_f1=at(f1[1]) if f1 else None, tuned_f05=at(f05[1]) if f05 else None
    )


def _score(ruled: Sequence[_Ruled]) -> Score:
    return _measure(
        np.array([one.ruling.served for one in ruled]),
        np.array([one.label for one in ruled]),
        np.array([one.rank for one in ruled]),
    )


def _measure(served: NDArray[np.bool_], labels: NDArray[np.bool_], ranks: NDArray[np.float64]) -> Score:
    tally, swept = counts(served, labels), curve(ranks, labels)
    best = best_f(swept, 1.0)
    return Score(
        n=tally.n,
        tp=tally.tp,
        fp=tally.fp,
        fn=tally.fn,
        tn=tally.tn,
        precision=tally.precision,
        recall=tally.recall,
        f1=tally.f(1.0),
        f05=tally.f(0.5),
        hit_rate=tally.hit_rate,
        false_hit_rate=tally.false_hit_rate,
        average_precision=average_precision(swept),
        best_f1=best[0] if best else None,
        best_f1_threshold=best[1] if best else None,
    )


def _intervals(score: Score) -> Intervals:
    return Intervals(
        precision=wilson(score.tp, score.tp + score.fp),
        recall=wilson(score.tp, score.tp + score.fn),
        hit_rate=wilson(score.tp + score.fp, score.n),
        false_hit_rate=wilson(score.fp, score.fp + score.tn),
    )
