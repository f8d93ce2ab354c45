"""Reports as text for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cacheproxy.evaluate.conversations import ConversationsReport
    from cacheproxy.evaluate.pairs import PairsReport, Score, ScoreAt
    from cacheproxy.evaluate.stream import StreamReport
    from cacheproxy.evaluate.streamscore import StreamScore
    from cacheproxy.evaluate.vetoes import Refused
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
        *_veto_rows(report.by_veto),
        "",
        _line(_HEAD),
        *(_row(name, score, score.threshold) for name, score in report.by_category.items()),
    ]
    return "\n".join([*lines, *_baseline_rows(report), *_ablation_rows(report)])


def render_conversations(report: ConversationsReport) -> str:
    """Return a report of `eval conversations`: as `render_pairs`, with a row for each kind and baseline."""
    lines = [
        f"pack {report.policies}, encoder {report.encoder}",
        f"{report.n:,} pairs: {report.tp:,} served rightly of {report.tp + report.fn:,}, {report.fp:,} wrongly of "
        f"{report.fp + report.tn:,}",
        f"  {'right served':15} {_number(report.recall)}{_interval(report.intervals.recall)}",
        f"  {'wrong served':15} {_number(report.false_hit_rate)}{_interval(report.intervals.false_hit_rate)}",
        *(f"  missed: {count:,} pairs ({reason})" for reason, count in report.vetoes.items()),
        "",
        _line(_HEAD),
        *(_row(name, score, score.threshold) for name, score in report.by_category.items()),
        *(_row(name[: _WIDTHS[0]], score, None) for name, score in report.by_kind.items()),
    ]
    if not isinstance(report.baseline, msgspec.UnsetType):
        for name, told in (("last", report.baseline.last_message), ("whole", report.baseline.whole_history)):
            lines.append(_row(f"{name}, default", told.default, told.default.threshold))
            if told.tuned_f05 is not None:
                lines.append(_row(f"{name}, tuned F0.5", told.tuned_f05, told.tuned_f05.threshold))
    return "\n".join(lines)


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
                ("stale-hit rate", report.stale_hit_rate, report.intervals.stale_hit_rate, "  of the hits"),
                ("precision", report.precision, report.intervals.precision, ""),
                ("recall", report.recall, report.intervals.recall, "  of those whose answer was kept"),
                ("F1", report.f1, None, ""),
                ("F0.5", report.f05, None, ""),
                ("avg. precision", report.average_precision, None, ""),
            )
        ),
        *_veto_rows(report.by_veto),
        "",
        _line(_STREAM_HEAD),
        *(_stream_row(name, score) for name, score in report.by_category.items()),
    ]
    if not isinstance(report.baseline, msgspec.UnsetType):
        rows = (
            ("cosine, default", report.baseline.default),
            ("cosine, tuned for F1", report.baseline.tuned_f1),
            ("cosine, tuned for F0.5", report.baseline.tuned_f05),
        )
        lines += ["", _line(_HEAD), _row("this run", report, None)]
        lines += [_row(name, score, score.threshold) for name, score in rows]
    return "\n".join(lines)


def _ablation_rows(report: PairsReport) -> Iterable[str]:
    if isinstance(report.ablation, msgspec.UnsetType):
        return
    aim = _number(report.ablation.precision_aimed_at)
    yield ""
    yield f"{f'ablation, precision {aim}':32} {'AP':>6} {'threshold':>9}  precision, recall, false-hit rate"
    for one in report.ablation.ways:
        shares = (
            (one.precision, one.precision_interval),
            (one.recall, one.recall_interval),
            (one.false_hit_rate, one.false_hit_rate_interval),
        )
        told = "  ".join(f"{_number(value)}{_interval(bounds)}" for value, bounds in shares)
        yield f"{one.steps:32} {_number(one.average_precision):>6} {_number(one.threshold):>9}  {told}"


def _veto_rows(by_veto: Mapping[str, Refused]) -> Iterable[str]:
    """Yield a row for each reason that refused what was near enough: how often, and how often rightly."""
    if by_veto:
        yield ""
        yield f"{'refused':24} {'pairs':>9} {'rightly':>8} {'wrongly':>9} {'share right':>12}"
    for reason, one in by_veto.items():
        share = f"{_number(one.rightly / one.n):>12}{_interval(one.rightly_interval)}"
        yield f"{reason:24} {one.n:>9,} {one.rightly:>8,} {one.wrongly:>9,} {share}"


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


def _row(name: str, score: Score | StreamScore, threshold: float | None) -> str:
    measures = (score.precision, score.recall, score.f1, score.f05, score.hit_rate, score.false_hit_rate)
    return _line((name, _number(threshold), f"{score.n:,}", *map(_number, measures)))


def _line(cells: tuple[str, ...]) -> str:
    first, *rest = zip(cells, _WIDTHS, strict=True)
    return (f"{first[0]:{first[1]}}" + "".join(f" {cell:>{width}}" for cell, width in rest)).rstrip()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(bounds: Interval | None) -> str:
    return "" if bounds is None else f"  [{bounds[0]:.3f}, {bounds[1]:.3f}]"
