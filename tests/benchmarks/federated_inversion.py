"""What a server can read out of one node's update: a table of docs/federated.md, and docs/benchmarks-inversion.json.

`python -m tests.benchmarks.federated_inversion --data DIR --out docs/benchmarks-inversion.json [--seeds 5]` trains the
app's own `task` on batches of pairs of public questions and tries to recover them from the head that leaves the node.

The attack is the span check of DAGER (arXiv 2405.15586) on a linear layer: its gradient is a sum of outer products with
its inputs, so the inputs lie near the span of its first right singular vectors. Adam, and two epochs, blur that and do
not hide it. The attacker knows the head that was sent, how many questions there were, and a list of public questions:
those nearest to the span are what it recovers. And the strongest attacker there can be knows everything but which of
two batches a node has (`guessed`).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from cacheproxy_federated.privacy import private
from cacheproxy_federated.task import Training, trained

from cacheproxy import settings
from cacheproxy.embed.open import open_encoder
from cacheproxy.evaluate.vectors import embed_texts
from tests.benchmarks.federated_data import INTENTS, Questions, stars
from tests.benchmarks.verification_data import rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cacheproxy_federated.pairs import Pairs
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]

ENCODERS = Path(__file__).parents[2] / ".cacheproxy" / "encoders"
BATCHES = (1, 2, 4, 8, 16, 64)
"""Pairs that a node trains on; a node of its own accord begins at 20."""
CLIP = 0.5
NOISES: tuple[float | None, ...] = (None, 0.0, 0.01, 0.05, 0.5, 2.0)
"""Of local differential privacy, in clipping norms; None is without, 0 is clipping alone."""
GUESSED = (0.25, 0.5, 1.0, 2.0, 4.0)
GUESSES = 200
_HOW = Training()
_POOL = 400
_WORD = re.compile(r"[a-z]{3,}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Public:
    """Questions that everybody knows, with unit vectors of shape (n, d)."""

    texts: Sequence[str]
    questions: Questions

    def numbers(self, pairs: Pairs) -> list[int]:
        """Return which of them are in some pairs."""
        places = {row.tobytes(): at for at, row in enumerate(self.questions.vectors)}
        return sorted({places[row.tobytes()] for side in (pairs.a, pairs.b) for row in side})

    def shared(self, true: Sequence[int], told: Sequence[int]) -> float:
        """Return the share of each question's words that one of those told has, a mean; 0 where none is told."""
        theirs = [set(_WORD.findall(self.texts[at].lower())) for at in told]
        words = [mine for at in true if (mine := set(_WORD.findall(self.texts[at].lower())))]
        return float(np.mean([max((len(mine & one) / len(mine) for one in theirs), default=0.0) for mine in words]))


def batch(public: Questions, size: int, seed: int) -> Pairs:
    """Return so many pairs, half of them right, of questions drawn at random."""
    random = np.random.default_rng(seed)
    dealt = stars(public.at(random.choice(len(public.intent), min(_POOL, len(public.intent)), replace=False)), random)
    right, wrong = np.flatnonzero(dealt.right), np.flatnonzero(~dealt.right)
    half = (size + 1) // 2
    return dealt.at(np.concatenate([right[:half], wrong[: size - half]]))


def sent(start: Matrix, pairs: Pairs, noise: float | None, seed: int) -> Matrix:
    """Return the head that leaves a node; the one it was sent where it declines to train."""
    try:
        made = trained(start, pairs, _HOW, seed)
    except ValueError:
        return start
    return made if noise is None else private(start, made, CLIP, noise, np.random.default_rng(seed))


def recovered(change: NDArray[np.float64], candidates: Matrix, many: int) -> list[int]:
    """Return the candidates nearest to the span of what a head was trained on; none of a head that did not change."""
    if not change.any():
        return []
    _, _, axes = np.linalg.svd(change)
    near = np.linalg.norm(candidates @ axes[:many].T, axis=1)
    return [int(at) for at in np.argsort(-near, kind="stable")[:many]]


def attacked(public: Public, size: int, noise: float | None, seed: int, nodes: int = 1) -> dict[str, float]:
    """Return the shares of questions and of words that are recovered from the mean of the heads of so many nodes.

    Of each question's words it is those in the one recovered candidate that has most of them; `chance` is the same with
    candidates drawn at random.
    """
    vectors = public.questions.vectors
    start = np.eye(vectors.shape[1], dtype=np.float32)
    batches = [batch(public.questions, size, seed * 1000 + at) for at in range(nodes)]
    made = np.mean([sent(start, one, noise, seed) for one in batches], axis=0, dtype=np.float64)
    true = sorted({at for one in batches for at in public.numbers(one)})
    told = recovered(made - start, vectors, len(true))
    drawn = np.random.default_rng(seed).choice(len(vectors), len(true), replace=False).tolist()
    return {
        "questions": len(set(told) & set(true)) / len(true),
        "words": public.shared(true, told),
        "chance": public.shared(true, drawn),
    }


def guessed(public: Public, size: int, noise: float, seed: int, guesses: int = GUESSES) -> float:
    """Return how often an attacker is right who knows all but which of two batches a node has trained on."""
    start = np.eye(public.questions.vectors.shape[1], dtype=np.float32)
    one, other = (
        sent(start, batch(public.questions, size, seed + at), 0.0, seed).astype(np.float64) for at in (0, 500)
    )
    random = np.random.default_rng(seed)
    right = 0
    for _ in range(guesses):
        seen = one + random.normal(0.0, noise * CLIP, one.shape)
        right += bool(np.linalg.norm(seen - one) < np.linalg.norm(seen - other))
    return right / guesses


def bound(noise: float) -> float:
    """Return how often the best attacker may be right of one release: by Gaussian differential privacy."""
    return NormalDist().cdf(1.0 / noise)


def measured(public: Public, seeds: int) -> dict[str, Any]:
    """Return all figures, each a mean over seeds."""
    cells: list[dict[str, Any]] = []
    for size, nodes in (*((size, 1) for size in BATCHES), (16, 20)):
        for noise in NOISES:
            found = [attacked(public, size, noise, seed, nodes) for seed in range(seeds)]
            told = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
            cells.append({"pairs": size, "nodes": nodes, "noise": noise, **told})
            sys.stdout.write(f"{cells[-1]}\n")
    guesses = [
        {"noise": noise, "right": float(np.mean([guessed(public, 16, noise, seed) for seed in range(seeds)]))}
        for noise in GUESSED
    ]
    return {
        "candidates": len(public.texts),
        "seeds": seeds,
        "clip": CLIP,
        "cells": cells,
        "guesses": [{**one, "bound": bound(one["noise"])} for one in guesses],
    }


def table(found: dict[str, Any]) -> str:
    """Return the figures as rows of Markdown: questions recovered, and words, by batch and noise."""
    names = ["no privacy" if noise is None else f"noise {noise:g}" if noise else "clipped" for noise in NOISES]
    lines = [f"| pairs | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for size, nodes in dict.fromkeys((one["pairs"], one["nodes"]) for one in found["cells"]):
        mine = [one for one in found["cells"] if (one["pairs"], one["nodes"]) == (size, nodes)]
        cells = [f"{one['questions']:.0%}; {one['words']:.0%} ({one['chance']:.0%})" for one in mine]
        lines.append(f"| {size}{f', mean of {nodes} nodes' if nodes > 1 else ''} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Measure, write the figures, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="directory of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--seeds", type=int, default=5, help="batches of each size")
    asked = parser.parse_args()
    intents = {row["text"]: row["intent"] for row in rows(asked.data / INTENTS["banking77"])}
    texts, names = sorted(intents), sorted(set(intents.values()))
    encoder = open_encoder(settings.Encoder(device="cpu", cache_dir=str(ENCODERS)), ENCODERS.parent)
    seen = embed_texts(texts, encoder, ENCODERS.parent / "vectors")
    questions = Questions(
        vectors=np.stack([seen[text].vector for text in texts]),
        intent=np.array([names.index(intents[text]) for text in texts], dtype=np.int64),
    )
    found = measured(Public(texts=texts, questions=questions), asked.seeds)
    asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{table(found)}\n{json.dumps(found['guesses'])}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
