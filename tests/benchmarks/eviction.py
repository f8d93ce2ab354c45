"""Which entry goes when room is needed: a simulated replay of traces against eviction rules.

`python -m tests.benchmarks.eviction --data DIR [--out docs/benchmarks-eviction.json]`. DIR holds the traces that
`eviction_traces.py` names; the project neither has nor needs them. Nothing is served: a cache of entries without text
is asked, filled and swept. The shipped rule runs through the store's own `Sweeper` and `policy/evict.py`; the others
are written out here, each looks at all entries, and knows neither quotas nor tenants.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cacheproxy.model import Quota
from cacheproxy.policy.evict import quotas as quotas_of
from cacheproxy.policy.pack import Category, Pack
from cacheproxy.store.caps import Caps
from cacheproxy.store.sweeper import Sweeper
from cacheproxy.store.uses import HALF_LIFE_S
from tests.benchmarks.eviction_traces import azure, mixed, mooncake
from tests.support.residents import Row, RowModel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from tests.benchmarks.eviction_traces import Trace

    Floats = NDArray[np.float64]
    Key = Callable[["Facts"], Floats]

ALL = "all"
"""The one category of a cache without quotas."""
SIZES = (0.02, 0.1, 0.3)
"""Of the bytes that a cache would need that never lets go."""
WARM_UP, WINDOWS, SEEDS, RESAMPLES = 0.2, 20, 5, 2000
T_95 = 2.776
"""Student's t for five seeds (four degrees of freedom), 95 %, two-sided."""


class Cache(Protocol):
    """What a trace is replayed against."""

    def asked(self, item: int, now_s: float) -> bool:
        """Whether it holds the answer; otherwise the answer is put, and there is swept if there must be."""
        ...


@dataclass(slots=True, kw_only=True, eq=False)
class Facts:
    """What a rule may look at, of all entries held: arrays of shape (held,)."""

    now_s: float
    created_s: Floats
    used_s: Floats
    expires_s: Floats
    hits: Floats
    """Decayed, as the store counts them."""
    count: Floats
    """Since it was put."""
    inflated: Floats
    """GDSF's priority: L at its last use, plus count times cost over size."""
    size: Floats
    fill_ms: Floats


RULES: dict[str, Key] = {
    "FIFO": lambda facts: facts.created_s,
    "LRU": lambda facts: facts.used_s,
    "LFU": lambda facts: facts.count * 1e9 + facts.used_s,
    "GDSF": lambda facts: facts.inflated,
    "score as first specified": lambda facts: (
        (facts.hits + 1)
        * facts.fill_ms
        * np.maximum(0, 1 - (facts.now_s - facts.created_s) / (facts.expires_s - facts.created_s))
        / facts.size
    ),
    "shipped score, all entries": lambda facts: (
        (facts.hits + 1) * np.sqrt(facts.fill_ms / facts.size) / (facts.now_s - facts.used_s + 10)
    ),
}


class Ranked:
    """A cache that sorts all of its entries by a rule, and lets the lowest go until a fiftieth is free."""

    def __init__(self, trace: Trace, max_bytes: float, key: Key) -> None:
        items = len(trace.size)
        self._key, self._max_bytes, self._held_bytes, self._inflation = key, max_bytes, 0, 0.0
        self._size, self._fill_ms = trace.size.astype(float), trace.fill_ms
        self._ttl_s = np.array(trace.ttl_s)[trace.category]
        self._live = np.zeros(items, dtype=bool)
        self._created_s, self._used_s, self._expires_s, self._hits, self._count, self._inflated = np.zeros((6, items))

    def asked(self, item: int, now_s: float) -> bool:
        """Look, and put what is not there."""
        hit = bool(self._live[item] and now_s < self._expires_s[item])
        decayed = self._hits[item] * 0.5 ** ((now_s - self._used_s[item]) / HALF_LIFE_S) if self._live[item] else 0.0
        if hit:
            self._hits[item], self._count[item] = decayed + 1, self._count[item] + 1
        else:
            self._count[item] = self._count[item] if self._live[item] else 0
            self._hits[item], self._created_s[item] = decayed, now_s
            self._expires_s[item] = now_s + self._ttl_s[item]
            self._held_bytes += 0 if self._live[item] else int(self._size[item])
            self._live[item] = True
        self._used_s[item] = now_s
        self._inflated[item] = self._inflation + (self._count[item] + 1) * self._fill_ms[item] / self._size[item]
        if self._held_bytes > self._max_bytes:
            self._sweep(now_s)
        return hit

    def _sweep(self, now_s: float) -> None:
        held = np.flatnonzero(self._live)
        self._drop(held[self._expires_s[held] <= now_s])
        held = np.flatnonzero(self._live)
        excess = self._held_bytes - 0.98 * self._max_bytes
        if excess <= 0:
            return
        facts = Facts(
            now_s=now_s,
            created_s=self._created_s[held],
            used_s=self._used_s[held],
            expires_s=self._expires_s[held],
            hits=self._hits[held] * 0.5 ** ((now_s - self._used_s[held]) / HALF_LIFE_S),
            count=self._count[held],
            inflated=self._inflated[held],
            size=self._size[held],
            fill_ms=self._fill_ms[held],
        )
        lowest = held[np.argsort(self._key(facts), kind="stable")]
        gone = lowest[: int(np.searchsorted(np.cumsum(self._size[lowest]), excess)) + 1]
        self._inflation = max(self._inflation, float(self._inflated[gone].max()))
        self._drop(gone)

    def _drop(self, items: NDArray[np.int64]) -> None:
        self._live[items] = False
        self._held_bytes -= int(self._size[items].sum())


class Swept:
    """A cache that is swept by the store's own code."""

    def __init__(self, trace: Trace, max_bytes: float, quotas: Mapping[str, Quota]) -> None:
        self._trace, self._rows, self._quotas = trace, RowModel(), quotas
        self._caps = Caps(max_entries=10**9, max_bytes=int(max_bytes))
        self._sweeper = Sweeper(caps=self._caps, quotas=lambda: quotas)

    def asked(self, item: int, now_s: float) -> bool:
        """Look, and put what is not there."""
        key, trace, rows = str(item), self._trace, self._rows
        found = rows.rows.get(key)
        if found is not None and now_s < found.expires_s:
            rows.use(key, now_s)
            return True
        category = int(trace.category[item])
        name = trace.categories[category] if ALL not in self._quotas else ALL
        rows.put(
            Row(
                entry_id=key,
                category=name,
                tenant="",
                size_bytes=int(trace.size[item]),
                fill_ms=float(trace.fill_ms[item]),
                used_s=now_s,
                expires_s=now_s + trace.ttl_s[category],
            )
        )
        while self._caps.over(*rows.tally.totals):
            self._sweeper.sweep(rows, now_s)
        return False


@dataclass(slots=True, kw_only=True)
class Tallied:
    """What became of the requests after the warm-up: arrays of shape (windows, categories)."""

    requests: Floats
    hits: Floats
    bytes_asked: Floats
    bytes_hit: Floats
    ms_asked: Floats
    ms_saved: Floats


def replay(trace: Trace, cache: Cache) -> Tallied:
    """Ask a cache for all of a trace."""
    first, shape = int(len(trace.item) * WARM_UP), (WINDOWS, len(trace.categories))
    told = Tallied(**{name: np.zeros(shape) for name in Tallied.__slots__})
    for place, (item, now_s) in enumerate(zip(trace.item.tolist(), trace.at_s.tolist(), strict=True)):
        hit = cache.asked(item, now_s)
        if place < first:
            continue
        cell = (place - first) * WINDOWS // (len(trace.item) - first), trace.category[item]
        told.requests[cell] += 1
        told.bytes_asked[cell] += trace.size[item]
        told.ms_asked[cell] += trace.fill_ms[item]
        if hit:
            told.hits[cell] += 1
            told.bytes_hit[cell] += trace.size[item]
            told.ms_saved[cell] += trace.fill_ms[item]
    return told


RATES = {
    "hit_rate": ("hits", "requests"),
    "byte_hit_rate": ("bytes_hit", "bytes_asked"),
    "saved": ("ms_saved", "ms_asked"),
}


def rate(told: Tallied, name: str, category: int | None = None, windows: NDArray[np.int64] | None = None) -> float:
    """Return one of RATES, of one category or all, of some windows or all."""
    which = (slice(None) if windows is None else windows), (slice(None) if category is None else category)
    part, whole = (getattr(told, side)[which] for side in RATES[name])
    return float(part.sum() / whole.sum())


def interval(of: list[Tallied], name: str, base: list[Tallied] | None = None) -> tuple[float, float, float]:
    """Return a rate, or its difference to that of `base`, with its 95 % interval.

    Over seeds (Student's t), or for a recorded trace, of which there is one, over its windows (bootstrap, paired).
    """

    def value(place: int, windows: NDArray[np.int64] | None = None) -> float:
        own = rate(of[place], name, windows=windows)
        return own - rate(base[place], name, windows=windows) if base else own

    if len(of) > 1:
        values = [value(place) for place in range(len(of))]
        middle, half = float(np.mean(values)), T_95 * float(np.std(values, ddof=1)) / len(values) ** 0.5
        return middle, middle - half, middle + half
    source = np.random.default_rng(0)
    drawn = [value(0, source.integers(0, WINDOWS, WINDOWS)) for _ in range(RESAMPLES)]
    return value(0), float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))


def quotas(trace: Trace, max_bytes: float) -> dict[str, Quota]:
    """Return each category's part of the cache."""
    categories = {
        name: Category(quota=quota, priority=priority)
        for name, quota, priority in zip(trace.categories, trace.quota, trace.priority, strict=True)
    }
    pack = Pack(schema=1, name="trace", description="", default_category=trace.categories[0], categories=categories)
    return quotas_of(pack, 10**9, int(max_bytes))


def caches(trace: Trace, max_bytes: float) -> dict[str, Callable[[], Cache]]:
    """Return what a trace is replayed against, by name."""
    everything = {ALL: Quota(entries=10**9, size_bytes=int(max_bytes))}
    found: dict[str, Callable[[], Cache]] = {
        name: partial(Ranked, trace, max_bytes, key) for name, key in RULES.items()
    }
    found["shipped"] = partial(Swept, trace, max_bytes, everything)
    if len(trace.categories) > 1:
        found["shipped, with quotas"] = partial(Swept, trace, max_bytes, quotas(trace, max_bytes))
    return found


def measured(traces: list[Trace], tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Replay one trace (as many times as it has seeds) against everything, at every size."""
    found: list[dict[str, Any]] = []
    for share in SIZES:
        told: dict[str, list[Tallied]] = {}
        for trace in traces:
            for name, make in caches(trace, share * trace.distinct_bytes).items():
                told.setdefault(name, []).append(replay(trace, make()))
                tell(f"{trace.name} {share:g} {name}")
        found += [
            {
                "trace": traces[0].name,
                "seeds": len(traces),
                "share_of_distinct_bytes": share,
                "rule": name,
                **{which: interval(of, which) for which in RATES},
                "saved_over_lru": interval(of, "saved", told["LRU"]),
                "hit_rate_over_lru": interval(of, "hit_rate", told["LRU"]),
                "ms_saved": float(np.mean([one.ms_saved.sum() for one in of])),
                "by_category": {
                    category: {which: float(np.mean([rate(one, which, number) for one in of])) for which in RATES}
                    for number, category in enumerate(traces[0].categories)
                },
            }
            for name, of in told.items()
        ]
    return found


def tables(report: dict[str, Any]) -> str:
    """Return the tables that docs/benchmarks.md shows."""
    lines: list[str] = []
    for trace in dict.fromkeys(run["trace"] for run in report["runs"]):
        runs = [run for run in report["runs"] if run["trace"] == trace]
        lines += [f"**{trace}**", "", "| rule | " + " | ".join(f"{share:.0%}" for share in SIZES) + " |"]
        lines += ["|---" * (1 + len(SIZES)) + "|"]
        for rule in dict.fromkeys(run["rule"] for run in runs):
            cells = [_cell(run) for run in runs if run["rule"] == rule]
            lines.append(f"| {rule} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _cell(run: dict[str, Any]) -> str:
    saved, hits = run["saved"], run["hit_rate"]
    return f"{saved[0]:.1%} [{saved[1]:.1%}, {saved[2]:.1%}]; hits {hits[0]:.1%}"


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return round(value, 4)
        case dict():
            return {key: _rounded(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_rounded(inner) for inner in value]
    return value


def main() -> None:
    """Run everything, write the JSON, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="directory with the traces")
    parser.add_argument("--out", type=Path, help="where the raw figures go, as JSON")
    parser.add_argument("--requests", type=int, default=60_000, help="of the mixed trace")
    options = parser.parse_args()
    groups = [
        [mooncake(options.data, "conversation")],
        [mooncake(options.data, "synthetic")],
        [azure(options.data, seed) for seed in range(SEEDS)],
        [mixed(options.data, seed, options.requests) for seed in range(SEEDS)],
    ]
    began_s = time.monotonic()

    def tell(what: str) -> None:
        sys.stderr.write(f"{time.monotonic() - began_s:.0f} s {what}\n")

    report = {
        "what": "simulated replay: no backend, no proxy",
        "method": {"sizes": SIZES, "warm_up": WARM_UP, "windows": WINDOWS, "seeds": SEEDS},
        "traces": [
            {
                "name": traces[0].name,
                "requests": len(traces[0].item),
                "distinct": len(np.unique(traces[0].item)),
                "distinct_mb": round(traces[0].distinct_bytes / 1e6, 1),
                "most_hits_possible": 1 - len(np.unique(traces[0].item)) / len(traces[0].item),
            }
            for traces in groups
        ],
        "runs": [run for traces in groups for run in measured(traces, tell)],
    }
    sys.stdout.write(tables(report))
    if options.out:
        rows = ",\n  ".join(json.dumps(_rounded(run)) for run in report.pop("runs"))
        head = json.dumps(report, indent=1).removesuffix("\n}")
        options.out.write_text(f'{head},\n "runs": [\n  {rows}\n ]\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
