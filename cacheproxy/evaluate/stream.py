"""`eval stream`: questions in the order they were asked, through the real line, answered by an oracle."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from cacheproxy.errors import ConfigError, PackError
from cacheproxy.evaluate.course import Course, Item
from cacheproxy.evaluate.lines import read_rows
from cacheproxy.evaluate.plot import plot
from cacheproxy.evaluate.replay import Asked, KnownVectors
from cacheproxy.evaluate.streamscore import CategoryScore, StreamIntervals, StreamScore
from cacheproxy.evaluate.vectors import embed_texts, remembering
from cacheproxy.evaluate.vetoes import Refused, refused_of
from cacheproxy.policy.prepare import prepared

if TYPE_CHECKING:
    from pathlib import Path

    from cacheproxy import settings
    from cacheproxy.evaluate.course import Ran
    from cacheproxy.evaluate.vectors import TextEncoder
    from cacheproxy.evaluate.verdicts import Scorer
    from cacheproxy.policy.pack import Pack

_FORM = '{"text": text, "answer_id": id, "category"?: name, "t"?: seconds}'
_APART_S = 1.0
"""Between questions whose lines say no time."""
_DEFAULT = 0.8
"""The threshold that caches without a calibration commonly ship; only the baseline uses it."""
_GRID = tuple(round(0.66 + 0.02 * step, 2) for step in range(17))
"""Thresholds that the baseline is tuned over."""


class _Row(msgspec.Struct):
    text: str
    answer_id: str | int
    category: str | None = None
    t: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """How a stream is to be replayed.

    `category` overrides the lines' own. `delta` takes the place of every category's error budget, and `labels` of the
    share of hits, and of doubtful misses, of which the oracle tells the budget whether they were right. `plot` names a
    file to draw precision against hit rate into.
    """

    category: str | None = None
    delta: float | None = None
    labels: float | None = None
    baseline: bool = False
    plot: Path | None = None


class StreamScoreAt(StreamScore, frozen=True, kw_only=True):
    """A score, and the threshold of plain cosine behind it."""

    threshold: float


class StreamBaseline(msgspec.Struct, frozen=True, kw_only=True):
    """Plain cosine on the same stream, through the same line. The tuned ones are tuned on it, which flatters them."""

    default: StreamScoreAt
    tuned_f1: StreamScoreAt
    tuned_f05: StreamScoreAt


class StreamReport(StreamScore, frozen=True, kw_only=True):
    """What `eval stream --json` prints. `vetoes` count candidates near enough to serve that were refused, by reason.

    `labels` is of how many answers the error budget was told whether they are right.
    """

    encoder: str
    policies: str
    verifier: str
    labels: int
    by_category: dict[str, CategoryScore]
    vetoes: dict[str, int]
    by_veto: dict[str, Refused]
    intervals: StreamIntervals
    baseline: StreamBaseline | msgspec.UnsetType = msgspec.UNSET


async def evaluate_stream(
    file: Path,
    pack: Pack,
    encoder: TextEncoder,
    cache_dir: Path | None,
    config: settings.Settings,
    *,
    scorer: Scorer | None = None,
    ask: Ask | None = None,
) -> StreamReport:
    """Replay a stream with the store's caps of these settings, and compare what was served with what was right.

    A line's own category counts when the pack has it; else each question is classified as the proxy would. `scorer`
    is the verifier's; without it the pack's thresholds decide. Raises ConfigError for a bad file, PackError for an
    unknown category.
    """
    ask = ask or Ask()
    if ask.category is not None and ask.category not in pack.categories:
        raise PackError(f"pack {pack.name}: no category {ask.category!r}; known: {', '.join(pack.categories)}")
    items = read_stream(file)
    known = embed_texts((item.asked.text for item in items), encoder, cache_dir)
    vectors = KnownVectors(known, encoder.fingerprint)
    course = Course(items=items, vectors=vectors, config=config, category=ask.category)
    policy = prepared(_with_delta(pack, ask.delta), remembering(encoder, cache_dir))
    ran = await course.run(replace(policy, verifies=scorer is not None), scorer, ask.labels)
    ttl_s = pack.categories[pack.default_category].ttl_s
    thresholds = _GRID if ask.baseline else (_DEFAULT,) if ask.plot else ()
    cosines = {threshold: await course.plain(threshold, ttl_s) for threshold in thresholds}
    if ask.plot is not None:
        named = "verified" if scorer is not None else f"pack {pack.name}"
        lines = [ran.total.line(named), cosines[_DEFAULT].total.line(f"cosine, {_DEFAULT:g} served")]
        plot(lines, f"{file.name}: {ran.total.n:,} questions, each as if asked alone", ask.plot)
    return _report(ran, pack, scorer, encoder.fingerprint, cosines if ask.baseline else {})


def read_stream(file: Path) -> list[Item]:
    """Read every question of a stream, at least one. Raises ConfigError as `file:line: what is wrong`.

    Time never goes back: a moment before the last one counts as that. A line without a moment comes a second later.
    """
    items: list[Item] = []
    for _, row in read_rows(file, _Row, _FORM):
        last_s = items[-1].at_s if items else 0.0
        at_s = max(last_s, row.t) if row.t is not None else last_s + _APART_S * bool(items)
        asked = Asked(text=row.text, answer_id=str(row.answer_id), category=row.category or "")
        items.append(Item(asked=asked, at_s=at_s))
    if not items:
        raise ConfigError(f"{file}: holds no question; each line must be {_FORM}")
    return items


def _with_delta(pack: Pack, delta: float | None) -> Pack:
    if delta is None:
        return pack
    changed = {name: msgspec.structs.replace(rules, delta=delta) for name, rules in pack.categories.items()}
    return msgspec.structs.replace(pack, categories=changed)


def _report(ran: Ran, pack: Pack, scorer: Scorer | None, epoch: str, cosines: dict[float, Ran]) -> StreamReport:
    total = ran.total
    reasons: Counter[str] = Counter()
    for (reason, _), count in total.refused.items():
        reasons[reason] += count
    return StreamReport(
        **total.score(sum(ran.evictions.values())),
        encoder=epoch,
        policies=pack.name,
        verifier=scorer.fingerprint if scorer is not None else "",
        labels=ran.labels,
        by_category={
            name: CategoryScore(**tally.score(ran.evictions.get(name, 0)), intervals=tally.intervals())
            for name, tally in sorted(ran.tallies.items())
        },
        vetoes=dict(sorted(reasons.items())),
        by_veto=refused_of(total.refused),
        intervals=total.intervals(),
        baseline=_baseline(cosines) if cosines else msgspec.UNSET,
    )


def _baseline(cosines: dict[float, Ran]) -> StreamBaseline:
    scored = {
        threshold: StreamScoreAt(**ran.total.score(sum(ran.evictions.values())), threshold=threshold)
        for threshold, ran in cosines.items()
    }
    return StreamBaseline(
        default=scored[_DEFAULT],
        tuned_f1=max(scored.values(), key=lambda one: one.f1 or 0.0),
        tuned_f05=max(scored.values(), key=lambda one: one.f05 or 0.0),
    )
