"""Rewards: what is said of an answer, as a number in [0, 1] with its source and weight. Pure; nothing is executed.

The value is how probable the answer is good, given what was said. The weight is of the source and never of what it
says: a source that counted more when it complains would make every arm look worse than it is.
"""

from __future__ import annotations

import ast
import math
import re
import textwrap
import unicodedata
from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MOST_CHARS = 64 * 1024
"""Of an answer; nothing is said of a longer one."""


class Source(StrEnum):
    """Who or what says it."""

    FEEDBACK = "feedback"
    REPEATED = "repeated"
    """The caller asked for another answer at once: regenerated it, or asked again past the cache."""
    JUDGE = "judge"
    COMPARED = "compared"
    """With the large model's answer to the same question, of a double run."""
    EXACT = "exact"
    JSON = "json"
    CODE = "code"


WEIGHTS: Mapping[Source, float] = {
    Source.FEEDBACK: 0.5,
    Source.REPEATED: 0.2,
    Source.JUDGE: 1.0,
    Source.COMPARED: 1.0,
    Source.EXACT: 1.0,
    Source.JSON: 0.3,
    Source.CODE: 0.3,
}
"""A judge or a checked answer is the measure; callers are no random sample, and form says little of content."""
_ASKED_AGAIN = 0.2
_WELL_FORMED = 0.8
"""Of an answer of the right form; of the wrong form, 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """What is said of one answer."""

    value: float
    weight: float
    source: Source


def said(source: Source, *, good: bool) -> Reward:
    """Return the reward of a yes or no: of a caller, a judge or a comparison."""
    return Reward(value=1.0 if good else 0.0, weight=WEIGHTS[source], source=source)


def repeated() -> Reward:
    """Return the reward of an answer that its caller wanted another one for."""
    return Reward(value=_ASKED_AGAIN, weight=WEIGHTS[Source.REPEATED], source=Source.REPEATED)


# Checkers


def exact(answer: str, reference: str) -> Reward | None:
    """Return whether an answer is the reference, but for case, punctuation and articles; numbers are compared as such.

    Of an answer that says where it ends up ("Answer: 42", "#### 42", a box in TeX), that is compared; for a reference
    that is a number, else, the last number. None for a reference without a word, and for an answer that is too long.
    """
    wanted = _plain(reference)
    if not wanted or len(answer) > MOST_CHARS:
        return None
    final = _final(answer)
    number = _number(reference.strip())
    if number is not None:
        told = _NUMBERS.findall(final)
        good = bool(told) and _number(told[-1]) == number
    else:
        good = _plain(final) == wanted
    return said(Source.EXACT, good=good)


def valid_json(answer: str) -> Reward | None:
    """Return whether an answer that begins as a JSON object or array is one. None of any other answer.

    A schema is never there to check it against: who asks for one by `response_format` gets the large model's answer.
    """
    text = answer.strip()
    if len(answer) > MOST_CHARS or not text.startswith(("{", "[")):
        return None
    try:
        msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError):
        return _formed(Source.JSON, ok=False)
    return _formed(Source.JSON, ok=True)


def compiles(answer: str) -> Reward | None:
    """Return whether all fenced blocks of Python and JSON in an answer can be parsed. None where there are none.

    Sessions with a prompt, and lines for a shell or a notebook, are not looked at.
    """
    if len(answer) > MOST_CHARS:
        return None
    told = [ok for language, text in _blocks(answer) if (ok := _parses(language, text)) is not None]
    return _formed(Source.CODE, ok=all(told)) if told else None


def _formed(source: Source, *, ok: bool) -> Reward:
    return Reward(value=_WELL_FORMED if ok else 0.0, weight=WEIGHTS[source], source=source)


_FENCE = re.compile(r"^[ ]{0,3}(`{3,}|~{3,})[ \t]*([^\s`~]*)[^\n`]*$", re.MULTILINE)
_FINAL = re.compile(r"####|\\boxed\{|\b(?:final )?answer(?: is)?\s*[:=]|\bthe (?:final )?answer is\b", re.IGNORECASE)
_NUMBERS = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?")
_ARTICLES = frozenset(("a", "an", "the"))
_PYTHON = frozenset(("python", "py", "python3"))
_NOT_ALONE = (">>>", "!", "%", "$ ")


def _blocks(answer: str) -> Iterator[tuple[str, str]]:
    """Yield language and text of each fenced block; one that is not closed ends with the answer."""
    at = 0
    while opening := _FENCE.search(answer, at):
        start = min(opening.end() + 1, len(answer))
        closing = re.compile(rf"^[ ]{{0,3}}{re.escape(opening[1])}[`~]*[ \t]*$", re.MULTILINE).search(answer, start)
        yield opening[2].lower(), answer[start : closing.start() if closing else len(answer)]
        if closing is None:
            return
        at = closing.end()


def _parses(language: str, text: str) -> bool | None:
    try:
        if language == "json":
            msgspec.json.decode(text)
            return True
        if language not in _PYTHON or any(line.lstrip().startswith(_NOT_ALONE) for line in text.splitlines()):
            return None
        ast.parse(textwrap.dedent(text))
    except (SyntaxError, ValueError, MemoryError, RecursionError):  # the parser's own limits are MemoryError
        return False
    return True


def _final(answer: str) -> str:
    """Return what follows the last word that announces a result, to the end of its line; else all of it."""
    marks = list(_FINAL.finditer(answer))
    if not marks:
        return answer
    rest = answer[marks[-1].end() :].strip()
    rest = rest.partition("\n")[0]
    return rest.partition("}")[0] if marks[-1][0].endswith("{") else rest


def _plain(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(c if c.isalnum() or c in "+-.%/" else " " for c in folded).split()
    return " ".join(word for one in kept if (word := one.strip(".-/")) and word not in _ARTICLES)


def _number(text: str) -> Fraction | None:
    found = _NUMBERS.fullmatch(text.removeprefix("$").removesuffix("."))
    if found is None or len(text) > 40:
        return None
    top, _, bottom = found[0].replace(",", "").partition("/")
    below = Fraction(bottom or "1")
    return Fraction(top) / below if below else None


# One voice among others

_MOST_VOICES = 10_000
_FULL_WORDS = 10.0
_VOICE_HALF_S = 3600.0


class Voices:
    """How much one caller's next word weighs: after n of late, 10 / (10 + n) of it. Bounded, in memory.

    A flood of words weighs as its logarithm, so that nobody alone turns a category that others use, too.
    """

    def __init__(self) -> None:
        self._said: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()

    def weight(self, category: str, principal: str, reward: Reward, now_s: float) -> float:
        """Return the weight of a reward that a caller's word or deed gave, and remember that it was given."""
        count, at_s = self._said.pop((category, principal), (0.0, now_s))
        count *= math.exp2(-max(0.0, now_s - at_s) / _VOICE_HALF_S)
        self._said[category, principal] = count + 1.0, now_s
        if len(self._said) > _MOST_VOICES:
            self._said.popitem(last=False)
        return reward.weight * _FULL_WORDS / (_FULL_WORDS + count)
