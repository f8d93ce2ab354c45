"""Questions with known answers for replays, from public data sets, and how often which of them is asked.

Read from a directory that is named; no text is copied into the project or into a report.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.random import Generator
    from numpy.typing import NDArray

VERBATIM = 0.3
"""Share of the times when a question is asked in the words it is mostly asked in; else in any of its words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer and every wording of the questions it is right for."""

    answer_id: str
    texts: tuple[str, ...]


def rows(data: Path, name: str) -> list[dict[str, Any]]:
    """Return every row of a data set."""
    with gzip.open(data / f"{name}_dev.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def intents(data: Path, name: str) -> list[Answer]:
    """Return intents as answers: two questions of one intent may share one. What belongs to no intent is left out."""
    found: dict[str, list[str]] = {}
    for row in rows(data, name):
        if row["intent"] != "oos":
            found.setdefault(row["intent"], []).append(row["text"])
    return _answers(name, found)


def duplicates(data: Path) -> list[Answer]:
    """Return Quora questions, joined where people said that they are duplicates; the others stand alone.

    Pairs that nobody labelled count as different answers although some are not: false hits are an upper bound.
    """
    parents: dict[str, str] = {}

    def root(text: str) -> str:
        while parents.setdefault(text, text) != text:
            parents[text] = parents[parents[text]]
            text = parents[text]
        return text

    for row in rows(data, "qqp"):
        a, b = root(row["a"]), root(row["b"])
        if row["label"]:
            parents[a] = b
    found: dict[str, list[str]] = {}
    for text in parents:
        found.setdefault(root(text), []).append(text)
    return _answers("qqp", found)


def singles(name: str, texts: Iterable[str]) -> list[Answer]:
    """Return questions of which each has an answer of its own."""
    return [Answer(answer_id=f"{name}/{number}", texts=(text,)) for number, text in enumerate(dict.fromkeys(texts))]


def _answers(name: str, found: dict[str, list[str]]) -> list[Answer]:
    return [
        Answer(answer_id=f"{name}/{number}", texts=tuple(sorted(texts)))
        for number, (_, texts) in enumerate(sorted(found.items()))
    ]


class Asking:
    """Draws questions: answers by Zipf's law over a random order of them, then a wording of the answer drawn."""

    def __init__(self, answers: list[Answer], exponent: float, source: Generator) -> None:
        self._answers = [answers[place] for place in source.permutation(len(answers))]
        weights = 1.0 / np.arange(1, len(answers) + 1) ** exponent
        self._ends: NDArray[np.float64] = np.cumsum(weights / weights.sum())
        self._mostly = [int(source.integers(len(answer.texts))) for answer in self._answers]
        self._source = source

    def draw(self) -> tuple[Answer, str]:
        """Return an answer and the question that is asked for it."""
        place = min(int(np.searchsorted(self._ends, self._source.random())), len(self._answers) - 1)
        answer = self._answers[place]
        if self._source.random() < VERBATIM:
            return answer, answer.texts[self._mostly[place]]
        return answer, answer.texts[int(self._source.integers(len(answer.texts)))]
