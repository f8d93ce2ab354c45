"""What a proxy costs, seen from outside: CPU time and memory of its process, and what its own metrics say."""

from __future__ import annotations

import asyncio
import os
import re
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from cacheproxy.errors import ConfigError

_SAMPLE = re.compile(r"^(\w+)(?:\{([^}]*)\})? ([0-9.e+-]+|\+Inf)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_LAG = "cacheproxy_loop_lag_seconds"
_STAGE = "cacheproxy_stage_seconds"
_FIRST_BYTE = "cacheproxy_upstream_first_byte_seconds"

Buckets = dict[float, float]
"""Cumulative counts by upper bound in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """How long something took, of a histogram: a count, the mean, and bounds that a share of it is within."""

    count: int
    mean_ms: float
    p50_ms: float
    p99_ms: float
    """Interpolated within a bucket of the histogram."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The process and its metrics at one moment; None where they cannot be seen from here."""

    cpu_s: float | None
    rss_mb: float | None
    histograms: dict[str, tuple[Buckets, float]]
    """By name: the event loop's lag, and each stage; with the sum in seconds."""


class Watch:
    """Looks at one proxy. `pid` None: no CPU or memory; `admin_url` "": no metrics."""

    def __init__(self, pid: int | None, admin_url: str = "", token: str = "") -> None:
        self.pid = pid
        self.admin_url = admin_url
        self._token = token

    async def look(self) -> Seen:
        """Return what is to be seen now. Raises ConfigError where the metrics cannot be read."""
        text = await asyncio.to_thread(self._metrics) if self.admin_url else ""
        cpu_s, rss_mb = (None, None) if self.pid is None else process(self.pid)
        return Seen(cpu_s=cpu_s, rss_mb=rss_mb, histograms=histograms(text))

    def _metrics(self) -> str:
        headers = {"authorization": f"Bearer {self._token}"} if self._token else {}
        call = urllib.request.Request(f"{self.admin_url}/metrics", headers=headers)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy of the environment
        try:
            with direct.open(call, timeout=10) as answer:
                found: bytes = answer.read()
        except OSError as exc:
            raise ConfigError(f"{self.admin_url}/metrics: cannot be read ({exc}); see --admin-url") from exc
        return found.decode()


def process(pid: int) -> tuple[float | None, float | None]:
    """Return CPU seconds of all threads since its start, and megabytes resident; None where /proc does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return None, None
    resident = re.search(r"VmRSS:\s+(\d+)", status)
    cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return cpu_s, int(resident[1]) / 1024 if resident else None


def histograms(text: str) -> dict[str, tuple[Buckets, float]]:
    """Return the event loop's lag and every stage of Prometheus text, those of the backends' first byte as one."""
    found: dict[str, tuple[Buckets, float]] = {}
    for name, labels, value in _SAMPLE.findall(text):
        base, _, part = name.rpartition("_")
        if base not in (_LAG, _STAGE, _FIRST_BYTE) or part not in ("bucket", "sum"):
            continue
        told = dict(_LABEL.findall(labels))
        key = {_LAG: "loop_lag", _FIRST_BYTE: "first_byte"}.get(base) or told["stage"]
        buckets, total_s = found.get(key, ({}, 0.0))
        if part == "sum":
            total_s += float(value)
        else:
            bound = float(told["le"].replace("+Inf", "inf"))
            buckets[bound] = buckets.get(bound, 0.0) + float(value)
        found[key] = buckets, total_s
    return found


def between(before: Seen, after: Seen) -> dict[str, Timed]:
    """Return what was timed between two looks."""
    found = {}
    for name, (buckets, total_s) in after.histograms.items():
        old, old_s = before.histograms.get(name, ({}, 0.0))
        counts = {bound: count - old.get(bound, 0.0) for bound, count in sorted(buckets.items())}
        count = int(max(counts.values(), default=0))
        if count:
            found[name] = Timed(
                count=count,
                mean_ms=round((total_s - old_s) * 1000 / count, 4),
                p50_ms=round(within(counts, 0.5) * 1000, 4),
                p99_ms=round(within(counts, 0.99) * 1000, 4),
            )
    return found


def within(counts: Buckets, share: float) -> float:
    """Return the time that a share is within, in seconds, as Prometheus' histogram_quantile interpolates it.

    Beyond the last finite bound it is that bound.
    """
    wanted, before, low = share * max(counts.values()), 0.0, 0.0
    for bound, count in counts.items():
        if count >= wanted and count > before:
            if bound == float("inf"):
                return low
            return low + (bound - low) * (wanted - before) / (count - before)
        before, low = count, bound
    return low
