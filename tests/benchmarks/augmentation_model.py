"""The embedded small model as a benchmark asks it: a chat body in, an answer out, remembered on disk.

A body goes the way that the embedded model's own server takes it (`parse`, `generate`), in this process and one at a
time. What is kept on disk is the answer under the digest of the whole body: no prompt is written.
"""

from __future__ import annotations

import time
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from cacheproxy.augment.tokens import Tokenised
from cacheproxy.upstream.local import CONTEXT_TOKENS, MODEL_ID
from cacheproxy.upstream.local.convert import ensure_converted
from cacheproxy.upstream.local.generate import Finish, generate
from cacheproxy.upstream.local.request import parse
from cacheproxy.upstream.local.sampling import REPETITION_PENALTY

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cacheproxy.upstream.local.engine import Engine

VERSION = f"{MODEL_ID} greedy {REPETITION_PENALTY} 1"
"""Of whatever else than the body an answer depends on; another one asks everything again."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One answer. Seconds are of the processor: what else runs on the machine does not count."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    cpu_s: float
    wall_s: float


class Small(Protocol):
    """What answers."""

    def answer(self, body: Mapping[str, Any]) -> Answer:
        """Return the answer to a chat body."""
        ...


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    key: str
    answer: Answer


class Remembered:
    """The embedded model, asked once for each body. An interrupted run loses the answer that it was waiting for."""

    def __init__(self, data_dir: Path, cache: Path) -> None:
        self._folder = ensure_converted(data_dir)
        self._file = cache / "answers.jsonl"
        self._known = kept(self._file)
        self._engine: Engine | None = None
        self.counter = Tokenised.from_file(self._folder / "tokenizer.json")
        self.asked = 0
        """Answers that were not known."""

    def answer(self, body: Mapping[str, Any]) -> Answer:
        """Return the answer to a chat body. Raises InvalidRequest for one that the embedded model refuses."""
        raw = msgspec.json.encode(body, order="deterministic")
        key = sha256(VERSION.encode() + b"\n" + raw).hexdigest()
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._ask(raw)
            self.asked += 1
            with self._file.open("ab") as file:
                file.write(msgspec.json.encode(_Line(key=key, answer=found)) + b"\n")
        return found

    def _ask(self, raw: bytes) -> Answer:
        if self._engine is None:
            from cacheproxy.upstream.local.engine import Engine  # torch, which a run of known answers needs not

            self._engine = Engine(self._folder, context_tokens=CONTEXT_TOKENS)
        began, began_cpu, text = time.perf_counter(), time.process_time(), ""
        for event in generate(self._engine, parse(raw), lambda: False):
            if isinstance(event, Finish):
                return Answer(
                    text=text,
                    prompt_tokens=event.prompt_tokens,
                    completion_tokens=event.completion_tokens,
                    cpu_s=time.process_time() - began_cpu,
                    wall_s=time.perf_counter() - began,
                )
            text += event.text
        raise AssertionError("an answer that nobody cancels has an end")


def kept(file: Path) -> dict[str, Answer]:
    """Return what is kept. A line that was cut short is left out, and ended so that the next one is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    raw = file.read_bytes()
    if raw and not raw.endswith(b"\n"):
        with file.open("ab") as end:
            end.write(b"\n")
    known: dict[str, Answer] = {}
    for line in raw.splitlines():
        try:
            found = msgspec.json.decode(line, type=_Line)
        except msgspec.DecodeError:
            continue
        known[found.key] = found.answer
    return known
