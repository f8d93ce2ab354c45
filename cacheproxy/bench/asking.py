"""Who asks what: a mix of hits and misses made to measure, or questions repeated as people repeat them.

Both are deterministic by their seed. What was meant is told with each request; what came of it, the proxy tells.
"""

from __future__ import annotations

import itertools
import json
import random
import zlib
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from cacheproxy.bench.questions import rewordings, unheard
from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cacheproxy.bench.questions import Question

KINDS = ("exact", "semantic", "miss")
MODEL = "gpt-4o-mini"
TOKENS = "x-bench-tokens"
"""Header by which a request tells the scripted backend how long its answer is to be; no other backend is sent it."""
_NEVER_SIMILAR = {"x-cacheproxy-threshold": "1"}
"""Forbids a hit by similarity: the lookup is done in full and always ends as a miss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request: what it is meant to be ("" where that is left to chance), its text and form."""

    meant: str
    text: str
    stream: bool = False
    headers: Mapping[str, str] | None = None


class Asking(Protocol):
    """Decides what each request asks."""

    def first(self) -> Sequence[Ask]:
        """Return what is asked before anything is measured, so that it is kept."""
        ...

    def next(self, key: str = "") -> Ask:
        """Return the next request; those of one `key` ask the same."""
        ...


def read_mix(told: str) -> dict[str, float]:
    """Return shares of kinds, adding up to 1, of a text such as "exact=70,semantic=20,miss=10". Raises ConfigError."""
    shares: dict[str, float] = {}
    for part in told.split(","):
        kind, _, share = part.strip().partition("=")
        try:
            shares[kind] = float(share)
        except ValueError:
            shares[kind] = -1.0
        if kind not in KINDS or not 0 <= shares[kind] < float("inf"):
            raise ConfigError(f"--mix: {part.strip()!r} is no share of {', '.join(KINDS)}; write exact=70,miss=30")
    total = sum(shares.values())
    if total <= 0:
        raise ConfigError("--mix: all shares are 0")
    return {kind: share / total for kind, share in shares.items()}


class Mixed:
    """Kinds drawn by shares. What is kept is asked again word by word, or reworded; a miss is what nobody asked yet."""

    def __init__(self, questions: Sequence[Question], mix: Mapping[str, float], *, stream: float, seed: int) -> None:
        self._questions = questions
        self._kinds, self._weights = list(mix), list(mix.values())
        self._stream = stream
        self._source = random.Random(seed)
        self._reworded = itertools.cycle(rewordings(questions, seed))
        self._new = unheard(seed)

    def first(self) -> list[Ask]:
        """Return every question in its own words."""
        return [Ask(meant="fill", text=question.text) for question in self._questions]

    def next(self, key: str = "") -> Ask:
        """Return the next request."""
        [meant] = self._source.choices(self._kinds, self._weights)
        stream = self._source.random() < self._stream
        match meant:
            case "exact":
                return Ask(meant=meant, text=self._source.choice(self._questions).text, stream=stream)
            case "semantic":
                return Ask(meant=meant, text=next(self._reworded), stream=stream)
            case _:
                return Ask(meant=meant, text=next(self._new), stream=stream, headers=_NEVER_SIMILAR)


class Repeating:
    """Questions repeated by Zipf's law, in their own words or another wording; nothing is asked beforehand.

    The k-th question of a random order is asked in proportion to 1 / k ** `exponent`; a share of `verbatim` in its own
    words, else in any of its wordings. A key (of a trace) always asks the same question in the same words.
    """

    def __init__(
        self, questions: Sequence[Question], *, exponent: float, verbatim: float, stream: float, seed: int
    ) -> None:
        self._source = random.Random(seed)
        self._questions = self._source.sample(list(questions), len(questions))
        weights = [1 / rank**exponent for rank in range(1, len(questions) + 1)]
        self._ends = [end / sum(weights) for end in itertools.accumulate(weights)]
        self._verbatim = verbatim
        self._stream = stream

    def first(self) -> list[Ask]:
        """Return nothing: what is kept is what was asked."""
        return []

    def next(self, key: str = "") -> Ask:
        """Return the next request."""
        drawn, wording, stream = self._source.random(), self._source.random(), self._source.random() < self._stream
        if key:
            drawn, wording = zlib.crc32(key.encode()) / 2**32, 0.0
        question = self._questions[min(bisect_left(self._ends, drawn), len(self._questions) - 1)]
        text = question.text
        if wording >= self._verbatim and question.wordings:
            place = int((wording - self._verbatim) / (1 - self._verbatim) * len(question.wordings))
            text = question.wordings[min(place, len(question.wordings) - 1)]
        return Ask(meant="", text=text, stream=stream)


def encode(ask: Ask, *, host: str, path: str, key: str, tokens_out: int = 0, more: Mapping[str, str]) -> bytes:
    """Return a whole HTTP request for a chat completion; a scripted backend answers with `tokens_out` words."""
    message = {"role": "user", "content": ask.text}
    body = json.dumps({"model": MODEL, "messages": [message], "stream": ask.stream}).encode()
    headers = {
        "host": host,
        "content-type": "application/json",
        "authorization": f"Bearer {key}",
        **(ask.headers or {}),
        **more,
        **({TOKENS: str(tokens_out)} if tokens_out else {}),
        "content-length": str(len(body)),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body
