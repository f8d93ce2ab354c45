"""What choosing who answers costs: `python -m tests.benchmarks.augment_overhead --entries 100000`.

The real index (384 numbers a vector, clustered, one partition that holds them all), stores and rules; questions lie
near kept ones, one at a time, and nothing is sent. `cpu` is of the event loop's thread alone. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from cacheproxy import settings
from cacheproxy.augmenting import Augmenting
from cacheproxy.examples import Examples
from cacheproxy.index.partitioned import PartitionedIndex
from cacheproxy.model import Embedding, Entry, Partition, Reply, entry_id
from cacheproxy.store.memory import MemoryStore
from cacheproxy.store.sqlite import SqliteStore
from tests.benchmarks.scale import vectors
from tests.support.augmented import TENANT, Line
from tests.support.encoders import HashEncoder
from tests.support.openai_wire import completion
from tests.support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from cacheproxy.journey import Journey
    from cacheproxy.ports import EntryStore

DIM, BATCH, WARM, ASIDE = 384, 500, 200, 0.2
WORDS = ("how", "can", "we", "do", "this", "with", "that", "if", "it", "is", "not", "yet", "done", "while", "wait")


def sentence(random: Random, words: int) -> str:
    """Return so many words."""
    return " ".join(random.choice(WORDS) for _ in range(words))


def entries(line: Line, found: NDArray[np.float32]) -> list[Entry]:
    """Return kept answers: questions of 12 words, answers of 80."""
    random, now_s = Random(1), line.clock.now()
    partition = Partition(
        category="default", compatibility=line.query("x").compatibility, epoch=HashEncoder.fingerprint
    )
    return [
        Entry(
            id=entry_id(number.to_bytes(32, "little")),
            fingerprint=number.to_bytes(32, "little"),
            partition=partition,
            tenant=TENANT,
            text=f"{sentence(random, 12)} {number}",
            reply=Reply(body=completion(sentence(random, 80)), source="body"),
            created_s=now_s,
            expires_s=now_s + 86_400.0,
            fill_ms=1.0,
            vector=vector,
        )
        for number, vector in enumerate(found)
    ]


def asked(line: Line, near: NDArray[np.float32], count: int, *, repeat: bool) -> list[Journey]:
    """Return questions that lie near kept ones: of all of them, or of two hundred again and again."""
    random, noise = Random(2), np.random.default_rng(3)
    journeys = []
    for _ in range(count):
        at = random.randrange(200 if repeat else len(near))
        vector = near[at] + ASIDE * noise.standard_normal(DIM) / np.sqrt(DIM)
        journey = line.journey(f"{sentence(random, 12)}?")
        journey.placed = Embedding(vector=(vector / np.linalg.norm(vector)).astype(np.float32))
        journeys.append(journey)
    return journeys


async def timed(augmenting: Augmenting, journeys: Sequence[Journey]) -> dict[str, Any]:
    """Return what each choice took, and how many examples there were."""
    took, cpu, examples = [], [], []
    for journey in journeys:
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        attempt = await augmenting.attempt(journey)
        took.append(time.perf_counter() - wall_s)
        cpu.append(time.thread_time() - cpu_s)
        examples.append(0 if attempt is None else len(attempt.selection.examples))
        await asyncio.sleep(0)
    return {
        "questions": len(took),
        "examples": round(float(np.mean(examples[WARM:])), 2),
        "p50_ms": _ms(took, 50),
        "p99_ms": _ms(took, 99),
        "cpu_p50_ms": _ms(cpu, 50),
        "cpu_p99_ms": _ms(cpu, 99),
    }


def _ms(seconds: Sequence[float], percent: float) -> float:
    return round(1000 * float(np.percentile(seconds[WARM:], percent)), 4)


async def measure(count: int, questions: int, folder: Path) -> dict[str, Any]:
    """Fill both stores and the index, and time choices by each."""
    found = vectors(count, DIM)
    async with Line(folder) as line:
        kept = entries(line, found)
        index = PartitionedIndex(settings.Index(), dim=DIM, epoch=HashEncoder.fingerprint)
        memory = MemoryStore(settings.Store(), line.clock)
        sqlite = SqliteStore(folder / "entries.sqlite3", settings.Store(), line.clock)
        async with index, memory, sqlite:
            for start in range(0, count, BATCH):
                part = kept[start : start + BATCH]
                await asyncio.gather(*(store.put(one, store.fence) for one in part for store in (memory, sqlite)))
                for one in part:
                    if one.vector is not None:
                        index.add(one.partition, one.id, one.vector)
                await asyncio.sleep(0)
            await eventually(lambda: not index.stats().due, "the graph is built", within_s=3600)
            made: dict[str, Any] = {"entries": count, "dim": DIM}

            def choosing(store: EntryStore) -> Augmenting:
                parts = replace(line.parts, store=store, index=index)
                return Augmenting(
                    parts, line.small, Examples(parts, line.small, line.state), line.state, Random(4), checked=True
                )

            for name, store, repeat in (
                ("memory", memory, False),
                ("sqlite, of few that are in memory", sqlite, True),
                ("sqlite, of all", sqlite, False),
            ):
                made[name] = await timed(choosing(store), asked(line, found, questions, repeat=repeat))
            off = asked(line, found, questions, repeat=True)
            for journey in off:
                journey.plan = replace(journey.plan, augment=None)
            made["off"] = await timed(choosing(memory), off)
            return made


def main() -> None:
    """Measure, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--questions", type=int, default=2_000)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = asyncio.run(measure(told.entries, told.questions, Path(folder)))
    made["load_average"] = [round(one, 2) for one in os.getloadavg()]
    sys.stdout.write(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()
