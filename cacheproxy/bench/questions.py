"""What is asked: questions with their wordings, shipped or from a file; more wordings and questions made of them."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_SHIPPED = Path(__file__).parents[1] / "demo_questions.toml"
_ASKINGS = Path(__file__).parents[1] / "training" / "data" / "sets.jsonl.gz"
_OPENINGS = ("", "hi, ", "hello, ", "hey, ", "please, ", "quickly: ", "so, ", "ok, ", "well, ", "um, ")
_ENDINGS = (
    "",
    " ?",
    "??",
    " please?",
    ", please?",
    " thanks",
    "? thanks",
    "? thank you",
    "...",
    "? :)",
    "!",
    "?!",
    " pls?",
)
_SPACES = (" ", "  ")
_WORDS = (
    "tower",
    "engine",
    "river",
    "copper",
    "ledger",
    "violin",
    "harbour",
    "meadow",
    "circuit",
    "glacier",
    "lantern",
    "orchard",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question in its own words, and other wordings of it that one answer serves."""

    text: str
    wordings: tuple[str, ...] = ()


def shipped() -> list[Question]:
    """Return the questions of `cacheproxy demo`, each with one other wording."""
    topics = tomllib.loads(_SHIPPED.read_text(encoding="utf-8"))["topics"]
    return [Question(text=topic["question"], wordings=(topic["paraphrase"],)) for topic in topics]


def askings() -> list[Question]:
    """Return the sets of askings that `verifier train` ships: one thing asked in other words, as people would.

    The shipped verifier has seen them, so what share of them hits says nothing of quality.
    """
    lines = gzip.decompress(_ASKINGS.read_bytes()).splitlines()
    sets = [json.loads(line)["same"] for line in lines]
    return [Question(text=one[0], wordings=tuple(one[1:])) for one in sets if one]


def read_questions(file: Path) -> list[Question]:
    """Return the questions of a file, one JSON object a line, gzipped or not. Raises ConfigError, naming the line.

    `{"text": ..., "wordings": [...]}`; lines of `{"text": ..., "answer_id": ...}` (or `intent`) with the same value are
    wordings of one question; of pairs `{"a": ..., "b": ..., "label": 1}`, b is a wording of a.
    """
    found: dict[str, dict[str, None]] = {}
    try:
        raw = file.read_bytes()
        text = (gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw).decode()
    except (OSError, EOFError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{file}: cannot be read as questions ({exc})") from exc
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as exc:
            raise ConfigError(f"{file}: line {number} is not JSON") from exc
        key, texts = _read(row, f"{file}: line {number}")
        found.setdefault(key, {}).update(dict.fromkeys(texts))
    if not found:
        raise ConfigError(f"{file}: holds no questions")
    return [Question(text=texts[0], wordings=tuple(texts[1:])) for texts in map(list, found.values())]


def _read(row: Any, where: str) -> tuple[str, list[str]]:
    told = row if isinstance(row, dict) else {}
    text = told.get("text") or told.get("question") or told.get("prompt") or told.get("a")
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f'{where} has no text; one is {{"text": "How do I pay?", "wordings": ["How can I pay?"]}}')
    wordings = told.get("wordings", [])
    if not isinstance(wordings, list) or not all(isinstance(one, str) and one.strip() for one in wordings):
        raise ConfigError(f"{where}: wordings must be a list of texts")
    other = told.get("b")
    if other and told.get("label", told.get("same_answer")) and isinstance(other, str):
        wordings = [*wordings, other]
    key = next((f"{name}:{told[name]}" for name in ("answer_id", "intent") if told.get(name)), f"text:{text}")
    return key, [text, *wordings]


def rewordings(questions: Iterable[Question], seed: int) -> list[str]:
    """Return every wording of every question in every guise (openings, endings, spaces), shuffled; none as it is kept.

    Thirteen questions with a wording each make more than the 4,096 embeddings that a proxy remembers, and an endless
    run comes back to them in the same order: each one is encoded.
    """
    asked = {question.text for question in questions}
    texts = dict.fromkeys(itertools.chain.from_iterable((one.text, *one.wordings) for one in questions))
    made = {
        f"{opening}{text[0].lower() if opening else text[0]}{text[1:].rstrip('?').replace(' ', space)}{ending or '?'}"
        for opening, text, ending, space in itertools.product(_OPENINGS, texts, _ENDINGS, _SPACES)
    }
    ordered = sorted({*texts, *made} - asked)
    random.Random(seed).shuffle(ordered)
    return ordered


def unheard(seed: int) -> Iterator[str]:
    """Yield questions that nobody asked before, of about thirty tokens, without end."""
    source = random.Random(seed)
    for number in itertools.count():
        words = " ".join(source.choice(_WORDS) for _ in range(14))
        yield f"Question {seed}-{number}: how would you explain {words} to a new colleague, and what comes next?"
