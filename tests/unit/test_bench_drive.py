from __future__ import annotations

import asyncio
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cacheproxy.bench.arrivals import Arrival
from cacheproxy.bench.asking import Ask
from cacheproxy.bench.client import Answer
from cacheproxy.bench.drive import Run, Sample, closed, opened
from cacheproxy.bench.figures import figures, percentile, spread
from cacheproxy.bench.overload import Overload, by_kind, judged, recovery_s
from cacheproxy.bench.watching import Seen, between, histograms, within

if TYPE_CHECKING:
    from collections.abc import Iterable

ASK = Ask(meant="exact", text="?")


def sample(due_s: float, took_s: float, status: int = 200, *, error: str = "", retry_after: str = "") -> Sample:
    answer = Answer(status=status, outcome="hit", tier="exact", error=error, retry_after=retry_after)
    return Sample(ASK, due_s, due_s, due_s + took_s / 2, due_s + took_s, answer)


class Stalling:
    """Answers one request at a time, at once, but for one stall."""

    def __init__(self, stall_s: float) -> None:
        self._lock = asyncio.Lock()
        self._stall_s = stall_s

    async def send(self, ask: Ask, arrival: Arrival | None) -> Answer:
        async with self._lock:
            stall_s, self._stall_s = self._stall_s, 0.0
            if stall_s:
                await asyncio.sleep(stall_s)
        now = time.perf_counter()
        return Answer(status=200, first_s=now, done_s=now)


def latencies_ms(run: Run) -> list[float]:
    return sorted((one.done_s - one.due_s) * 1000 for one in run.samples)


async def test_a_stall_is_seen_by_everybody_who_would_have_waited_in_it() -> None:
    arrivals = [Arrival(at_s=number * 0.01) for number in range(60)]
    run = await opened(Stalling(0.4).send, lambda _: ASK, arrivals, most_waiting=1000)
    waited = [ms for ms in latencies_ms(run) if ms > 50]
    assert len(run.samples) == 60
    assert len(waited) >= 30  # of the 40 that were due in the stall; a closed loop would tell of one
    assert percentile(latencies_ms(run), 0.5) > 50


async def test_a_generator_that_is_late_counts_from_the_time_a_request_was_due() -> None:
    def blocked() -> Iterable[Arrival]:
        yield Arrival(at_s=0.0)
        time.sleep(0.15)
        yield Arrival(at_s=0.01)

    run = await opened(Stalling(0).send, lambda _: ASK, blocked(), most_waiting=10)
    late = max(run.samples, key=lambda one: one.due_s)
    assert late.due_s == pytest.approx(0.01)
    assert late.sent_s - late.due_s > 0.1
    assert late.done_s - late.due_s > 0.1


async def test_what_is_due_beyond_the_most_that_may_wait_is_dropped_and_counted() -> None:
    arrivals = [Arrival(at_s=0.0) for _ in range(50)]
    run = await opened(Stalling(0.2).send, lambda _: ASK, arrivals, most_waiting=20)
    assert run.dropped == 30
    assert figures([run], [None], 1.0, {}).errors == {"dropped": 30}


async def test_a_closed_loop_has_so_many_callers_and_ends_in_time() -> None:
    running = most = 0

    async def send(ask: Ask, arrival: Arrival | None) -> Answer:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        now = time.perf_counter()
        return Answer(status=200, first_s=now, done_s=now)

    run = await closed(send, lambda: ASK, connections=5, seconds=0.2, most=10**6)
    assert most == 5
    assert 0.2 <= run.elapsed_s < 1
    bounded = await closed(send, lambda: ASK, connections=5, seconds=10, most=17)
    assert len(bounded.samples) == 17


def test_a_percentile_is_the_least_value_that_its_share_is_within() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert percentile([3.0], 0.99) == 3
    assert math.isnan(percentile([], 0.5))


def test_a_spread_is_the_median_with_its_ends() -> None:
    told = spread([3.0, 1.0, 2.0])
    assert (told.median, told.min, told.max) == (2, 1, 3)


def test_goodput_counts_good_answers_within_the_objective() -> None:
    samples = [sample(0, 0.1), sample(0, 3.0), sample(0, 0.01, 503), sample(0, 0.1, 0, error="timeout")]
    found = figures([Run(samples=samples, elapsed_s=1.0)], [0.4], 1.0, {})
    assert found.goodput_per_s.median == 1
    assert found.errors == {"http_503": 1, "timeout": 1}
    assert found.cpu_ms_per_request is not None
    assert found.cpu_ms_per_request.median == 100
    assert found.latency["hit exact"].requests == 2
    assert found.meant == {"exact": {"hit exact": 2, "http_503": 1, "timeout": 1}}


def test_recovery_is_the_time_until_all_is_well_to_the_end() -> None:
    fine = [sample(second + part / 10, 0.01) for second in range(6) for part in range(10)]
    slow = [sample(1.55, 0.5), sample(1.56, 0.5)]
    assert recovery_s(fine, 50, 6) == 0
    assert recovery_s(fine + slow, 50, 6) == 2
    assert recovery_s([*fine, sample(3.5, 0.01, 503)], 50, 6) == 4


def test_an_overload_is_judged_by_its_goals() -> None:
    def phase(per_s: int, seconds: int, took_s: float) -> list[Sample]:
        return [sample(number / per_s, took_s) for number in range(per_s * seconds)]

    shed = [sample(number / 900, 0.02, 503, retry_after="1") for number in range(900 * 10)]
    runs = {
        "peak": Run(samples=phase(100, 5, 0.1), elapsed_s=5),
        "normal": Run(samples=phase(50, 5, 0.1), elapsed_s=5),
        "overload": Run(samples=phase(95, 10, 0.15) + shed, elapsed_s=10),
        "after": Run(samples=phase(50, 15, 0.1), elapsed_s=15),
    }
    goals = judged(runs, 100.0, 1.0, Overload(seconds=10, after_s=15))
    assert all(goal.met for goal in goals.values())
    runs["overload"].samples.append(sample(5, 0.02, 503))
    runs["overload"].samples.extend(sample(5, 0.2, 503, retry_after="1") for _ in range(200))
    goals = judged(runs, 100.0, 1.0, Overload(seconds=10, after_s=15))
    assert [name for name, goal in goals.items() if not goal.met] == [
        "shed answers, p99",
        "shed answers that say when to come back",
    ]


def test_a_peak_in_which_some_are_turned_away_is_none() -> None:
    fine = Run(samples=[sample(number / 100, 0.1) for number in range(400)], elapsed_s=4)
    shed = Run(samples=[*fine.samples, *(sample(1, 0.01, 503) for _ in range(4))], elapsed_s=4)
    how, goal = Overload(seconds=4, after_s=4), "answered while the peak is found"
    runs = {"peak": fine, "normal": fine, "overload": fine, "after": fine}
    assert judged(runs, 100.0, 1.0, how)[goal].met
    found = judged({**runs, "peak": shed}, 100.0, 1.0, how)[goal]
    assert (found.measured, found.met) == (99.0, False)


def test_goodput_is_told_of_each_kind_by_itself() -> None:
    def both(hits_per_s: int, misses_per_s: int) -> Run:
        hits = [sample(number / hits_per_s, 0.0) for number in range(hits_per_s * 10)]
        miss = Ask(meant="miss", text="?")
        misses = [replace(sample(n / misses_per_s, 0.0), ask=miss) for n in range(misses_per_s * 10)]
        return Run(samples=hits + misses, elapsed_s=10)

    found = by_kind({"peak": both(50, 50), "overload": both(500, 25)}, 1.0, Overload(seconds=10))
    assert found == {"exact": pytest.approx(1000, abs=3), "miss": pytest.approx(50, abs=1)}


METRICS = """# TYPE cacheproxy_loop_lag_seconds histogram
cacheproxy_loop_lag_seconds_bucket{le="0.001"} 6.0
cacheproxy_loop_lag_seconds_bucket{le="0.01"} 10.0
cacheproxy_loop_lag_seconds_bucket{le="+Inf"} 10.0
cacheproxy_loop_lag_seconds_count 10.0
cacheproxy_loop_lag_seconds_sum 0.02
cacheproxy_stage_seconds_bucket{le="0.01",stage="embed"} 4.0
cacheproxy_stage_seconds_bucket{le="+Inf",stage="embed"} 4.0
cacheproxy_stage_seconds_sum{stage="embed"} 0.03
cacheproxy_requests_total{outcome="hit"} 3.0
"""


def seen(text: str) -> Seen:
    return Seen(cpu_s=None, rss_mb=None, histograms=histograms(text))


def test_what_the_proxy_timed_is_read_from_its_metrics() -> None:
    found = between(seen(""), seen(METRICS))
    assert set(found) == {"loop_lag", "embed"}
    assert (found["loop_lag"].count, found["loop_lag"].mean_ms) == (10, 2.0)
    assert found["loop_lag"].p50_ms == pytest.approx(5 / 6, abs=0.001)
    assert between(seen(METRICS), seen(METRICS)) == {}


def test_a_quantile_beyond_the_last_bound_is_that_bound() -> None:
    assert within({0.1: 1.0, math.inf: 10.0}, 0.99) == 0.1
