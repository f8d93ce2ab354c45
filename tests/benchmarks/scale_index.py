"""How the index grows: `python -m tests.benchmarks.scale_index --data DIR --out FILE`.

Entries of 1,000 to 100,000 (`--entries 1000000` takes half an hour) over 1, 100 and 10,000 scopes, kept as float32 and,
the large ones, also as int8: time of a lookup, memory, processor time to build, time to write a snapshot and to start
from it and how long each held up the event loop, and recall at 1 and 4 against exact search; where there are no more
than `--churned` of them, all that again after churn, in which every entry is replaced three times over.

Vectors are those of real questions, of every `*.jsonl.gz` in DIR, embedded once and kept; without DIR, all that were
kept by then. Where more entries are asked for than there are vectors, the rest are real ones moved a little, which is
told. Each case runs in a process of its own, so that memory is its own.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import gzip
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import uvloop

from cacheproxy.bench.figures import percentile
from cacheproxy.bench.watching import process
from cacheproxy.embed.open import open_encoder
from cacheproxy.evaluate.vectors import embed_texts
from cacheproxy.index.partitioned import PartitionedIndex
from cacheproxy.model import Partition
from cacheproxy.settings import Encoder, Index
from tests.support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from numpy.typing import NDArray

    from cacheproxy.index.restore import Row

HOME = Path(__file__).parents[2] / ".cacheproxy"
FIELDS = ("text", "question", "prompt", "a", "b")
ASKED, MOVED, EPOCH, SEED = 500, 0.15, "scale", 1
ENOUGH_S = 3600
TICK_S = 0.001
CODED_FROM = 10_000
"""Entries from which on a case is also measured with int8 vectors."""


def texts(data: Path) -> Iterator[str]:
    """Yield every question of every data set in a directory."""
    for file in sorted(data.glob("*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                yield from (row[name] for name in FIELDS if isinstance(row.get(name), str) and row[name].strip())


def vectors(data: Path | None, most: int) -> NDArray[np.float32]:
    """Return vectors of up to `most` distinct questions in a random order, embedded once and kept.

    Without data, of those that were kept before. Raises SystemExit where there are none.
    """
    if data is None:
        files = sorted((HOME / "vectors").rglob("*.npz"))
        if not files:
            raise SystemExit("no vectors are kept yet; give --data DIR, with data sets of real questions (*.jsonl.gz)")
        kept = np.concatenate([np.load(file)["vectors"] for file in files])
        whole = np.unique(kept[np.abs(np.vecdot(kept, kept) - 1.0) < 1e-3], axis=0)
        return whole[np.random.default_rng(SEED).permutation(len(whole))[:most]]
    distinct = sorted(dict.fromkeys(text[:400] for text in texts(data)))
    chosen = [distinct[place] for place in np.random.default_rng(SEED).permutation(len(distinct))[:most]]
    encoder = open_encoder(Encoder(device="cpu", cache_dir=str(HOME / "encoders")), HOME)
    known = embed_texts(chosen, encoder, HOME / "vectors")
    return np.stack([known[text].vector for text in chosen])


def grown(real: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Return `count` unit vectors: the real ones, and where they do not suffice, real ones moved a little."""
    source = np.random.default_rng(SEED)
    found = [real[:count]]
    while (lacking := count - sum(map(len, found))) > 0:
        noise = source.standard_normal(real[:lacking].shape, dtype=np.float32)
        moved = real[:lacking] + MOVED * noise / np.linalg.norm(noise, axis=1, keepdims=True)
        found.append(moved / np.linalg.norm(moved, axis=1, keepdims=True))
    return np.concatenate(found)


class Case:
    """One index of some entries over some scopes."""

    def __init__(self, real: NDArray[np.float32], entries: int, scopes: int) -> None:
        self.asked, rest = real[:ASKED], real[ASKED:]
        self.rows = grown(rest, entries)
        self.real = min(len(rest), entries)
        self.scope_of = np.arange(entries) % scopes
        self.partitions = [
            Partition(category="default", compatibility=scope.to_bytes(32, "big"), epoch=EPOCH)
            for scope in range(scopes)
        ]
        self.ids = [f"{number:032x}" for number in range(entries)]
        self.dim = real.shape[1]

    async def fill(self, index: PartitionedIndex, names: list[str]) -> float:
        """Add all entries under these names; return processor seconds until the graphs hold them."""
        began = time.process_time()
        for number, name in enumerate(names):
            index.add(self.partitions[self.scope_of[number]], name, self.rows[number])
            if number % 256 == 0:
                await asyncio.sleep(0)
        await eventually(lambda: not index.stats().due, "the graphs are built", within_s=ENOUGH_S)
        return time.process_time() - began

    async def look_up(self, index: PartitionedIndex, names: list[str]) -> dict[str, float]:
        """Return how long lookups take, how much of what exact search finds they find, and how much less alike it is.

        `lost` is a mean over all questions: the cosine of the nearest entry, less that of the one that was found.
        """
        took, first, of_four, wanted, lost = [], 0, 0, 0, 0.0
        place_of = {name: place for place, name in enumerate(names)}
        for scope, questions in self.asked_of().items():
            places = np.flatnonzero(self.scope_of == scope)
            exact = self.exact(places, questions)
            for number, best in zip(questions, exact, strict=True):
                began = time.perf_counter()
                found = await index.search(self.partitions[scope], self.asked[number], 4)
                took.append((time.perf_counter() - began) * 1000)
                got = [one.entry_id for one in found]
                first += got[:1] == [names[best[0]]]
                of_four += len({names[place] for place in best} & set(got))
                wanted += len(best)
                nearest, met = (self.rows[place] @ self.asked[number] for place in (best[0], place_of[got[0]]))
                lost += float(nearest - met)
        took.sort()
        return {
            "p50_ms": round(percentile(took, 0.5), 4),
            "p99_ms": round(percentile(took, 0.99), 4),
            "recall_at_1": round(first / len(self.asked), 4),
            "recall_at_4": round(of_four / wanted, 4),
            "lost": round(lost / len(self.asked), 6),
        }

    def asked_of(self) -> dict[int, list[int]]:
        """Return which questions are asked of which scope: one of each scope in turn."""
        scopes = min(len(self.partitions), ASKED)
        return {scope: list(range(scope, len(self.asked), scopes)) for scope in range(scopes)}

    def exact(self, places: NDArray[np.intp], questions: list[int]) -> list[list[int]]:
        """Return the places of the four nearest of these rows to each question, closest first."""
        near = np.concatenate(
            [self.asked[questions] @ self.rows[part].T for part in np.array_split(places, len(places) // 50_000 + 1)],
            axis=1,
        )
        most = min(4, len(places))
        best = np.argpartition(-near, most - 1, axis=1)[:, :most]
        order = np.argsort(-np.take_along_axis(near, best, axis=1), axis=1, kind="stable")
        return [places[one].tolist() for one in np.take_along_axis(best, order, axis=1)]

    async def stored(self, names: list[str]) -> AsyncIterator[Row]:
        """Yield the rows as the store does at a start."""
        for number, name in enumerate(names):
            yield self.partitions[self.scope_of[number]], name, self.rows[number]


@asynccontextmanager
async def stalls() -> AsyncIterator[list[float]]:
    """Tell how many milliseconds too late each tick of the event loop came."""
    late: list[float] = []

    async def tick() -> None:
        while True:
            due = time.perf_counter() + TICK_S
            await asyncio.sleep(TICK_S)
            late.append(max(0.0, time.perf_counter() - due) * 1000)

    task = asyncio.create_task(tick())
    try:
        yield late
    finally:
        task.cancel()


async def measure(case: Case, kept: str, churn: int) -> dict[str, Any]:
    """Return the figures of one case."""
    ids, config = case.ids, Index(vectors=kept)
    found: dict[str, Any] = {"entries": len(ids), "scopes": len(case.partitions), "vectors": kept, "real": case.real}
    before_mb = _rss_mb()
    with tempfile.TemporaryDirectory() as scratch:
        async with PartitionedIndex(config, dim=case.dim, epoch=EPOCH) as index:
            found["build_cpu_s"] = round(await case.fill(index, ids), 2)
            found |= {"graphs": index.stats().graphs, "mb": round(_rss_mb() - before_mb, 1)}
            found["lookup"] = await case.look_up(index, ids)
            async with stalls() as late:
                began = time.perf_counter()
                await index.save(Path(scratch))
                found["snapshot_s"] = round(time.perf_counter() - began, 2)
            found |= {"snapshot_stall_ms": round(max(late, default=0.0), 1), "snapshot_mb": _size_mb(Path(scratch))}
            if churn:
                found["after_churn"] = await churned(case, index, churn)
                found["after_churn"]["mb"] = round(_rss_mb() - before_mb, 1)
        async with PartitionedIndex(config, dim=case.dim, epoch=EPOCH) as again:
            async with stalls() as late:
                began = time.perf_counter()
                await again.restore(Path(scratch), case.stored(ids))
                found["start_s"] = round(time.perf_counter() - began, 2)
            found["start_stall_ms"] = round(max(late, default=0.0), 1)
    return found


async def churned(case: Case, index: PartitionedIndex, times: int) -> dict[str, Any]:
    """Replace every entry some times over, in random order; return the figures after it."""
    began, names = time.process_time(), case.ids
    for turn in range(times):
        old, names = names, [f"{turn + 1:08x}{number:024x}" for number in range(len(case.ids))]
        for number in np.random.default_rng(turn).permutation(len(names)).tolist():
            index.remove([old[number]])
            index.add(case.partitions[case.scope_of[number]], names[number], case.rows[number])
            if number % 256 == 0:
                await asyncio.sleep(0)
        await eventually(lambda: not index.stats().due, "the graphs are built", within_s=ENOUGH_S)
    took_s = time.process_time() - began
    return {**await case.look_up(index, names), "cpu_ms_a_swap": round(took_s / times / len(names) * 1000, 3)}


def _rss_mb() -> float:
    return process(os.getpid())[1] or 0.0


def _size_mb(folder: Path) -> float:
    return round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20, 1)


def render(report: dict[str, Any]) -> str:
    """Return the tables."""
    machine, cases = report["machine"], report["cases"]
    lines = [
        f"{machine['cores']} cores, Python {machine['python']}; load average {machine['load_average'][0]:.1f} at the "
        f"start; {ASKED} lookups a case, one at a time; "
        f"{max(one['real'] for one in cases):,} of the vectors are real ones, those beyond are moved.",
        "",
        "| entries | scopes | vectors | lookup p50, p99 ms | recall at 1, at 4 | cosine lost | MB | bytes an entry "
        "| build, CPU s | snapshot s, MB, stall ms | start s, stall ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in cases:
        size, each = f"{one['mb']:.0f}", f"{one['mb'] * 2**20 / one['entries']:,.0f}"
        snapshot = f"{one['snapshot_s']:.2f}, {one['snapshot_mb']:.0f}, {one['snapshot_stall_ms']:.0f}"
        start = f"{one['start_s']:.2f}, {one['start_stall_ms']:.0f}"
        lines.append(
            _row(*_named(one), *_looked(one["lookup"]), size, each, f"{one['build_cpu_s']:.1f}", snapshot, start)
        )
    lines += [
        "",
        "After churn:",
        "",
        "| entries | scopes | vectors | lookup p50, p99 ms | recall at 1, at 4 | cosine lost | MB (before) "
        "| CPU ms a swap |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in cases:
        if after := one.get("after_churn"):
            size, swap = f"{after['mb']:.0f} ({one['mb']:.0f})", f"{after['cpu_ms_a_swap']:.2f}"
            lines.append(_row(*_named(one), *_looked(after), size, swap))
    return "\n".join(lines) + "\n"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _named(one: dict[str, Any]) -> list[str]:
    return [f"{one['entries']:,}", f"{one['scopes']:,}", one["vectors"]]


def _looked(figures: dict[str, float]) -> list[str]:
    return [
        f"{figures['p50_ms']:.3f}, {figures['p99_ms']:.3f}",
        f"{figures['recall_at_1']:.3f}, {figures['recall_at_4']:.3f}",
        f"{figures['lost']:.5f}",
    ]


def main(arguments: argparse.Namespace) -> None:
    """Run every case in a process of its own, or the one that was asked for."""
    if arguments.one:
        entries, scopes, kept = arguments.one
        case = Case(np.load(arguments.vectors), int(entries), int(scopes))
        gc.collect()
        gc.freeze()  # as a proxy does when it has started
        churn = arguments.churn if int(entries) <= arguments.churned else 0
        sys.stdout.write(json.dumps(uvloop.run(measure(case, kept, churn))) + "\n")
        return
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "load_average": os.getloadavg()}
    report: dict[str, Any] = {"machine": machine, "cases": []}
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "vectors.npy"
        np.save(file, vectors(arguments.data, max(arguments.entries) + ASKED))
        for entries, scopes, kept in itertools.product(arguments.entries, arguments.scopes, arguments.kept):
            if scopes > entries or (kept == "int8" and entries < CODED_FROM):
                continue
            sys.stderr.write(f"{entries:,} entries, {scopes:,} scopes, {kept}\n")
            command = [sys.executable, "-m", "tests.benchmarks.scale_index", "--vectors", str(file)]
            command += ["--churn", str(arguments.churn), "--churned", str(arguments.churned)]
            command += ["--one", str(entries), str(scopes), kept]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            report["cases"].append(json.loads(told.splitlines()[-1]))
            if arguments.out:
                arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(render(report))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scale_index", description=__doc__)
    parser.add_argument("--data", type=Path, help="directory of data sets with real questions (*.jsonl.gz)")
    parser.add_argument("--entries", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--scopes", type=int, nargs="+", default=[1, 100, 10_000])
    parser.add_argument("--kept", nargs="+", choices=("float32", "int8"), default=["float32", "int8"])
    parser.add_argument("--churn", type=int, default=3, help="how often every entry is replaced (default 3)")
    parser.add_argument("--churned", type=int, default=10_000, help="largest case with churn (default 10000)")
    parser.add_argument("--out", type=Path, help="raw figures, as JSON")
    parser.add_argument("--vectors", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    main(parser.parse_args())
