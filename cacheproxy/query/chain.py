"""Chains: what was said before a question, where it may be matched by its meaning and need not be equal.

A history is a chain when it is plain talk: system messages first, then user and assistant, each of text only, within
bounds. Any other one (tools, pictures, longer, a message that is empty) stays under the rule that it must be equal to
the byte. Both fingerprints cover a chain's shape: roles, their order and count, and every field but the text and what
names one answer; the exact one covers the texts, too (docs/decisions/0034-conversations.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

MOST_MESSAGES = 12
"""Longest chain. Part of every key: another number makes the entries of longer conversations unfindable."""
MOST_CHARS = 32_768
"""Most characters that a chain's texts hold together; part of every key as well."""

# What names one answer and says nothing: the exact fingerprint alone covers them.
_NAMES = frozenset({"id", "status"})
_LEADING = ("system", "developer")
_TEXTS = ("text", "input_text", "output_text")
_SPARE = frozenset({"annotations", "logprobs"})
"""Fields of a text part that clients send back empty."""


@dataclass(frozen=True, slots=True)
class Weights:
    """How much a question counts in the vector of its conversation, and those before it, the latest first."""

    own: float
    before: tuple[float, ...]


PLACED = Weights(1.0, (1.0, 0.5, 0.25))
"""By which a question is found: of 1,441 conversations the right one is among the nearest four for all 347 asked (by
its own words alone: for 92 %)."""
ABOUT = Weights(0.5, (1.0, 1.0, 1.0))
"""By which a conversation's category is told: "Who won?" has none of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A history that may be matched by its meaning.

    `texts` alternate user and assistant and end with the assistant; a turn that was not taken is "". `shape` is the
    history without them.
    """

    texts: tuple[str, ...] = field(repr=False)
    shape: tuple[object, ...] = field(repr=False)


def read_chain(messages: Sequence[Mapping[str, Any]]) -> Chain | None:
    """Return the chain that these earlier messages are; None where they must be equal, and where there are none."""
    led = 0
    while led < len(messages) and messages[led].get("role") in _LEADING:
        led += 1
    said = messages[led:]
    if not 0 < len(said) <= MOST_MESSAGES:
        return None
    texts: list[str] = []
    shape: list[object] = list(messages[:led])
    for message in said:
        text, role = _plain(message), message.get("role")
        if text is None:
            return None
        if role == "assistant" and len(texts) % 2 == 0 and texts:
            return None  # it spoke twice: what of it the question is about cannot be told
        if (role == "user") != (len(texts) % 2 == 0):
            texts.append("")
        texts.append(text)
        shape.append({name: value for name, value in message.items() if name not in _NAMES and name != "content"})
    if len(texts) % 2:
        texts.append("")
    if sum(map(len, texts)) > MOST_CHARS:
        return None
    return Chain(texts=tuple(texts), shape=tuple(shape))


def asks_again(text: str, earlier: Sequence[str]) -> bool:
    """Whether the last question before this one was the same: its answer did not please, so it is no answer to this."""
    return bool(earlier) and bool(text.strip()) and _loose(earlier[-1]) == _loose(text)


def plain(text: str) -> str:
    """Return a text as it is compared for being the same: white space, the first letter's case, a last mark differ.

    A mark after anything but a letter counts ("5!"), and so does case elsewhere ("US").
    """
    told = " ".join(text.split())
    if len(told) > 1 and told[-1] in ".?!" and told[-2].isalpha():
        told = told[:-1]
    return told[:1].lower() + told[1:]


def in_context(
    question: NDArray[np.float32], asked: Sequence[NDArray[np.float32]], weights: Weights = PLACED
) -> NDArray[np.float32]:
    """Return the unit vector of a question in its conversation.

    All are unit vectors of shape (dim,); `asked` are of the questions before it, oldest first, of which the last three
    count.
    """
    mixed = weights.own * question.astype(np.float64)
    for weight, vector in zip(weights.before, reversed(asked), strict=False):
        mixed += weight * vector
    norm = float(np.linalg.norm(mixed))
    return question if norm < 1e-3 else (mixed / norm).astype(np.float32)


def leading_questions(chain: Sequence[str]) -> tuple[str, ...]:
    """Return the user's turns of a chain that count in `in_context`, oldest first."""
    return tuple(text for text in chain[::2] if text.strip())[-len(PLACED.before) :]


def _loose(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(" .!?")


def _plain(message: Mapping[str, Any]) -> str | None:
    """Return the text of a message that is nothing but text, None for any other one."""
    if message.get("role") not in ("user", "assistant") or message.get("type", "message") != "message":
        return None
    content = message.get("content")
    if isinstance(content, list):
        parts = [_text_of(part) for part in content]
        known = [part for part in parts if part is not None]
        content = "\n".join(known) if known and len(known) == len(parts) else None
    return content if isinstance(content, str) and content.strip() else None


def _text_of(part: object) -> str | None:
    if not isinstance(part, dict) or part.get("type") not in _TEXTS or not isinstance(part.get("text"), str):
        return None
    others = {name: value for name, value in part.items() if name not in ("type", "text")}
    empty = all(name in _SPARE and not value for name, value in others.items())
    return str(part["text"]) if empty else None
