"""Traces for the eviction benchmark: who asks for what and when, as numbers without any text.

Arrivals, sizes and re-use come from recorded traces where they have them; what they lack is modelled, and the docstring
of each says how. An answer of `out` tokens takes 4.2 bytes a token and 2,000 for its vector and its row; making it
takes 200 ms, 0.1 ms for each token read and 20 ms for each token written.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """Requests in the order they come (`at_s`, `item`), and what is true of each item: shape (items,)."""

    name: str
    at_s: Floats
    item: Ints
    category: Ints
    """Of each item, as a place in `categories`."""
    size: Ints
    fill_ms: Floats
    categories: tuple[str, ...]
    ttl_s: tuple[float, ...]
    priority: tuple[float, ...]
    quota: tuple[float, ...]

    @property
    def distinct_bytes(self) -> int:
        """What a cache would need that never lets go."""
        return int(self.size[np.unique(self.item)].sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How one category of the mixed trace behaves."""

    name: str
    share: float
    """Of all requests."""
    once: float
    """Share of its requests that are never repeated."""
    zipf: float
    """Exponent of the popularity of its questions by rank."""
    drift_s: float
    """After this long a tenth of its questions have changed their ranks."""
    tokens: float
    """Median length of an answer."""
    ttl_s: float
    priority: float
    quota: float
    peak_h: float
    """The hour of the day at which it is busiest: three times as busy as twelve hours later."""


KINDS = {
    "support": Kind(
        name="support", share=0.30, once=0.15, zipf=1.0, drift_s=86_400, tokens=120, ttl_s=86_400, priority=1.0,
        quota=0.2, peak_h=11,
    ),
    "assistant": Kind(
        name="assistant", share=0.25, once=0.3, zipf=0.9, drift_s=7200, tokens=40, ttl_s=3600, priority=1.0,
        quota=0.15, peak_h=20,
    ),
    "general": Kind(
        name="general", share=0.30, once=0.4, zipf=0.8, drift_s=21_600, tokens=300, ttl_s=86_400, priority=1.0,
        quota=0.3, peak_h=16,
    ),
    "batch": Kind(
        name="batch", share=0.15, once=0.9, zipf=0.6, drift_s=86_400, tokens=500, ttl_s=30 * 86_400, priority=1.0,
        quota=0.1, peak_h=3,
    ),
}  # fmt: skip


def rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a gzipped JSONL file."""
    with gzip.open(path, "rt") as lines:
        return [json.loads(line) for line in lines]


def costs(read: Floats, written: Floats) -> tuple[Ints, Floats]:
    """Return bytes and milliseconds of answers by the tokens read and written."""
    return (2000 + 4.2 * written).astype(np.int64), 200 + 0.1 * read + 20 * written


def mooncake(data: Path, which: str, blocks: int = 2) -> Trace:
    """Return a recorded trace whose re-use is real: what begins with the same blocks of 512 tokens is one item.

    That is re-use of openings (documents, system prompts, conversations), the nearest that a trace without text has to
    a question that comes again.
    """
    found = rows(data / f"trace_mooncake_{which}.jsonl.gz")
    numbers: dict[tuple[int, ...], int] = {}
    item = np.array([numbers.setdefault(tuple(row["hash_ids"][:blocks]), len(numbers)) for row in found])
    read, written = np.zeros(len(numbers)), np.zeros(len(numbers))
    for number, row in zip(item, found, strict=True):
        read[number], written[number] = row["in"], row["out"]
    size, fill_ms = costs(read, written)
    return Trace(
        name=f"mooncake {which}",
        at_s=np.array([row["t"] for row in found]),
        item=item,
        category=np.zeros(len(numbers), dtype=np.int64),
        size=size,
        fill_ms=fill_ms,
        categories=("all",),
        ttl_s=(3600.0,),
        priority=(1.0,),
        quota=(1.0,),
    )


def azure(data: Path, seed: int) -> Trace:
    """Return an hour of two recorded services: arrivals and lengths are real, which question comes is modelled.

    Each request repeats an earlier one of its service with probability 0.5 (code) or 0.3 (conversation), any of the
    last 4,000: what was asked more often of late is asked more often again.
    """
    source = np.random.default_rng(seed)
    kinds = (("code", 0.5), ("conv", 0.3))
    at_s, item, category = list[float](), list[int](), list[int]()
    read, written = list[float](), list[float]()
    for number, (which, again) in enumerate(kinds):
        urn: list[int] = []
        for row in rows(data / f"trace_azure_{which}.jsonl.gz"):
            if urn and source.random() < again:
                chosen = urn[-1 - int(source.integers(0, min(4000, len(urn))))]
            else:
                chosen = len(read)
                read.append(row["in"])
                written.append(row["out"])
                category.append(number)
            urn.append(chosen)
            at_s.append(row["t"])
            item.append(chosen)
    order = np.argsort(at_s, kind="stable")
    size, fill_ms = costs(np.array(read, dtype=float), np.array(written, dtype=float))
    return Trace(
        name="azure",
        at_s=np.array(at_s)[order],
        item=np.array(item)[order],
        category=np.array(category),
        size=size,
        fill_ms=fill_ms,
        categories=("code", "chat"),
        ttl_s=(30 * 86_400.0, 3600.0),
        priority=(1.0, 1.0),
        quota=(0.4, 0.3),
    )


def mixed(data: Path, seed: int, requests: int = 150_000, days: float = 3.0) -> Trace:
    """Return days of four kinds of traffic: how many questions there are is real, how they repeat is modelled.

    The catalogues are the distinct questions of banking77 (support) and clinc150 (assistant), and the duplicate
    clusters of qqp (general, batch). Popularity is Zipf by rank, ranks drift, some requests are never repeated, each
    kind has its own hour: `KINDS`. Lengths of answers are log-normal (sigma 0.8).
    """
    source = np.random.default_rng(seed)
    sizes = catalogues(data)
    chosen = source.choice(len(KINDS), requests, p=[kind.share for kind in KINDS.values()])
    at_s, item = np.zeros(requests), np.zeros(requests, dtype=np.int64)
    category, written = list[int](), list[float]()
    for number, kind in enumerate(KINDS.values()):
        places = np.flatnonzero(chosen == number)
        when = np.sort(hours(source, len(places), kind.peak_h, days))
        at_s[places] = when
        local = repeats(source, when, kind, sizes[kind.name])
        item[places] = local + len(category)
        count = int(local.max()) + 1
        category += [number] * count
        written += list(np.clip(source.lognormal(np.log(kind.tokens), 0.8, count), 2, 4000))
    order = np.argsort(at_s, kind="stable")
    size, fill_ms = costs(np.full(len(written), 200.0), np.array(written))
    kinds = tuple(KINDS.values())
    return Trace(
        name="mixed",
        at_s=at_s[order],
        item=item[order],
        category=np.array(category),
        size=size,
        fill_ms=fill_ms,
        categories=tuple(KINDS),
        ttl_s=tuple(kind.ttl_s for kind in kinds),
        priority=tuple(kind.priority for kind in kinds),
        quota=tuple(kind.quota for kind in kinds),
    )


def catalogues(data: Path) -> dict[str, int]:
    """Return how many questions each kind has."""
    banking, clinc = (len({row["text"] for row in rows(data / f"{n}_dev.jsonl.gz")}) for n in ("banking77", "clinc150"))
    clusters = Counter(row["cluster"] for row in rows(data / "qqp_dev.jsonl.gz"))
    return {"support": banking, "assistant": clinc, "general": len(clusters), "batch": len(clusters)}


def hours(source: np.random.Generator, count: int, peak_h: float, days: float) -> Floats:
    """Return moments of a day-and-night rhythm, three times as dense at the peak as at its opposite."""
    kept = np.zeros(0)
    while len(kept) < count:
        when = source.uniform(0, days * 86_400, 2 * count)
        density = (2 + np.cos((when / 3600 - peak_h) * np.pi / 12)) / 3
        kept = np.concatenate([kept, when[source.random(len(when)) < density]])
    moments: Floats = kept[:count]
    return moments


def repeats(source: np.random.Generator, at_s: Floats, kind: Kind, catalogue: int) -> Ints:
    """Return which question each request asks: by rank where it may be asked again, a number of its own otherwise."""
    weights = np.arange(1, catalogue + 1) ** -kind.zipf
    ranks = source.choice(catalogue, len(at_s), p=weights / weights.sum())
    ranking, asked, drifts = source.permutation(catalogue), np.zeros(len(at_s), dtype=np.int64), 0
    for place, (moment, rank) in enumerate(zip(at_s, ranks, strict=True)):
        while moment > (drifts + 1) * kind.drift_s:
            moved = source.choice(catalogue, catalogue // 10, replace=False)
            ranking[moved] = ranking[source.permutation(moved)]
            drifts += 1
        asked[place] = ranking[rank]
    once = source.random(len(at_s)) < kind.once
    asked[once] = catalogue + np.arange(int(once.sum()))
    return asked
