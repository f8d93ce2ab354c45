"""Streams for the error budget benchmark: questions, the entry each one is near to, and whether its answer is right.

Made of question pairs (QQP) and of rewordings and traps of stored questions: a cache is asked for near repeats more
than for what is hard. Popular questions are reworded often, as in traffic.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from hashlib import sha256
from random import Random
from typing import TYPE_CHECKING

from cacheproxy.training.generate import Generator

if TYPE_CHECKING:
    from pathlib import Path

_POPULAR = 400
"""Stored questions that are reworded more than once, and by how much the first of them."""
_MOST = 40


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, the stored one that it is near to, and whether that one's answer is right."""

    stored: str
    text: str
    right: bool
    kind: str


def halves(directory: Path, seed: int = 0) -> tuple[list[Asked], list[Asked]]:
    """Return the stream of each half, in no order; components of pairs are in one half each."""
    rows: tuple[list[Asked], list[Asked]] = ([], [])
    with gzip.open(directory / "qqp_dev.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            half = sha256(row["cluster"].encode()).digest()[0] & 1
            rows[half].append(Asked(row["a"], row["b"], bool(row["label"]), "pair"))
    return made(rows[0], Random(seed)), made(rows[1], Random(seed + 1))


def made(pairs: list[Asked], random: Random) -> list[Asked]:
    """Return pairs with as many rewordings of their stored questions, and a trap for every tenth."""
    stored = sorted({pair.stored for pair in pairs})
    generator = Generator(stored, lambda word: (), random)
    asked = {(pair.stored, pair.text): pair for pair in pairs}
    random.shuffle(stored)
    for place, text in enumerate(stored):
        times = max(1, _MOST * 20 // (place + 20)) if place < _POPULAR else 1
        seen = text
        for _ in range(times):
            reworded = generator.rewording(seen)
            if reworded is not None and len(reworded.other) < 2 * len(text) + 40:
                asked.setdefault((text, reworded.other), Asked(text, reworded.other, True, "reworded"))
                seen = reworded.other if random.random() < 0.5 else text
        if place % 10 == 0 and (trap := generator.trap(text)) is not None:
            asked.setdefault((text, trap.other), Asked(text, trap.other, False, "trap"))
    return list(asked.values())
