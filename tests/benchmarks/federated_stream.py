"""The full cache on a stream: what is looked at by a head, what is served by the verifier, against plain cosine.

A replay in one loop, not through the proxy's line: a question is compared with all that is kept, the best candidates
may be served, and what is not served is kept. The decision is the line's (`judging.py`): a head's similarities choose
what is looked at, the verifier judges by the encoder's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cacheproxy.evaluate.progress import progress
from cacheproxy.policy.calibrate import ratio, wilson

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from cacheproxy.evaluate.verdicts import Scorer
    from tests.benchmarks.verification_data import Question

    Vectors = NDArray[np.float32]
    Decide = Callable[[int, NDArray[np.int64], NDArray[np.float32]], int | None]
    """Which of the kept questions answers question number n: (n, candidates, their cosines), best first; None: none."""

CANDIDATES = 4
GPTCACHE = 0.7
"""GPTCache's default `similarity_threshold`; other caches ship 0.8."""
COMMON = 0.8
TUNED = tuple(round(0.60 + 0.01 * step, 2) for step in range(40))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stream:
    """Questions in their order; the encoder's vectors of them, shape (n, d)."""

    questions: Sequence[Question]
    vectors: Vectors


def at_least(threshold: float) -> Decide:
    """Serve the nearest, from a cosine on."""
    return lambda asked, kept, near: int(kept[0]) if near[0] >= threshold else None


def verified(stream: Stream, scorer: Scorer, from_: float, probability: float, base: Decide | None = None) -> Decide:
    """Serve the first of the most probable candidates from a cosine on that the verifier lets pass."""

    def decide(asked: int, kept: NDArray[np.int64], near: NDArray[np.float32]) -> int | None:
        looked = [int(one) for one, cosine in zip(kept, near, strict=True) if cosine >= from_]
        if not looked:
            return None
        plain = stream.vectors[looked] @ stream.vectors[asked]
        text = stream.questions[asked].text
        said = scorer.verify(
            text, [(stream.questions[one].text, float(c)) for one, c in zip(looked, plain, strict=True)]
        )
        able = [
            (told.probability, -rank, one)
            for rank, (one, told) in enumerate(zip(looked, said, strict=True))
            if not told.veto and told.probability >= probability
        ]
        return max(able)[2] if able else None

    return decide


def replay(stream: Stream, seen: Vectors, decide: Decide, label: str) -> dict[str, Any]:
    """Ask every question in order and return the scores; similarities are of `seen`, shape (n, k)."""
    n = len(stream.questions)
    kept: list[int] = []
    answers: set[str] = set()
    right = wrong = missed = 0
    with progress(label, n) as advance:
        for asked, question in enumerate(stream.questions):
            found = None
            if kept:
                near = seen[kept] @ seen[asked]
                best = np.argsort(-near, kind="stable")[:CANDIDATES]
                found = decide(asked, np.array(kept)[best], near[best])
            if found is None:
                missed += question.answer_id in answers
                answers.add(question.answer_id)
                kept.append(asked)
            elif stream.questions[found].answer_id == question.answer_id:
                right += 1
            else:
                wrong += 1
            advance(1)
    return scored(right, wrong, missed, n)


def scored(right: int, wrong: int, missed: int, n: int) -> dict[str, Any]:
    """Return precision, recall, F1, F0.5 and hit rate. `missed` questions had their answer kept."""
    return {
        "n": n,
        "hits": right + wrong,
        "precision": ratio(right, right + wrong) or 0.0,
        "precision_interval": wilson(right, right + wrong),
        "recall": ratio(right, right + missed) or 0.0,
        "f1": ratio(2 * right, 2 * right + missed + wrong) or 0.0,
        "f05": ratio(1.25 * right, 1.25 * right + 0.25 * missed + wrong) or 0.0,
        "hit_rate": (right + wrong) / n,
    }
