"""Overload: what a proxy does with ten times the requests it can answer, and how soon it is itself again.

Four phases against one target: the peak (closed loop), normal (open, half of the peak), overload (open, ten times the
peak), and after it (open, half of the peak again). The goals are of answers that were promised: what is turned away
(429, 503) must be told so at once, with a Retry-After.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from cacheproxy.bench.client import Connections
from cacheproxy.bench.figures import Figures, figures, good, percentile
from cacheproxy.bench.runs import Driver, Load, fill, machine, method
from cacheproxy.bench.watching import between

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cacheproxy.bench.drive import Run, Sample
    from cacheproxy.bench.runs import Bench
    from cacheproxy.bench.watching import Timed

_NORMAL = 0.5
"""Share of the peak that is normal."""
_SHED = frozenset({429, 503})
_WINDOW_S = 1.0
"""Recovery is looked for in steps of this length."""
_FEWEST = 5
"""Fewest requests of a window that says anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overload:
    """How much, and for how long."""

    times: float = 10.0
    seconds: float = 20.0
    peak_s: float = 5.0
    """Also of the normal phase before."""
    after_s: float = 15.0
    connections: int = 16
    """Callers of the closed loop that finds the peak."""


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """One goal and whether it was met."""

    goal: str
    measured: float
    unit: str
    met: bool


class OverloadReport(msgspec.Struct, frozen=True, kw_only=True):
    """A whole overload, as `--json` writes it."""

    schema: int
    command: str
    simulated: list[str]
    machine: dict[str, Any]
    method: dict[str, Any]
    goals: dict[str, Goal]
    phases: dict[str, Figures]
    kept_up: dict[str, float]
    """Goodput of the peak in percent, by what requests were meant to be: in a mix the cheap makes up for the dear."""
    rss_mb: dict[str, float] | None


async def measure(
    bench: Bench, how: Overload, told: Callable[[str, int], None] = lambda what, done: None
) -> OverloadReport:
    """Run the phases and judge them. Raises ConfigError where the target does not answer at all."""
    slo_s = bench.slo_ms / 1000
    connections = Connections(bench.target, timeout_s=bench.timeout_s)
    runs: dict[str, Run] = {}
    cost: dict[str, float | None] = {}
    stages: dict[str, dict[str, Timed]] = {}
    rss: dict[str, float] = {}

    async def phase(name: str, load: Load, seed: int) -> Run:
        before = await bench.watch.look()
        driver = Driver(replace(bench, load=load), connections, seed)
        runs[name] = await driver.run(load.seconds, lambda done: told(name, done))
        after = await bench.watch.look()
        stages[name] = between(before, after)
        known = before.cpu_s is not None and after.cpu_s is not None
        cost[name] = after.cpu_s - before.cpu_s if known else None  # type: ignore[operator] # `known` says so
        if after.rss_mb is not None:
            rss[name] = round(after.rss_mb, 1)
        return runs[name]

    try:
        await fill(bench, connections)
        found = await phase("peak", Load(seconds=how.peak_s, connections=how.connections), bench.seed)
        peak = max(1.0, sum(good(one, slo_s) for one in found.samples) / found.elapsed_s)
        normal = Load(seconds=how.peak_s, rate=peak * _NORMAL)
        await phase("normal", normal, bench.seed + 1)
        await phase("overload", Load(seconds=how.seconds, rate=peak * how.times, most=10**7), bench.seed + 2)
        await phase("after", replace(normal, seconds=how.after_s), bench.seed + 3)
    finally:
        connections.close()
    return OverloadReport(
        schema=1,
        command="",
        simulated=[],
        machine=machine(),
        method=_method(bench, how, peak),
        goals=judged(runs, peak, slo_s, how),
        phases={name: figures([run], [cost[name]], slo_s, stages[name]) for name, run in runs.items()},
        kept_up=by_kind(runs, slo_s, how),
        rss_mb=rss or None,
    )


def _method(bench: Bench, how: Overload, peak: float) -> dict[str, Any]:
    told = method(bench)
    kept = {name: told[name] for name in ("seed", "slo_ms", "timeout_s", "latency_from")}
    return {
        **kept,
        **asdict(how),
        "normal_per_s": round(peak * _NORMAL, 1),
        "overload_per_s": round(peak * how.times, 1),
    }


def judged(runs: dict[str, Run], peak: float, slo_s: float, how: Overload) -> dict[str, Goal]:
    """Return the goals with what was measured."""
    normal, loaded = runs["normal"], runs["overload"]
    begin_s, end_s = _middle(how)
    kept = _kept(loaded, slo_s, how)
    share = 100 * len(kept) / (end_s - begin_s) / peak
    found = runs["peak"].samples
    answered = 100 * sum(one.answer.status not in _SHED for one in found) / max(1, len(found))
    shed = [one for one in loaded.samples if one.answer.status in _SHED]
    shed_p99 = _p99_ms(shed)
    told = 100 * sum(bool(one.answer.retry_after) for one in shed) / len(shed) if shed else 100.0
    normal_p99 = _p99_ms(_accepted(normal))
    accepted_p99 = _p99_ms(_accepted(loaded))
    back_s = recovery_s(runs["after"].samples, 2 * normal_p99, how.after_s)
    return {
        "answered while the peak is found": Goal(
            goal="100", measured=round(answered, 1), unit="%", met=answered == 100
        ),
        "goodput of the peak": Goal(goal=">= 90", measured=round(share, 1), unit="%", met=share >= 90),
        "shed answers, p99": Goal(goal="<= 50", measured=round(shed_p99, 1), unit="ms", met=shed_p99 <= 50),
        "shed answers that say when to come back": Goal(goal="100", measured=round(told, 1), unit="%", met=told == 100),
        "accepted answers, p99 against normal": Goal(
            goal="<= 2",
            measured=round(accepted_p99 / normal_p99, 2) if normal_p99 else 0.0,
            unit="times",
            met=accepted_p99 <= 2 * normal_p99,
        ),
        "normal again after": Goal(goal="<= 10", measured=round(back_s, 1), unit="s", met=back_s <= 10),
    }


def by_kind(runs: dict[str, Run], slo_s: float, how: Overload) -> dict[str, float]:
    """Return the goodput of each kind that was meant, in percent of its own at the peak; none of it is a goal."""
    begin_s, end_s = _middle(how)
    peak = runs["peak"]
    before = Counter(one.ask.meant for one in peak.samples if good(one, slo_s))
    kept = Counter(one.ask.meant for one in _kept(runs["overload"], slo_s, how))
    return {
        kind: round(100 * (kept[kind] / (end_s - begin_s)) / (count / peak.elapsed_s), 1)
        for kind, count in sorted(before.items())
    }


def _middle(how: Overload) -> tuple[float, float]:
    """Return when the middle of the overload begins and ends: not its start, when queues are empty, nor its drain."""
    return how.seconds * 0.1, how.seconds


def _kept(loaded: Run, slo_s: float, how: Overload) -> list[Sample]:
    begin_s, end_s = _middle(how)
    return [one for one in loaded.samples if good(one, slo_s) and begin_s <= one.done_s < end_s]


def recovery_s(samples: Sequence[Sample], limit_ms: float, seconds: float) -> float:
    """Return after how many seconds all is well to the end: windows without errors, their p95 within `limit_ms`.

    `seconds` where that never comes.
    """
    count = max(1, int(seconds / _WINDOW_S))
    bad = 0
    for number in range(count):
        due = [one for one in samples if number * _WINDOW_S <= one.due_s < (number + 1) * _WINDOW_S]
        if len(due) < _FEWEST:
            continue
        slow = sorted((one.done_s - one.due_s) * 1000 for one in due)
        failed = any(one.answer.error or one.answer.status >= 400 for one in due)
        if failed or percentile(slow, 0.95) > limit_ms:
            bad = number + 1
    return min(seconds, bad * _WINDOW_S)


def _accepted(run: Run) -> list[Sample]:
    return [one for one in run.samples if one.answer.status == 200 and not one.answer.error]


def _p99_ms(samples: Sequence[Sample]) -> float:
    return percentile(sorted((one.done_s - one.due_s) * 1000 for one in samples), 0.99) if samples else 0.0
