"""Agreement: whether two answers say the same, as far as that can be seen without understanding them. Pure.

What cannot be seen is None: two wordings of one answer may share few words, and two answers all but one number.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_WORD = re.compile(r"[^\W_]+", re.UNICODE)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_SHORT_WORDS = 8
_ALIKE = 0.92
"""Cosine from which on two answers with the same numbers say the same."""
_UNLIKE = 0.35
"""Cosine below which they do not."""
_OPPOSITE = frozenset({("yes", "no"), ("no", "yes"), ("true", "false"), ("false", "true")})


def agree(cached: str, fresh: str, similarity: float | None) -> bool | None:
    """Return whether both answers say the same, or None where that cannot be seen.

    `similarity` is the cosine of both, or None where it is not known.
    """
    words, others = _words(cached), _words(fresh)
    if not words or not others:
        return None
    if words == others:
        return True
    if (words[0], others[0]) in _OPPOSITE:
        return False
    numbers, other_numbers = _numbers(cached), _numbers(fresh)
    same_numbers = numbers <= other_numbers or other_numbers <= numbers
    if max(len(words), len(others)) <= _SHORT_WORDS and bool(numbers) and bool(other_numbers) and not same_numbers:
        return False
    if similarity is None:
        return None
    if similarity < _UNLIKE:
        return False
    return True if similarity >= _ALIKE and same_numbers else None


def told(body: Mapping[str, Any]) -> str:
    """Return the text of an answer in canonical form, "" where it holds more, or other things, than one text.

    Any body is understood: one of an unknown shape holds none.
    """
    if "output" in body:
        items = [item for item in _objects(body["output"]) if item.get("type") != "reasoning"]
        parts = _objects(items[0].get("content")) if len(items) == 1 else []
        texts: list[Any] = [part.get("text") for part in parts]
        return "".join(texts) if all(isinstance(text, str) for text in texts) else ""
    choices = _objects(body.get("choices"))
    if len(choices) != 1:
        return ""
    message = choices[0].get("message", choices[0])
    text = message.get("content" if "message" in choices[0] else "text") if isinstance(message, dict) else None
    return text if isinstance(text, str) else ""


def _objects(value: object) -> list[dict[str, Any]]:
    """Return a list of objects, [] for anything else."""
    return value if isinstance(value, list) and all(isinstance(one, dict) for one in value) else []


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def _numbers(text: str) -> set[str]:
    return {number.replace(",", "").rstrip(".") for number in _NUMBER.findall(text)}
