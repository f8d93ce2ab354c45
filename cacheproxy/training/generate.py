"""Generated pairs: rewordings that keep the answer, and traps that change it, made from plain questions. Seeded.

Families follow what was found to matter (docs/verification.md): traps of number, negation, opposite, entity, scope,
direction and aspect; rewordings of manner, of spelling and of a question's frame. No text is looked up anywhere: swaps
draw on the questions themselves, on the tables of data/wordings.toml and on the lexicon.
"""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cacheproxy.verify import lexicon
from cacheproxy.verify.vocabulary import FRACTIONS, LARGE, NEGATORS, ORDINALS, SMALL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from random import Random


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A question, another one made of it, and whether the first one's answer is right for it."""

    text: str
    other: str
    label: bool
    family: str


class Generator:
    """Makes pairs of questions. `opposites` tells the opposites of a word, none for most."""

    def __init__(self, questions: Iterable[str], opposites: Callable[[str], Sequence[str]], random: Random) -> None:
        self._opposites = opposites
        self._random = random
        self._names = _names(questions)
        self._traps = (
            self._other_number,
            self._negated,
            self._opposite,
            self._opposite,
            self._other_name,
            self._other_name,
            self._narrowed,
            self._turned,
            self._other_aspect,
            _framed,
            _framed,
        )
        self._rewordings = (
            _polite,
            _misspelt,
            _plain,
            _contracted,
            _reframed,
            _reframed,
            _reframed,
            _spelt_numbers,
            _wrapped,
        )

    def trap(self, text: str) -> Made | None:
        """Return a question like this one that wants another answer; None where no family applies."""
        return self._first(text, self._traps, label=False)

    def rewording(self, text: str) -> Made | None:
        """Return this question in other words; None where no family applies."""
        return self._first(text, self._rewordings, label=True)

    def _first(self, text: str, families: Sequence[Callable[..., str]], *, label: bool) -> Made | None:
        for make in self._random.sample(families, len(families)):
            other = make(text) if hasattr(make, "__self__") else make(text, self._random)
            if other and not _equal(other, text, cased=label):
                return Made(text=text, other=other, label=label, family=make.__name__.lstrip("_"))
        return None

    # Traps

    def _other_number(self, text: str) -> str:
        found = list(_NUMBER.finditer(text))
        if not found:
            return ""
        one = self._random.choice(found)
        digits = one.group()
        value = int(digits)
        if len(digits) == 4 and 1000 <= value <= 2100:
            new = value + self._random.choice((-20, -10, -3, -2, -1, 1, 2, 3, 10))
        else:
            new = self._random.choice((value + 1, value + 2, max(value - 1, 0), value * 2, value * 10, value + 5))
        new = new if new != value else value + 1
        return text[: one.start()] + str(new) + text[one.end() :]

    def _negated(self, text: str) -> str:
        options = [pattern.sub(repl, text, count=1) for pattern, repl in _NEGATIONS if pattern.search(text) is not None]
        return self._random.choice(options) if options else ""

    def _opposite(self, text: str) -> str:
        words = list(_WORD.finditer(text))
        self._random.shuffle(words)
        for word in words:
            own = _OPPOSITES.get(word.group().lower()) or tuple(self._opposites(word.group().lower()))
            if own:
                return _put(text, word, self._random.choice(own))
        return ""

    def _other_name(self, text: str) -> str:
        words = [word for word in _NAME.finditer(text) if self._names.like(word.group(), word.start() == 0)]
        if not words:
            return ""
        word = self._random.choice(words)
        own = text.lower()
        others = [name for name in self._names.like(word.group(), word.start() == 0) if name.lower() not in own]
        return text[: word.start()] + self._random.choice(others) + text[word.end() :] if others else ""

    def _narrowed(self, text: str) -> str:
        body, mark = _ending(text)
        if len(body.split()) < 3:
            return ""
        return f"{body} {self._random.choice(_NARROWING)}{mark}"

    def _turned(self, text: str) -> str:
        for pattern in _DIRECTIONS:
            found = pattern.search(text)
            if found and found["a"].lower() != found["b"].lower():
                start, end = found.span("a"), found.span("b")
                return text[: start[0]] + found["b"] + text[start[1] : end[0]] + found["a"] + text[end[1] :]
        return ""

    def _other_aspect(self, text: str) -> str:
        for pattern, others in _ASPECTS:
            if pattern.search(text):
                return pattern.sub(self._random.choice(others), text, count=1)
        return ""


class _Kinds:
    """Names by kind, so that one is swapped for another of its like."""

    def __init__(self, kinds: dict[str, tuple[str, ...]], common: tuple[str, ...]) -> None:
        self._of = {name.lower(): names for names in kinds.values() for name in names}
        self._common = common
        self._is_common = frozenset(common)

    def like(self, name: str, begins: bool) -> tuple[str, ...]:
        """Return names of the same kind; those seen in the questions for a name of no known kind."""
        known = self._of.get(name.lower())
        if known is not None:
            return known
        return () if begins or name.islower() or name not in self._is_common else self._common


def _names(questions: Iterable[str]) -> _Kinds:
    """Collect capitalised words that stand within questions: names of no known kind are swapped among themselves."""
    seen: defaultdict[str, int] = defaultdict(int)
    for text in questions:
        if text != text.title() and text != text.upper():
            for word in _NAME.finditer(text):
                if word.start() > 0 and len(word.group()) > 2 and not word.group().islower():
                    seen[word.group()] += 1
    common = tuple(sorted(name for name, count in seen.items() if count >= 2))
    return _Kinds(_KINDS, common)


def _equal(one: str, other: str, *, cased: bool) -> bool:
    """Whether two texts differ in white space at most, or in that and in capitals."""
    return one.split() == other.split() if cased else one.casefold().split() == other.casefold().split()


def _put(text: str, word: re.Match[str], new: str) -> str:
    if word.group().isupper() and len(word.group()) > 1:
        new = new.upper()
    elif word.group()[0].isupper():
        new = new[0].upper() + new[1:]
    return text[: word.start()] + new + text[word.end() :]


def _in_frame(text: str, frame: str) -> str:
    body, _ = _ending(text)
    places = {"Q": text.strip(), "q": _lowered(text.strip()), "B": body, "b": _lowered(body)}
    place = frame[frame.index("{") + 1]
    return frame.replace(f"{{{place}}}", places[place])


def _framed(text: str, random: Random) -> str:
    """Put an order, another world or another use around a question: the same words, another answer."""
    return _in_frame(text, random.choice(_FRAMES_OTHER))


def _ending(text: str) -> tuple[str, str]:
    body = text.rstrip()
    mark = body[len(body.rstrip("?.! ")) :].strip()
    return body.rstrip("?.! "), mark


def _lowered(text: str) -> str:
    first = text.split(" ", 1)[0]
    return text if first.isupper() or any(c.isupper() for c in first[1:]) else text[:1].lower() + text[1:]


# Rewordings


def _polite(text: str, random: Random) -> str:
    body, mark = _ending(text)
    before, after = random.choice(_MANNERS)
    return f"{before}{_lowered(body) if before and not before.endswith(('. ', '! ', ': ')) else body}{mark}{after}"


def _wrapped(text: str, random: Random) -> str:
    return _in_frame(text, random.choice(_FRAMES_SAME))


def _misspelt(text: str, random: Random) -> str:
    words = [word for word in _WORD.finditer(text) if len(word.group()) >= 5 and word.group().islower()]
    words = [
        word
        for word in words
        if word.group() not in _WEIGHTY and word.group().isalpha() and text[word.start() - 1 : word.start()] != "-"
    ]
    if not words:
        return ""
    for word in sorted(random.sample(words, min(len(words), random.choice((1, 1, 2)))), key=lambda w: -w.start()):
        letters, at = list(word.group()), random.randrange(1, len(word.group()) - 1)
        match random.randrange(3):
            case 0:
                letters[at], letters[at + 1] = letters[at + 1], letters[at]
            case 1:
                del letters[at]
            case _:
                letters.insert(at, letters[at])
        slip = "".join(letters)
        if slip not in _WEIGHTY and not lexicon.known(slip):  # "three" is no slip of "there", nor "trail" of "trial"
            text = text[: word.start()] + slip + text[word.end() :]
    return text


def _plain(text: str, random: Random) -> str:
    body, mark = _ending(text)
    match random.randrange(4):
        case 0:
            return body.lower()
        case 1:
            return body if mark else body + "?"
        case 2:
            return body.lower() + mark
        case _:
            return re.sub(r"[,;:'\"](?!\d)", "", body)


def _contracted(text: str, random: Random) -> str:
    pairs = [(pattern, new) for pattern, new in _SAME if pattern.search(text)]
    if not pairs:
        return ""
    pattern, new = random.choice(pairs)
    return pattern.sub(lambda m: new[0].upper() + new[1:] if m[0][0].isupper() else new, text, count=1)


def _reframed(text: str, random: Random) -> str:
    body, _ = _ending(text)
    for pattern, frames in random.sample(_FRAMES, len(_FRAMES)):
        found = pattern.fullmatch(body)
        if found:
            made = random.choice(frames).format(**{name: value.strip() for name, value in found.groupdict().items()})
            return made[:1].upper() + made[1:] if random.random() < 0.7 else made
    return ""


def _spelt_numbers(text: str, random: Random) -> str:
    found = [(m, _SPELT[int(m.group())]) for m in _ALONE.finditer(text) if int(m.group()) < len(_SPELT)]
    if found:
        one, word = random.choice(found)
        return text[: one.start()] + word + text[one.end() :]
    spelt = [m for m in _WORD.finditer(text) if m.group().lower() in _SPELT[2:]]
    if not spelt:
        return ""
    one = random.choice(spelt)
    return text[: one.start()] + str(_SPELT.index(one.group().lower())) + text[one.end() :]


def made_of(
    questions: Sequence[str], opposites: Callable[[str], Sequence[str]], random: Random, *, traps: int, rewordings: int
) -> Iterator[Made]:
    """Yield up to so many traps and rewordings, each of a question drawn at random; few twice, if they are enough.

    Every other trap is made of a rewording, so that a trap does not tell itself by standing near to its question; and
    some rewordings stand in one frame with their question, so that no trap tells itself by its frame alone.
    """
    generator = Generator(questions, opposites, random)
    for number in range(rewordings):
        made = generator.rewording(random.choice(questions))
        if made is not None:
            yield made if number % _BOTH_FRAMED else _both_framed(made, random)
    for number in range(traps):
        question = random.choice(questions)
        made = generator.trap(question)
        if made is None:
            continue
        again = generator.rewording(made.other) if number % 2 else None
        other = made.other if again is None or _equal(again.other, question, cased=False) else again.other
        yield Made(text=question, other=other, label=False, family=made.family)


def _both_framed(made: Made, random: Random) -> Made:
    frame = random.choice(_FRAMES_OTHER)
    return replace(made, text=_in_frame(made.text, frame), other=_in_frame(made.other, frame), family="both_framed")


_BOTH_FRAMED = 12
"""Of so many rewordings one is put into a frame, together with its question."""
_WORD = re.compile(r"[A-Za-z][A-Za-z'\u2019]*")
_NUMBER = re.compile(r"(?<![\w.,])\d{1,6}(?![\w]|[.,]\d)")
_NAME = re.compile(r"\b(?:[A-Z][A-Za-z+#]*[a-z+#]|[A-Z]{2,6}|C\+\+|C#|[a-z]{3,12})\b")
_ALONE = re.compile(r"(?<![\w.,:/-])\d{1,6}(?![\w]|[.,:/-]\d)")
_WEIGHTY = {*NEGATORS, *SMALL, *LARGE, *ORDINALS, *FRACTIONS, "cannot"}
"""Words that no slip of the pen may take from a question: with another one it would want another answer."""
_SPELT = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def _patterns(rows: Iterable[Sequence[str]]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern, re.IGNORECASE), instead) for pattern, instead in rows)


def _tables(rows: Iterable[Mapping[str, Any]]) -> tuple[tuple[re.Pattern[str], tuple[str, ...]], ...]:
    return tuple((re.compile(row["pattern"], re.IGNORECASE), tuple(row["others"])) for row in rows)


def _data(name: str) -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "data" / name).read_text("utf-8"))


_TOLD, _AROUND = _data("wordings.toml"), _data("frames.toml")
_FRAMES_OTHER, _FRAMES_SAME = tuple(_AROUND["other"]), tuple(_AROUND["same"])
_NEGATIONS = _patterns(_TOLD["negations"])
_ASPECTS, _FRAMES = _tables(_TOLD["aspects"]), _tables(_TOLD["frames"])
_DIRECTIONS = tuple(re.compile(pattern, re.IGNORECASE) for pattern in _TOLD["directions"])
_KINDS: dict[str, tuple[str, ...]] = {kind: tuple(names) for kind, names in _TOLD["kinds"].items()}
_NARROWING, _MANNERS = tuple(_TOLD["narrowing"]), tuple(_TOLD["manners"])
_SAME = tuple(
    (re.compile(rf"(?<!\w){re.escape(old)}(?!\w)", re.IGNORECASE), new)
    for pair in (_TOLD["same"], [(other, one) for one, other in _TOLD["same"]])
    for old, new in pair
)
_OPPOSITES: dict[str, tuple[str, ...]] = {}
for _one, _other in _TOLD["opposites"]:
    _OPPOSITES[_one] = (*_OPPOSITES.get(_one, ()), _other)
    _OPPOSITES[_other] = (*_OPPOSITES.get(_other, ()), _one)
