"""What timing a stage costs, beside prometheus_client's histogram: `python -m tests.benchmarks.stages`."""

from __future__ import annotations

import sys
import timeit
from time import perf_counter

from prometheus_client import CollectorRegistry, Histogram

from cacheproxy.stages import BOUNDS_S, Stage

CALLS, ROUNDS = 200_000, 7


def main() -> None:
    """Print microseconds a call: the fastest of some rounds."""
    stage, began_s = Stage(), perf_counter()
    histogram = Histogram("x", "x", ("stage",), buckets=BOUNDS_S, registry=CollectorRegistry())
    calls = {
        "a stage, its beginning known": lambda: stage.since(began_s),
        "a stage, its beginning asked for": lambda: stage.since(perf_counter()),
        "a histogram with a label": lambda: histogram.labels("embed").observe(perf_counter() - began_s),
    }
    for name, call in calls.items():
        sys.stdout.write(f"{name}: {min(timeit.repeat(call, number=CALLS, repeat=ROUNDS)) / CALLS * 1e6:.2f} us\n")


if __name__ == "__main__":
    main()
