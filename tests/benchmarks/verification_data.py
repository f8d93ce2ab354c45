"""What verified hits are measured on: adversarial pairs, question pairs, conversations, and a stream made of pairs.

All of it is kept from training and from choosing. `python -m tests.benchmarks.verification_data --data DIR --out FILE`
writes the question pairs that may be trained on.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from cacheproxy.evaluate.pairfile import LabelledPair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    Embed = Callable[[Sequence[str]], NDArray[np.float32]]

QQP, CONVERSATIONS = "qqp_dev.jsonl.gz", "context_pairs_dev.jsonl.gz"
ADVERSARIAL = Path(__file__).parent / "data" / "adversarial.jsonl"
KEPT_BACK = 85
"""Of a hundred clusters of question pairs, those from here on are neither trained nor calibrated on."""
DUPLICATES, NOVEL = 300, 700
STORED = DUPLICATES + NOVEL
HARD = 0.5
"""With it the best plain cosine has about the F0.5 (.66) of the study whose figures stand beside ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One line of a stream."""

    text: str
    answer_id: str


def rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file, plain or gzip."""
    raw = file.read_bytes()
    yield from map(json.loads, (gzip.decompress(raw) if file.suffix == ".gz" else raw).splitlines())


def is_kept_back(cluster: str) -> bool:
    """Whether a cluster of question pairs is for reporting."""
    return int(sha256(cluster.encode()).hexdigest(), 16) % 100 >= KEPT_BACK


def reported(text: str) -> bool:
    """Whether what is told apart by a text is in the half that is reported: by the parity of its digest."""
    return bool(sha256(text.encode()).digest()[-1] & 1)


def adversarial(file: Path) -> list[LabelledPair]:
    """Return the reported half of the adversarial pairs; their kind is their category."""
    return [
        LabelledPair(a=row["a"], b=row["b"], label=bool(row["label"]), category=row.get("kind") or "")
        for row in rows(file)
        if reported(row["a"])
    ]


def question_pairs(directory: Path) -> list[LabelledPair]:
    """Return the question pairs of clusters that are kept back."""
    return [
        LabelledPair(a=row["a"], b=row["b"], label=bool(row["label"]))
        for row in rows(directory / QQP)
        if is_kept_back(row["cluster"])
    ]


def conversations(directory: Path) -> list[dict[str, Any]]:
    """Return the reported half of the pairs of conversations, by their first topic."""
    return [row for row in rows(directory / CONVERSATIONS) if reported(row["topic_a"])]


def stream(directory: Path, embed: Embed, seed: int = 0) -> list[Question]:
    """Return a thousand questions to be stored, then 300 duplicates of them among 700 hard novel ones.

    The novel ones are drawn from those that people found to be another question than a stored one that they are near
    to (cosine `HARD` or more): the nearest of all are, for the most part, those that people labelled wrongly. No two
    stored questions are of one cluster.
    """
    by_cluster: dict[str, list[dict[str, Any]]] = {}
    for row in rows(directory / QQP):
        if is_kept_back(row["cluster"]):
            by_cluster.setdefault(row["cluster"], []).append(row)
    random = Random(seed)
    answers = _answers(row for found in by_cluster.values() for row in found)
    names = sorted(by_cluster)
    random.shuffle(names)
    same = [name for name in names if any(row["label"] for row in by_cluster[name])][:DUPLICATES]
    pairs = [next(row for row in by_cluster[name] if row["label"]) for name in same]
    other = [_hard(by_cluster[name], answers) for name in names if name not in set(same)]
    apart = _near([row for row in other if row is not None], embed)
    stored = [row["a"] for row in (*pairs, *apart)]
    asked = [row["b"] for row in (*pairs, *apart)]
    random.shuffle(stored)
    random.shuffle(asked)
    return [Question(text=text, answer_id=answers[text]) for text in (*stored, *asked)]


def _answers(found: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Return an answer for each text: one for all that people found to be the same question, directly or not."""
    parent: dict[str, str] = {}

    def root(text: str) -> str:
        parent.setdefault(text, text)
        while parent[text] != text:
            text = parent[text]
        return text

    for row in found:
        one, other = root(row["a"]), root(row["b"])
        if row["label"]:
            parent[one] = other
    return {text: sha256(root(text).encode()).hexdigest()[:16] for text in parent}


def _hard(found: Sequence[dict[str, Any]], answers: dict[str, str]) -> dict[str, Any] | None:
    """Return a pair of different questions of a cluster, if it has one."""
    return next((row for row in found if not row["label"] and answers[row["a"]] != answers[row["b"]]), None)


def _near(pairs: Sequence[dict[str, Any]], embed: Embed) -> list[dict[str, Any]]:
    """Return the first so many pairs that are near enough to each other."""
    one, other = embed([row["a"] for row in pairs]), embed([row["b"] for row in pairs])
    near = np.flatnonzero(np.sum(one * other, axis=1) >= HARD)[:NOVEL]
    return [pairs[at] for at in near]


def main() -> int:
    """Write the question pairs that may be trained on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="directory of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    asked = parser.parse_args()
    kept = [row for row in rows(asked.data / QQP) if not is_kept_back(row["cluster"])]
    with asked.out.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({key: row[key] for key in ("a", "b", "label")}) + "\n" for row in kept)
    sys.stderr.write(f"{len(kept):,} pairs\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
