"""Every metric's name, once. Labels are bounded (outcomes, reasons, categories, parts): never tenants, models, text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from collections.abc import Callable

_FAST_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SLOW_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Telemetry:
    """The metrics of one proxy, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter(
            "cacheproxy_requests_total",
            "Requests of cached routes by outcome, tier (hits), category and reason.",
            ("outcome", "tier", "category", "reason"),
            registry=r,
        )
        self.lookup_seconds = Histogram(
            "cacheproxy_lookup_seconds", "Time to decide, by outcome.", ("outcome",), buckets=_FAST_S, registry=r
        )
        self.upstream_seconds = Histogram(
            "cacheproxy_upstream_seconds", "Backend time of complete answers.", buckets=_SLOW_S, registry=r
        )
        self.admissions = Counter(
            "cacheproxy_admissions_total", "Complete answers by what became of them.", ("stored", "reason"), registry=r
        )
        self.coalesced = Counter("cacheproxy_coalesced_total", "Requests answered by another's exchange.", registry=r)
        self.part_failures = Counter(
            "cacheproxy_part_failures_total",
            "Failures of a part of the cache, each treated as a miss.",
            ("part",),
            registry=r,
        )
        self.scope_violations = Counter(
            "cacheproxy_scope_violations_total", "Documents refused by the second scope check. Must stay 0.", registry=r
        )
        self.repairs = Counter(
            "cacheproxy_index_repairs_total", "Ids dropped from the index for want of a document.", registry=r
        )
        self.saved_usd = Counter(
            "cacheproxy_saved_usd_total", "Price of the answers served from the cache.", registry=r
        )
        self.removed = Counter("cacheproxy_entries_removed_total", "Entries removed by the sweeper.", registry=r)
        self.refused = Counter(
            "cacheproxy_refused_total", "Requests refused at the edge, by wire code.", ("code",), registry=r
        )
        self.upstream_errors = Counter(
            "cacheproxy_upstream_errors_total", "Exchanges that failed, by wire code.", ("code",), registry=r
        )
        self.loop_lag_seconds = Histogram(
            "cacheproxy_loop_lag_seconds", "How late the event loop ran a timer.", buckets=_FAST_S, registry=r
        )

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Export a value that is read when the metrics are asked for."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def render(self) -> bytes:
        """Return all metrics in Prometheus text format."""
        return generate_latest(self.registry)
