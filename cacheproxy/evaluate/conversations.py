"""`eval conversations`: whether b's last question would be served a's cached answer, and whether rightly."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from cacheproxy.evaluate.conversationfile import read_conversations
from cacheproxy.evaluate.pairs import (
    PLAIN_COSINE_DEFAULT,
    Baseline,
    Intervals,
    Score,
    ScoreAt,
    cosine_baseline,
    intervals_of,
    measure,
)
from cacheproxy.evaluate.plot import line
from cacheproxy.evaluate.plot import plot as draw
from cacheproxy.evaluate.progress import progress
from cacheproxy.evaluate.talkrule import TalkRule, texts_of
from cacheproxy.evaluate.vectors import embed_texts, remembering
from cacheproxy.policy.prepare import prepared

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from cacheproxy.evaluate.conversationfile import Talk, TalkPair
    from cacheproxy.evaluate.plot import Line
    from cacheproxy.evaluate.talkrule import Word
    from cacheproxy.evaluate.vectors import TextEncoder
    from cacheproxy.model import Embedding
    from cacheproxy.policy.pack import Pack
    from cacheproxy.verify.chains import PairScorer


class Baselines(msgspec.Struct, frozen=True, kw_only=True):
    """Plain cosine of the last questions alone, and of the whole conversations as one text each."""

    last_message: Baseline
    whole_history: Baseline


class ConversationsReport(Score, frozen=True, kw_only=True):
    """What `eval conversations --json` prints: as `eval pairs`, and the same by the kind that rows name.

    `vetoes` counts the pairs that were refused, by reason. `average_precision` and what follows rank by the
    verifier's probability where it was asked.
    """

    encoder: str
    policies: str
    by_category: dict[str, ScoreAt]
    by_kind: dict[str, Score]
    vetoes: dict[str, int]
    intervals: Intervals
    baseline: Baselines | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ruled:
    pair: TalkPair
    group: str
    word: Word


def evaluate_conversations(
    file: Path,
    pack: Pack,
    encoder: TextEncoder,
    cache_dir: Path | None,
    *,
    scorer: PairScorer | None = None,
    baseline: bool = False,
    category: str | None = None,
    plot: Path | None = None,
) -> ConversationsReport:
    """Rule on every pair of conversations of a file as the proxy would, and compare with the labels.

    `scorer` is the verifier's; without it earlier turns must be equal, and the pack's thresholds decide on the last
    question. A pair's own category counts when the pack has it; `category` overrides it. `plot` names a file to draw
    precision against hit rate into. Raises ConfigError for a bad file, PackError for an unknown `category`.
    """
    pairs = read_conversations(file)
    policy = prepared(pack, remembering(encoder, cache_dir), verifies=scorer is not None)
    known = embed_texts((text for pair in pairs for text in texts_of(pair.a, pair.b)), encoder, cache_dir)
    rule = TalkRule(policy, encoder.fingerprint, known, scorer)
    ruled = []
    with progress("ruling", len(pairs)) as advance:
        for pair in pairs:
            named = category or (pair.category if pair.category in pack.categories else "")
            word = rule.decide(pair.a, pair.b, named)
            ruled.append(_Ruled(pair=pair, group=category or pair.category or word.category, word=word))
            advance(1)
    score = _score(ruled)
    if plot is not None:
        draw(_lines(ruled, known), f"{file.name}: {score.n:,} pairs of conversations", plot)
    return ConversationsReport(
        **msgspec.structs.asdict(score),
        encoder=encoder.fingerprint,
        policies=pack.name,
        by_category={
            name: ScoreAt.of(_score(group), _threshold(group))
            for name, group in _groups(ruled, [one.group for one in ruled])
        },
        by_kind={name: _score(group) for name, group in _groups(ruled, [one.pair.kind for one in ruled]) if name},
        vetoes=dict(sorted(Counter(one.word.reason for one in ruled if not one.word.served).items())),
        intervals=intervals_of(score),
        baseline=_baselines(pairs, known, encoder, cache_dir) if baseline else msgspec.UNSET,
    )


def whole(talk: Talk) -> str:
    """Return a conversation as one text, for the baseline that embeds it whole."""
    return "\n".join((*talk.context, talk.question))


def _baselines(
    pairs: Sequence[TalkPair], known: Mapping[str, Embedding], encoder: TextEncoder, cache_dir: Path | None
) -> Baselines:
    labels = np.array([pair.label for pair in pairs])
    wholes = embed_texts((whole(talk) for pair in pairs for talk in (pair.a, pair.b)), encoder, cache_dir)

    def of(one: Sequence[Embedding], other: Sequence[Embedding]) -> Baseline:
        cosines = [float(np.dot(a.vector, b.vector)) for a, b in zip(one, other, strict=True)]
        return cosine_baseline(np.array(cosines), labels)

    return Baselines(
        last_message=of([known[pair.a.question] for pair in pairs], [known[pair.b.question] for pair in pairs]),
        whole_history=of([wholes[whole(pair.a)] for pair in pairs], [wholes[whole(pair.b)] for pair in pairs]),
    )


def _lines(ruled: Sequence[_Ruled], known: Mapping[str, Embedding]) -> list[Line]:
    labels = [one.pair.label for one in ruled]
    last = np.array(
        [float(np.dot(known[one.pair.a.question].vector, known[one.pair.b.question].vector)) for one in ruled]
    )
    ranks, served = [one.word.rank for one in ruled], [one.word.served for one in ruled]
    return [
        line("this policy", ranks, labels, served),
        line("cosine of the last questions", last, labels, last >= PLAIN_COSINE_DEFAULT),
    ]


def _groups(ruled: Sequence[_Ruled], names: Sequence[str]) -> list[tuple[str, list[_Ruled]]]:
    groups: dict[str, list[_Ruled]] = {}
    for name, one in zip(names, ruled, strict=True):
        groups.setdefault(name, []).append(one)
    return sorted(groups.items())


def _threshold(group: Sequence[_Ruled]) -> float | None:
    return min((one.word.threshold for one in group if one.word.threshold is not None), default=None)


def _score(ruled: Sequence[_Ruled]) -> Score:
    return measure(
        np.array([one.word.served for one in ruled]),
        np.array([one.pair.label for one in ruled]),
        np.array([one.word.rank for one in ruled]),
    )
