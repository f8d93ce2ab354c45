"""Figures of runs: percentiles, goodput, mixes, and their median and spread over repeats."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cacheproxy.bench.drive import Run, Sample
    from cacheproxy.bench.watching import Timed


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """A figure over repeats."""

    median: float
    min: float
    max: float


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Latencies of one kind of request, from the time it was due; `first_` to the first byte of its answer's body."""

    requests: int
    p50_ms: Spread
    p95_ms: Spread
    p99_ms: Spread
    max_ms: Spread
    first_p50_ms: Spread
    first_p99_ms: Spread


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """What the proxy timed itself, over all repeats."""

    count: int
    mean_ms: float
    p50_ms: float
    p99_ms: float


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a bench; per-second figures are of a whole run, its last answers included."""

    requests: int
    per_s: Spread
    goodput_per_s: Spread
    """Answers with status 200 within the objective."""
    cpu_ms_per_request: Spread | None
    """Of the proxy's process; None where it cannot be seen."""
    latency: dict[str, Latency]
    """By what came of a request: all, hit exact, hit semantic, miss, ...; streamed ones apart."""
    mix: dict[str, int]
    """Answers by status, outcome and tier."""
    meant: dict[str, dict[str, int]]
    """What requests were meant to be, and what came of them."""
    errors: dict[str, int]
    """Requests without a good answer, by kind: http_503, timeout, connect, closed, protocol, dropped."""
    late_p99_ms: Spread
    """How late the generator sent what was due: where latencies are as small, it was the limit."""
    stages: dict[str, Stage] = {}


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the least value that at least `share` of the values are within; NaN of none. `ordered` rises."""
    if not ordered:
        return math.nan
    return ordered[max(0, min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1))]


def spread(values: Iterable[float]) -> Spread:
    """Return the median of some repeats with its spread."""
    known = [value for value in values if not math.isnan(value)] or [0.0]
    return Spread(median=round(statistics.median(known), 4), min=round(min(known), 4), max=round(max(known), 4))


def good(sample: Sample, slo_s: float) -> bool:
    """Whether a request was answered well and in time."""
    answer = sample.answer
    return not answer.error and answer.status == 200 and sample.done_s - sample.due_s <= slo_s


def error_of(sample: Sample) -> str:
    """Return why there is no good answer, "" where there is one."""
    return sample.answer.error or (f"http_{sample.answer.status}" if sample.answer.status >= 400 else "")


def came(sample: Sample) -> str:
    """Return what came of a request in words: "hit exact", "miss, stream", "http_503"."""
    answer = sample.answer
    told = error_of(sample) or f"{answer.outcome or 'answered'} {answer.tier}".strip()
    return f"{told}, stream" if sample.ask.stream and not error_of(sample) else told


def figures(runs: Sequence[Run], cpu_s: Sequence[float | None], slo_s: float, stages: dict[str, Timed]) -> Figures:
    """Return the figures of all repeats; `cpu_s` is what each took of the proxy's processor time."""
    kinds = sorted({came(sample) for run in runs for sample in run.samples})
    latency = {"all": _latency(runs, None), **{kind: _latency(runs, kind) for kind in kinds}}
    mix, meant, errors = Counter[str](), dict[str, Counter[str]](), Counter[str]()
    for run in runs:
        errors["dropped"] += run.dropped
        for sample in run.samples:
            errors[error_of(sample)] += 1
            answer = sample.answer
            mix[f"{answer.status} {answer.outcome} {answer.tier}".strip() if answer.status else answer.error] += 1
            meant.setdefault(sample.ask.meant or "anything", Counter())[came(sample)] += 1
    del errors[""]
    known = [cpu for cpu in cpu_s if cpu is not None]
    costs = [cpu * 1000 / max(1, len(run.samples)) for cpu, run in zip(known, runs, strict=False)]
    return Figures(
        requests=sum(len(run.samples) + run.dropped for run in runs),
        per_s=spread(len(run.samples) / run.elapsed_s for run in runs),
        goodput_per_s=spread(sum(good(one, slo_s) for one in run.samples) / run.elapsed_s for run in runs),
        cpu_ms_per_request=spread(costs) if len(known) == len(runs) else None,
        latency=latency,
        mix=dict(sorted(mix.items())),
        meant={kind: dict(sorted(found.items())) for kind, found in sorted(meant.items())},
        errors={kind: count for kind, count in sorted(errors.items()) if count},
        late_p99_ms=spread(percentile(sorted(_late_ms(run)), 0.99) for run in runs),
        stages={
            name: Stage(count=t.count, mean_ms=t.mean_ms, p50_ms=t.p50_ms, p99_ms=t.p99_ms)
            for name, t in stages.items()
        },
    )


def _late_ms(run: Run) -> list[float]:
    return [(sample.sent_s - sample.due_s) * 1000 for sample in run.samples]


def _latency(runs: Sequence[Run], kind: str | None) -> Latency:
    chosen = [[one for one in run.samples if kind is None or came(one) == kind] for run in runs]
    whole = [sorted((one.done_s - one.due_s) * 1000 for one in samples) for samples in chosen]
    first = [sorted((one.first_s - one.due_s) * 1000 for one in samples) for samples in chosen]
    return Latency(
        requests=sum(map(len, chosen)),
        p50_ms=spread(percentile(values, 0.5) for values in whole),
        p95_ms=spread(percentile(values, 0.95) for values in whole),
        p99_ms=spread(percentile(values, 0.99) for values in whole),
        max_ms=spread(percentile(values, 1.0) for values in whole),
        first_p50_ms=spread(percentile(values, 0.5) for values in first),
        first_p99_ms=spread(percentile(values, 0.99) for values in first),
    )
