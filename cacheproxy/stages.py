"""How long each stage of a request takes, timed from inside at a cost that is not felt.

A stage is one bisection and two additions: 0.3 us, where a histogram of prometheus_client takes its lock and walks its
bounds. All of it happens on the event loop, so nothing needs a lock; `cacheproxy_stage_seconds` is made of it when the
metrics are asked for.
"""

from __future__ import annotations

from bisect import bisect_left
from time import perf_counter
from typing import TYPE_CHECKING

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

BOUNDS_S = (
    *(0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
)
"""Upper bounds in seconds; from 10 us, since the exact tier answers within a few of them."""
_TEXT = (
    "Time of one stage of a request. verify is part of judge; a question is embedded in classify where its text tells "
    "its category, and embed is what is left of it then."
)
NAMES = ("read", "exact", "classify", "embed", "search", "judge", "verify", "render", "keep")


class Stage:
    """Times of one stage. Waiting for a thread, an encoder or a backend is part of it."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.total_s = 0.0

    def since(self, began_s: float) -> float:
        """Count a time that began at `began_s` (`perf_counter`); return the time of now, when the next one begins."""
        now_s = perf_counter()
        took_s = now_s - began_s
        self.counts[bisect_left(BOUNDS_S, took_s)] += 1
        self.total_s += took_s
        return now_s


class Stages(Collector):
    """Every stage of the line, as `cacheproxy_stage_seconds`."""

    def __init__(self) -> None:
        self.read = Stage()
        """The body, understood."""
        self.exact = Stage()
        """The exact tier: one read by id."""
        self.classify = Stage()
        """Which category it is of, where its text tells; the question is embedded here then."""
        self.embed = Stage()
        """The question's vector for the semantic tier; next to nothing where it was classified by it."""
        self.search = Stage()
        self.judge = Stage()
        """Candidates: documents read, rules, and what is timed as `verify` too."""
        self.verify = Stage()
        self.render = Stage()
        """A kept answer as the bytes that its caller wants."""
        self.keep = Stage()
        """An answer on its way into the store and the index; nobody waits for it but who wants headers that tell."""

    def collect(self) -> Iterator[Metric]:
        """Yield the histogram."""
        family = HistogramMetricFamily("cacheproxy_stage_seconds", _TEXT, labels=("stage",))
        for name in NAMES:
            stage: Stage = getattr(self, name)
            buckets, seen = [], 0
            for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), stage.counts, strict=True):
                seen += count
                buckets.append((bound, float(seen)))
            family.add_metric((name,), buckets, stage.total_s)
        yield family
