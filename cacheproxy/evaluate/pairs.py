"""`eval pairs`: whether b would be served a's cached answer, and whether that would be right."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from cacheproxy.evaluate.ablation import Ablation, Seen, ablate, reads_less
from cacheproxy.evaluate.pairfile import read_pairs
from cacheproxy.evaluate.plot import line, plot
from cacheproxy.evaluate.progress import progress
from cacheproxy.evaluate.vectors import embed_texts, remembering
from cacheproxy.evaluate.vetoes import Refused, refused_of
from cacheproxy.policy.calibrate import Interval, average_precision, best_f, counts, curve, wilson
from cacheproxy.policy.pairrule import PairRule, Text
from cacheproxy.policy.prepare import prepared

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from cacheproxy.evaluate.pairfile import LabelledPair
    from cacheproxy.evaluate.plot import Line
    from cacheproxy.evaluate.vectors import TextEncoder
    from cacheproxy.policy.pack import Pack
    from cacheproxy.policy.pairrule import Ruling, Verify

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


class Intervals(msgspec.Struct, frozen=True, kw_only=True):
    """95 % Wilson intervals; None where the ratio is undefined."""

    precision: Interval | None
    recall: Interval | None
    hit_rate: Interval | None
    false_hit_rate: Interval | None


class ScoreAt(Score, frozen=True, kw_only=True):
    """A score and the threshold behind it; None where the pack serves nothing by similarity."""

    threshold: float | None
    intervals: Intervals

    @classmethod
    def of(cls, score: Score, threshold: float | None) -> ScoreAt:
        """Return a score with its threshold and intervals."""
        return cls(**msgspec.structs.asdict(score), threshold=threshold, intervals=intervals_of(score))


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """Plain cosine on the same pairs. The tuned ones are tuned on these very pairs, which flatters them."""

    default: ScoreAt
    tuned_f1: ScoreAt | None
    tuned_f05: ScoreAt | None


class PairsReport(Score, frozen=True, kw_only=True):
    """What `eval pairs --json` prints. `vetoes` counts the pairs near enough to serve that were refused, by reason.

    `by_veto` says how often each reason refused rightly.
    """

    encoder: str
    policies: str
    by_category: dict[str, ScoreAt]
    vetoes: dict[str, int]
    intervals: Intervals
    by_veto: dict[str, Refused]
    baseline: Baseline | msgspec.UnsetType = msgspec.UNSET
    ablation: Ablation | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What else is wanted of the pairs: an ablation of the verifier's steps, and a plot in this file.

    `without_rules` is the same verifier with its rules off, for the ablation.
    """

    ablate: bool = False
    without_rules: Verify | None = None
    plot: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruled:
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
    verifier: Verify | None = None,
    baseline: Literal["cosine"] | None = None,
    category: str | None = None,
    extras: Extras | None = None,
) -> PairsReport:
    """Rule on every pair of a file as the proxy would, and compare with the labels.

    A pair's own category counts when the pack has it; else each question is classified as the proxy would. `category`
    overrides both.
    Raises ConfigError for a bad file, PackError for an unknown `category`.
    """
    pairs = read_pairs(file)
    ruled = rule_pairs(pairs, pack, encoder, cache_dir, verifier, category)
    refused = _refused(ruled)
    score, extras = _score(ruled), extras or Extras()
    if extras.plot is not None:
        plot(_lines(ruled, verifies=verifier is not None), f"{file.name}: {score.n:,} pairs", extras.plot)
    return PairsReport(
        **msgspec.structs.asdict(score),
        encoder=encoder.fingerprint,
        policies=pack.name,
        by_category=_by_category(ruled),
        vetoes={reason: one.n for reason, one in refused.items()},
        intervals=intervals_of(score),
        by_veto=refused,
        baseline=_baseline(ruled) if baseline else msgspec.UNSET,
        ablation=_ablation(pairs, ruled, extras.without_rules) if extras.ablate else msgspec.UNSET,
    )


def rank(cached: Text, asked: Text) -> float:
    """Return a pair's place on the scale a threshold cuts: cosine, 1 for equal texts, -1 where unseen text differs."""
    if cached.text == asked.text:
        return 1.0
    if cached.embedding.unseen != asked.embedding.unseen:
        return -1.0
    return min(float(np.dot(cached.embedding.vector, asked.embedding.vector)), 1.0)


def probability_rank(cached: Text, asked: Text, ruling: Ruling) -> float:
    """Return a pair's place by probability: 1 for equal texts, 0 for a veto, below 0 what was not worth verifying."""
    if cached.text == asked.text:
        return 1.0
    told = ruling.verified
    return min(ruling.similarity, 1.0) - 1.0 if told is None else 0.0 if told.veto else told.probability


def rule_pairs(
    pairs: Sequence[LabelledPair],
    pack: Pack,
    encoder: TextEncoder,
    cache_dir: Path | None,
    verifier: Verify | None,
    category: str | None = None,
) -> list[Ruled]:
    """Return how the proxy would rule on every pair. Raises PackError for an unknown `category`."""
    seen = embed_texts((text for pair in pairs for text in (pair.a, pair.b)), encoder, cache_dir)
    policy = prepared(pack, remembering(encoder, cache_dir), verifies=verifier is not None)
    rule = PairRule(policy, encoder.fingerprint, verifier)

    def ruled(pair: LabelledPair) -> Ruled:
        cached, asked = Text(text=pair.a, embedding=seen[pair.a]), Text(text=pair.b, embedding=seen[pair.b])
        ruling = rule.decide(cached, asked, category or (pair.category if pair.category in pack.categories else ""))
        group = category or pair.category or ruling.category
        place = probability_rank(cached, asked, ruling) if policy.verifies else rank(cached, asked)
        advance(1)
        return Ruled(group=group, label=pair.label, ruling=ruling, rank=place)

    # The engine behind a verifier runs beside the interpreter: a thread a core.
    with progress("ruling", len(pairs)) as advance, ThreadPoolExecutor(os.cpu_count() if verifier else 1) as pool:
        return list(pool.map(ruled, pairs))


def _by_category(ruled: Sequence[Ruled]) -> dict[str, ScoreAt]:
    groups: dict[str, list[Ruled]] = {}
    for one in ruled:
        groups.setdefault(one.group, []).append(one)
    return {name: ScoreAt.of(_score(group), _threshold(group)) for name, group in sorted(groups.items())}


def _threshold(group: Sequence[Ruled]) -> float | None:
    """Return the category's own threshold: the lowest, since a doubt about the category can only raise it."""
    return min((one.ruling.threshold for one in group if one.ruling.threshold is not None), default=None)


def _refused(ruled: Iterable[Ruled]) -> dict[str, Refused]:
    near = (one for one in ruled if one.ruling.threshold is not None and one.ruling.similarity >= one.ruling.threshold)
    return refused_of(Counter((one.ruling.reason, not one.label) for one in near if not one.ruling.served))


def _ablation(pairs: Sequence[LabelledPair], ruled: Sequence[Ruled], without_rules: Verify | None) -> Ablation:
    """Return what each step adds. Only what a rule forbids, or what was not read, has to be verified once more."""

    def seen(pair: LabelledPair, one: Ruled) -> Seen:
        free = verified = one.ruling.verified
        if verified is not None and without_rules is not None and reads_less(verified):
            free = without_rules.verify(pair.b, [(pair.a, one.ruling.similarity)])[0]
        advance(1)
        return Seen(
            similarity=one.ruling.similarity,
            verified=verified,
            without_rules=free if without_rules is not None else None,
        )

    with progress("ablating", len(pairs)) as advance, ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(seen, pairs, ruled))
    return ablate(pairs, found, np.array([one.ruling.served for one in ruled]))


def _lines(ruled: Sequence[Ruled], *, verifies: bool) -> list[Line]:
    labels = [one.label for one in ruled]
    similarities = np.array([one.ruling.similarity for one in ruled])
    ranks, served = [one.rank for one in ruled], [one.ruling.served for one in ruled]
    return [
        line("verified" if verifies else "this pack", ranks, labels, served),
        line(f"cosine, {PLAIN_COSINE_DEFAULT:g} served", similarities, labels, similarities >= PLAIN_COSINE_DEFAULT),
    ]


def _baseline(ruled: Sequence[Ruled]) -> Baseline:
    return cosine_baseline(np.array([one.ruling.similarity for one in ruled]), np.array([one.label for one in ruled]))


def cosine_baseline(similarities: NDArray[np.float64], labels: NDArray[np.bool_]) -> Baseline:
    """Return what similarity alone would do, at the usual threshold and at those tuned on these very pairs."""
    swept = curve(similarities, labels)

    def at(threshold: float) -> ScoreAt:
        return ScoreAt.of(measure(similarities >= threshold, labels, similarities), threshold)

    f1, f05 = best_f(swept, 1.0), best_f(swept, 0.5)
    return Baseline(
        default=at(PLAIN_COSINE_DEFAULT), tuned_f1=at(f1[1]) if f1 else None, tuned_f05=at(f05[1]) if f05 else None
    )


def _score(ruled: Sequence[Ruled]) -> Score:
    return measure(
        np.array([one.ruling.served for one in ruled]),
        np.array([one.label for one in ruled]),
        np.array([one.rank for one in ruled]),
    )


def measure(served: NDArray[np.bool_], labels: NDArray[np.bool_], ranks: NDArray[np.float64]) -> Score:
    """Return how decisions compare with labels; all of shape (n,)."""
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


def intervals_of(score: Score) -> Intervals:
    """Return the intervals of a score's ratios."""
    return Intervals(
        precision=wilson(score.tp, score.tp + score.fp),
        recall=wilson(score.tp, score.tp + score.fn),
        hit_rate=wilson(score.tp + score.fp, score.n),
        false_hit_rate=wilson(score.fp, score.fp + score.tn),
    )
