"""Reports as text for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cacheproxy.evaluate.pairs import PairsReport, Score, ScoreAt
    from cacheproxy.evaluate.stream import StreamReport, StreamScore
    from cacheproxy.policy.calibrate import Interval

_WIDTHS = (24, 9, 8, 9, 9, 9, 9, 9, 9)
_STREAM_HEAD = ("", "questions", "repeated", "hits", "false", "stale", "evicted", "hit rate", "false hit")
_HEAD = ("", "threshold", "pairs", "precision", "recall", "F1", "F0.5", "hit rate", "false hit")


def render_pairs(report: PairsReport) -> str:
    """Return a report of `eval pairs`: the measures, their intervals, then a row for each category and baseline."""
    lines = [
        f"pack {report.policies}, encoder {report.encoder}",
        f"{report.n:,} pairs: {report.tp:,} served rightly, {report.fp:,} wrongly, "
        f"{report.fn:,} missed wrongly, {report.tn:,} rightly",
        *(
            f"  {name:15} {_number(value)}{_interval(bounds)}{note}"
            for name, value, bounds, note in (
                ("precision", report.precision, report.intervals.precision, ""),
                ("recall", report.recall, report.intervals.recall, ""),
                ("hit rate", report.hit_rate, report.intervals.hit_rate, ""),
                (
                    "false-hit rate",
                    report.false_hit_rate,
                    report.intervals.false_hit_rate,
                    "  of the pairs that must miss",
                ),
                ("F1", report.f1, None, ""),
                ("F0.5", report.f05, None, ""),
                ("avg. precision", report.average_precision, None, ""),
                ("best F1", report.best_f1, None, f"  at {_number(report.best_f1_threshold)}"),
            )
        ),
        *(f"  vetoed: {count:,} pairs ({reason})" for reason, count in report.vetoes.items()),
        "",
        _line(_HEAD),
        *(_row(name, score, score.threshold) for name, score in report.by_category.items()),
    ]
    return "\n".join([*lines, *_baseline_rows(report)])


def render_stream(report: StreamReport) -> str:
    """Return a report of `eval stream`: the measures, their intervals, then a row for each category."""
    lines = [
        f"pack {report.policies}, encoder {report.encoder}",
        f"{report.n:,} questions, {report.repeated:,} with an answer given before: {report.hits:,} hits "
        f"({report.exact_hits:,} exact), {report.false_hits:,} false, {report.stale_hits:,} of them stale; "
        f"{report.bypasses:,} bypasses, {report.evictions:,} evictions",
        *(
            f"  {name:15} {_number(value)}{_interval(bounds)}{note}"
            for name, value, bounds, note in (
                ("hit rate", report.hit_rate, report.intervals.hit_rate, ""),
                ("false-hit rate", report.false_hit_rate, report.intervals.false_hit_rate, "  of the hits"),
                ("error rate", report.error_rate, report.intervals.error_rate, "  of all questions"),
            )
        ),
        "",
        _line(_STREAM_HEAD),
        *(_stream_row(name, score) for name, score in report.by_category.items()),
    ]
    return "\n".join(lines)


def _stream_row(name: str, score: StreamScore) -> str:
    counts = (score.n, score.repeated, score.hits, score.false_hits, score.stale_hits, score.evictions)
    ratios = (score.hit_rate, score.false_hit_rate)
    return _line((name, *(f"{count:,}" for count in counts), *map(_number, ratios)))


def _baseline_rows(report: PairsReport) -> Iterable[str]:
    if isinstance(report.baseline, msgspec.UnsetType):
        return
    rows: tuple[tuple[str, ScoreAt | None], ...] = (
        ("cosine, default", report.baseline.default),
        ("cosine, tuned for F1", report.baseline.tuned_f1),
        ("cosine, tuned for F0.5", report.baseline.tuned_f05),
    )
    for name, score in rows:
        if score is not None:
            yield _row(name, score, score.threshold)


def _row(name: str, score: Score, threshold: float | None) -> str:
    measures = (score.precision, score.recall, score.f1, score.f05, score.hit_rate, score.false_hit_rate)
    return _line((name, _number(threshold), f"{score.n:,}", *map(_number, measures)))


def _line(cells: tuple[str, ...]) -> str:
    first, *rest = zip(cells, _WIDTHS, strict=True)
    return (f"{first[0]:{first[1]}}" + "".join(f" {cell:>{width}}" for cell, width in rest)).rstrip()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(bounds: Interval | None) -> str:
    return "" if bounds is None else f"  [{bounds[0]:.3f}, {bounds[1]:.3f}]"
