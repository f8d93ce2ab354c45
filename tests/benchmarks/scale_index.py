"""How the index grows: `python -m tests.benchmarks.scale_index --data DIR --out FILE`.

Entries of 1,000 to 100,000 (a million where asked) over 1, 100 and 10,000 scopes: time of a lookup, memory, time to
build, to write a snapshot and to start from it, and recall at 1 and 4 against exact search; then again after churn, in
which every entry is replaced three times over. Vectors are those of real questions, of every `*.jsonl.gz` in DIR;
where more entries are asked for than there are questions, the rest are real vectors moved a little, which is told.
Each case runs in a process of its own, so that memory is its own.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
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


def texts(data: Path) -> Iterator[str]:
    """Yield every question of every data set in a directory."""
    for file in sorted(data.glob("*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                yield from (row[name] for name in FIELDS if isinstance(row.get(name), str) and row[name].strip())


def vectors(data: Path, most: int) -> NDArray[np.float32]:
    """Return vectors of up to `most` distinct questions in a random order, embedded once and kept."""
    distinct = sorted(dict.fromkeys(text[:400] for text in texts(data)))
    chosen = [distinct[place] for place in np.random.default_rng(SEED).permutation(len(distinct))[:most]]
    encoder = open_encoder(Encoder(device="cpu", cache_dir=str(HOME / "encoders")), HOME)
    known = embed_texts(chosen, encoder, HOME / "vectors")
    return np.stack([known[text].vector for text in chosen])


def grown(real: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Return `count` unit vectors: the real ones, and where they do not suffice, real ones moved a little."""
    source = np.random.default_rng(SEED)
    found = [real[:count]]
    while sum(map(len, found)) < count:
        noise = source.standard_normal(real.shape).astype(np.float32)
        moved = real + MOVED * noise / np.linalg.norm(noise, axis=1, keepdims=True)
        found.append(moved / np.linalg.norm(moved, axis=1, keepdims=True))
    return np.concatenate(found)[:count]


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
        """Add all entries under these names; return seconds until the graphs hold them."""
        began = time.perf_counter()
        for number, name in enumerate(names):
            index.add(self.partitions[self.scope_of[number]], name, self.rows[number])
            if number % 256 == 0:
                await asyncio.sleep(0)
        await eventually(lambda: not index.stats().due, "the graphs are built", within_s=ENOUGH_S)
        return time.perf_counter() - began

    async def look_up(self, index: PartitionedIndex, names: list[str]) -> dict[str, float]:
        """Return how long lookups take, and how much of what exact search finds they find."""
        took, first, of_four, wanted = [], 0, 0, 0
        by_scope = {scope: np.flatnonzero(self.scope_of == scope) for scope in np.unique(self.scope_of)[:ASKED]}
        for number, vector in enumerate(self.asked):
            scope = list(by_scope)[number % len(by_scope)]
            places = by_scope[scope]
            exact = places[np.argsort(-(self.rows[places] @ vector))[:4]]
            began = time.perf_counter()
            found = await index.search(self.partitions[scope], vector, 4)
            took.append((time.perf_counter() - began) * 1000)
            got = [one.entry_id for one in found]
            first += got[:1] == [names[exact[0]]]
            of_four += len({names[place] for place in exact} & set(got))
            wanted += len(exact)
        took.sort()
        return {
            "p50_ms": round(percentile(took, 0.5), 4),
            "p99_ms": round(percentile(took, 0.99), 4),
            "recall_at_1": round(first / len(self.asked), 4),
            "recall_at_4": round(of_four / wanted, 4),
        }

    async def stored(self, names: list[str]) -> AsyncIterator[Row]:
        """Yield the rows as the store does at a start."""
        for number, name in enumerate(names):
            yield self.partitions[self.scope_of[number]], name, self.rows[number]


async def measure(case: Case, churn: int) -> dict[str, Any]:
    """Return the figures of one case."""
    entries, scopes, ids = len(case.ids), len(case.partitions), case.ids
    found: dict[str, Any] = {"entries": entries, "scopes": scopes, "real_vectors": case.real}
    before_mb = _rss_mb()
    with tempfile.TemporaryDirectory() as scratch:
        async with PartitionedIndex(Index(), dim=case.dim, epoch=EPOCH) as index:
            found["built_s"] = round(await case.fill(index, ids), 2)
            found |= {"graphs": index.stats().graphs, "mb": round(_rss_mb() - before_mb, 1)}
            found["lookup"] = await case.look_up(index, ids)
            began = time.perf_counter()
            await index.save(Path(scratch))
            found["snapshot_s"] = round(time.perf_counter() - began, 2)
            found["snapshot_mb"] = _size_mb(Path(scratch))
        async with PartitionedIndex(Index(), dim=case.dim, epoch=EPOCH) as again:
            began = time.perf_counter()
            await again.restore(Path(scratch), case.stored(ids))
            found["start_s"] = round(time.perf_counter() - began, 2)
            await eventually(lambda: not again.stats().due, "the graphs are built", within_s=ENOUGH_S)
            if churn:
                began = time.perf_counter()
                names = ids
                for turn in range(churn):
                    names = [f"{turn + 1:08x}{number:024x}" for number in range(entries)]
                    old = ids if turn == 0 else [f"{turn:08x}{number:024x}" for number in range(entries)]
                    for number in np.random.default_rng(turn).permutation(entries):
                        again.remove([old[number]])
                        again.add(case.partitions[case.scope_of[number]], names[number], case.rows[number])
                        if number % 256 == 0:
                            await asyncio.sleep(0)
                    await eventually(lambda: not again.stats().due, "the graphs are built", within_s=ENOUGH_S)
                found["churn_s"] = round(time.perf_counter() - began, 2)
                found["after_churn"] = await case.look_up(again, names)
                found["after_churn"]["mb"] = round(_rss_mb() - before_mb, 1)
    return found


def _rss_mb() -> float:
    return process(os.getpid())[1] or 0.0


def _size_mb(folder: Path) -> float:
    return round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20, 1)


def render(cases: list[dict[str, Any]]) -> str:
    """Return the table."""
    lines = [
        "| entries | scopes | lookup p50, p99 ms | recall at 1, at 4 | MB | built s | snapshot s, MB | start s "
        "| after churn: p50, p99 ms | recall at 1, at 4 | MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in cases:
        look, after = one["lookup"], one.get("after_churn")
        cells = [f"{one['entries']:,}", f"{one['scopes']:,}", f"{look['p50_ms']:.3f}, {look['p99_ms']:.3f}"]
        cells += [f"{look['recall_at_1']:.3f}, {look['recall_at_4']:.3f}", f"{one['mb']:.0f}", f"{one['built_s']:.1f}"]
        cells += [f"{one['snapshot_s']:.1f}, {one['snapshot_mb']:.0f}", f"{one['start_s']:.1f}"]
        cells += ([f"{after['p50_ms']:.3f}, {after['p99_ms']:.3f}"] if after else ["-"]) + (
            [f"{after['recall_at_1']:.3f}, {after['recall_at_4']:.3f}", f"{after['mb']:.0f}"] if after else ["-", "-"]
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: argparse.Namespace) -> None:
    """Run every case in a process of its own, or the one that was asked for."""
    if arguments.one:
        real = np.load(arguments.vectors, mmap_mode="r")
        case = Case(np.asarray(real), *arguments.one)
        sys.stdout.write(json.dumps(uvloop.run(measure(case, arguments.churn))) + "\n")
        return
    cases = []
    with tempfile.TemporaryDirectory() as scratch:
        kept = Path(scratch) / "vectors.npy"
        np.save(kept, vectors(arguments.data, max(arguments.entries) + ASKED))
        for entries, scopes in itertools.product(arguments.entries, arguments.scopes):
            if scopes > entries:
                continue
            sys.stderr.write(f"{entries:,} entries, {scopes:,} scopes\n")
            command = [sys.executable, "-m", "tests.benchmarks.scale_index", "--vectors", str(kept)]
            command += ["--churn", str(arguments.churn), "--one", str(entries), str(scopes)]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            cases.append(json.loads(told.splitlines()[-1]))
            if arguments.out:
                arguments.out.write_text(json.dumps(cases, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(render(cases))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scale_index", description=__doc__)
    parser.add_argument("--data", type=Path, help="directory of data sets with real questions (*.jsonl.gz)")
    parser.add_argument("--entries", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="1000000 takes hours")
    parser.add_argument("--scopes", type=int, nargs="+", default=[1, 100, 10_000])
    parser.add_argument("--churn", type=int, default=3, help="how often every entry is replaced (default 3)")
    parser.add_argument("--out", type=Path, help="raw figures, as JSON")
    parser.add_argument("--vectors", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one", type=int, nargs=2, help=argparse.SUPPRESS)
    main(parser.parse_args())
