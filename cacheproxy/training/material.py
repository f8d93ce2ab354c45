"""What a verifier is trained on: labelled pairs, sets of askings, and plain questions, read from JSON lines."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import structlog

from cacheproxy.errors import ConfigError
from cacheproxy.evaluate.lines import read_rows
from cacheproxy.evaluate.pairfile import LabelledPair
from cacheproxy.evaluate.split import components
from cacheproxy.verify.artefact import Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from random import Random

_log = structlog.get_logger()

SETS = Path(__file__).parent / "data" / "sets.jsonl.gz"
"""Sets of askings written for this project: data/README.md says how, and under which licence."""

_FORMS = (
    '{"a": text, "b": text, "label": 0|1}, {"same": [texts], "other": [[kind, text, ...], ...]}, or {"text": question} '
    "to make pairs of"
)
_CALIBRATION = 15
"""Percent of questions, with all that they are paired with, kept for calibration."""


class Other(msgspec.Struct, frozen=True, array_like=True):
    """A question that wants another answer than its set, and how it differs."""

    kind: str
    text: str
    reworded: str = ""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A set: askings of one thing, and traps that look alike. Any asking's answer is right for all of `same`."""

    same: list[str]
    other: list[Other] = []


@dataclass(frozen=True, slots=True)
class Example:
    """A labelled pair to learn from: whether `a`'s answer is right for `b`."""

    a: str = field(repr=False)
    b: str = field(repr=False)
    label: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one half (to learn from, or to calibrate on) holds. No question is in both halves."""

    pairs: dict[str, list[Example]]
    """Labelled pairs by the name of their file."""
    sets: list[Asked]
    questions: list[str] = field(repr=False)
    """To make pairs of: plain ones, and those of the pairs and sets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """Everything read, parted, and where it came from."""

    learn: Part
    calibrate: Part
    sources: tuple[Source, ...]


class _Row(msgspec.Struct):
    a: str = ""
    b: str = ""
    label: bool | int | None = None
    same_answer: bool | int | None = None
    same: list[str] = []
    other: list[Other] = []
    text: str = ""
    question: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A line that cannot be used, and why: `file:line: ...`, without its text."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """What one file holds. `skipped` lines could not be used; `refused` says why the first of them could not."""

    file: Path
    sha256: str
    pairs: list[LabelledPair]
    sets: list[Asked]
    questions: list[str] = field(repr=False)
    skipped: int
    refused: str

    @property
    def usable(self) -> bool:
        return bool(self.pairs or self.sets or self.questions)


_DECODER = msgspec.json.Decoder(_Row)


def read_material(files: Sequence[Path], licences: Mapping[str, str] | None = None) -> Material:
    """Read files of labelled pairs, sets and questions, plain or gzip; other fields of a line are ignored.

    Lines of another form are left out, and so are files of nothing else, with a warning. Raises ConfigError as
    `file:line: what is wrong`, never quoting a text, for lines that are no JSON, and where no file given can be used.
    """
    read = [_read(file) for file in files]
    given = [one for one in read if one.file != SETS]
    if given and not any(one.usable for one in given):
        raise ConfigError(given[0].refused or f"{given[0].file}: is empty; each line must be {_FORMS}")
    for one in read:
        if one.skipped:
            _log.warning("training_lines_skipped", file=one.file.name, lines=one.skipped, first=one.refused)
    half = _halves(read)
    learn, calibrate = (_part(read, half, name) for name in ("learn", "calibrate"))
    if not (learn.sets or any(learn.pairs.values())):
        raise ConfigError("nothing to learn from: give files of labelled pairs or sets; each line must be " + _FORMS)
    sources = tuple(
        Source(
            name=one.file.name,
            sha256=one.sha256,
            pairs=len(one.pairs) or len(one.sets) or len(one.questions),
            licence=(licences or {}).get(one.file.name, ""),
        )
        for one in read
        if one.usable
    )
    return Material(learn=learn, calibrate=calibrate, sources=sources)


def _part(read: Sequence[_Read], half: Mapping[str, str], name: str) -> Part:
    part = Part(pairs={}, sets=[], questions=[])
    for one in read:
        own = [Example(pair.a, pair.b, pair.label) for pair in one.pairs if half[pair.a] == name]
        if own:
            part.pairs.setdefault(one.file.name, []).extend(own)
        part.sets.extend(asked for asked in one.sets if half[asked.same[0]] == name)
        part.questions.extend(text for text in one.questions if half.get(text, _half(text)) == name)
    part.questions.extend(pair.a for pairs in part.pairs.values() for pair in pairs)
    part.questions.extend(text for one in part.sets for text in one.same[:3])
    return part


def pairs_of_sets(sets: Iterable[Asked], random: Random, *, most_same: int = 8) -> list[Example]:
    """Return pairs drawn from sets: up to `most_same` of each set's own, and each trap with one of its askings."""
    found = []
    for one in sets:
        both = [(a, b) for at, a in enumerate(one.same) for b in one.same[:at]]
        found += [Example(a, b, label=True) for a, b in random.sample(both, min(most_same, len(both)))]
        for trap in one.other:
            found += [
                Example(random.choice(one.same), text, label=False) for text in (trap.text, trap.reworded) if text
            ]
            if trap.reworded and random.random() < 0.5:
                found.append(Example(trap.text, trap.reworded, label=True))
        if len(one.other) > 1 and random.random() < 0.5:
            first, second = random.sample(one.other, 2)
            found.append(Example(first.text, second.reworded or second.text, label=False))
    return found


def _read(file: Path) -> _Read:
    pairs, sets, questions = list[LabelledPair](), list[Asked](), list[str]()
    skipped, refused = 0, ""
    for where, raw in read_rows(file, msgspec.Raw, _FORMS):
        match _usable(where, raw):
            case LabelledPair() as pair:
                pairs.append(pair)
            case Asked() as one:
                sets.append(one)
            case Refused(reason=reason):
                skipped, refused = skipped + 1, refused or reason
            case text:
                questions.append(text)
    return _Read(
        file=file,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        pairs=pairs,
        sets=sets,
        questions=questions,
        skipped=skipped,
        refused=refused,
    )


def _usable(where: str, raw: msgspec.Raw) -> LabelledPair | Asked | str | Refused:
    try:
        row = _DECODER.decode(raw)
    except msgspec.ValidationError as exc:
        return Refused(reason=f"{where}: {exc}; each line must be {_FORMS}")
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{where}: {exc}; each line must be {_FORMS}") from exc
    labels = {value for value in (row.label, row.same_answer) if value is not None}
    if row.a and row.b and labels in ({0}, {1}):
        return LabelledPair(a=row.a, b=row.b, label=bool(labels.pop()))
    if row.a and row.b:
        return Refused(reason=f"{where}: has no label that is 0 or 1; each line must be {_FORMS}")
    if len(row.same) > 1:
        return Asked(same=row.same, other=row.other)
    return row.text or row.question or Refused(reason=f"{where}: is none of {_FORMS}")


def _half(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return "calibrate" if digest[0] % 100 < _CALIBRATION else "learn"


def _halves(read: Sequence[_Read]) -> dict[str, str]:
    """Return the half of each text of a pair or set: what shares texts, directly or through others, is in one half."""
    joined = [pair for one in read for pair in one.pairs]
    for asked in (asked for one in read for asked in one.sets):
        told = (text for trap in asked.other for text in (trap.text, trap.reworded) if text)
        joined += [LabelledPair(a=asked.same[0], b=text, label=True) for text in (*asked.same, *told)]
    halves: dict[int, str] = {}
    found: dict[str, str] = {}
    for number, pair in zip(components(joined), joined, strict=True):
        half = halves.setdefault(int(number), _half(pair.a))
        found[pair.a] = found[pair.b] = half
    return found
