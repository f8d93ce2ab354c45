"""Signs: what of a text says something by its very characters: letters' case, operators, units, layout. Pure.

Word pieces are read without case and accents, and trees and cross-encoder barely see a sign: what is here is theirs to
miss. Reading is linear in the text and never raises; of a very long text the beginning is read.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field

from cacheproxy.verify.foreign import foreign

LONGEST = 16_000
"""Characters that are read: what is longer is never served unless it is equal."""
_EDGES = ".,;:!?\"'()[]{}\u00bf\u00a1\u2018\u2019\u201c\u201d\u2026"
_STRICT = re.compile(r"-{1,2}[A-Za-z]|[\\%+][A-Za-z]|.*[\\_=^|]|[a-z]{2,}[A-Z]")
_PROSE = re.compile(r"[^\W\d_]+(?:['\u2019/&-][^\W\d_]+)*(?:\.[^\W\d_]+)*\Z|[A-Za-z](?:\+\+|#)\Z")
_SHORT = re.compile(r"(?:[A-Za-z]{1,8}-?\d+|[$€£]?\d[\d.,:]*)[A-Za-z]{0,4}\Z")
_AMOUNT = re.compile(r"[$€£]?\d[\d.,:]*(?:[ap]m|k|st|nd|rd|th|d|x)\Z")
BY_CASE = frozenset("mw mj mv mpa".split())
"""Units that are another one in capitals, however the text is typed."""

_SIGNS = re.compile(r"[-\\_<>=+*/^%&|~!\d]")
_OPERATOR = re.compile(
    r"""
    (?P<aside>(?:https?://|www\.)\S+|</?[A-Za-z][^<>\n]{0,200}>|\b[A-Za-z](?:\+\+|\#)|\d{1,20}%(?!\s{0,9}\d)
      |(?<!\w)--?[A-Za-z][\w-]+|\d{1,4}[-/]\d{1,2}[-/]\d{1,4}|->|=>|(?<![\w./-])[\w.-]{1,64}/[\w./-]{0,80}[A-Za-z]{2})
  | (?P<operator>[<>=+*/^%&|~!-]{1,3})
    """,
    re.VERBOSE,
)
STRONG = frozenset("=== == !== != = <= >= < > && || << >> // ** += -= *= /= %= ++ <- := ^ | ~ <> neg".split())
"""Operators that stand for nothing in prose."""
ARITHMETIC = frozenset("^ ** * / + - neg".split())
_OPERAND_ENDS, _OPERAND_BEGINS = frozenset(")]'\"`"), frozenset("(['\"`-")

_NUMBERS = {word: str(at) for at, word in enumerate("zero one two three four five six seven eight nine ten".split())}
_NUMBERS |= {"a": "1", "an": "1"}
_UNITS = {
    name: unit
    for line in (
        "ug mcg ug \u00b5g \u03bcg microgram micrograms|mg mg milligram milligrams|g g gm gram grams|ng ng nanograms",
        "iu iu IU|C C \u00b0C celsius Celsius centigrade|F F \u00b0F fahrenheit Fahrenheit|K K kelvin Kelvin",
        "mW mW milliwatt milliwatts|MW MW megawatt megawatts|kW kW|GW GW|mV mV|MV MV|kV kV|mJ mJ|MJ MJ",
        "Mbit Mb Mbit megabit megabits|MByte MB megabyte megabytes|Gbit Gb Gbit gigabit gigabits",
        "GByte GB gigabyte gigabytes|kbit kb Kb kilobit kilobits|kByte kB KB kilobyte kilobytes",
        "Mm Mm megametres megameters|mHz mHz|MHz MHz megahertz",
        "word word words|sentence sentence sentences|paragraph paragraph paragraphs|page page pages|line line lines",
    )
    for group in line.split("|")
    for unit, *names in [group.split()]
    for name in names
}
"""Units that the rules of features do not tell apart, case by case, and by what one is called."""
_MEASURE = re.compile(
    rf"(?<![\w.])(\d[\d,]{{0,15}}(?:\.\d{{1,15}})?|{'|'.join(_NUMBERS)})[ -]?(?:degrees? )?"
    rf"({'|'.join(sorted(map(re.escape, _UNITS), key=len, reverse=True))})(?!\w)"
)
_LETTERS_APART = str.maketrans("\u0131\u0142\u00f8\u0111", "ilod")
_BARE = re.compile(r"\w+")
_FLOWING = 40
"""Characters of a line that may have been broken anywhere."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Signs:
    """What was seen of one text."""

    text: str = field(repr=False)
    plain: bool = False
    """Whether there are letters and punctuation of English alone, and nothing below."""
    strict: dict[str, frozenset[str]] = field(default_factory=dict, repr=False)
    """Words whose case says something whatever the text: flags, escapes, identifiers; by what they are without case."""
    operators: tuple[str, ...] = ()
    measures: tuple[tuple[str, str], ...] = ()
    """Numbers with their unit."""
    accented: bool = False
    foreign: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """The words of a text between white space, without punctuation around them."""

    written: tuple[str, ...]
    folded: tuple[str, ...]
    """The same without case."""
    starts: frozenset[int]
    """The places of those that begin a sentence."""


def see(text: str, tokens: tuple[str, ...], *, code: bool) -> Signs:
    """See a text of any length, of which `tokens` are the words, with `code` among them; never raises."""
    text = text[:LONGEST]
    spoken = foreign(text, tokens)
    signed = code or len(text) > _WHOLE or not _COUNTED.isdisjoint(tokens) or _SIGNS.search(text) is not None
    if not (signed or spoken) and text.isascii():
        return Signs(text=text, plain=True)
    return Signs(
        text=text,
        strict=_strict(text),
        operators=_operators(text),
        measures=_measures(text),
        accented=any("\u00bf" < letter < "\u1f00" for letter in text),
        foreign=spoken,
    )


def words(text: str) -> Words:
    """Return the words of a text as they are written."""
    written, starts, begins = list[str](), set[int](), True
    for word in text.split():
        if bare_word := word.strip(_EDGES):
            if begins:
                starts.add(len(written))
            written.append(bare_word)
            begins = False
        begins = begins or word.rstrip("\"'\u201d)")[-1:] in {".", "?", "!"}
    return Words(written=tuple(written), folded=tuple(map(str.casefold, written)), starts=frozenset(starts))


_WHOLE = 4_000
"""Characters up to which the words of a text are all of them."""
_COUNTED = frozenset("word words sentence sentences paragraph paragraphs page pages line lines".split())


def _strict(text: str) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for one in text.split():
        if _STRICT.match(word := one.strip(_EDGES)):
            found.setdefault(word.casefold(), set()).add(word)
    return {folded: frozenset(forms) for folded, forms in found.items()}


def _operators(text: str) -> tuple[str, ...]:
    runs = [match for match in _OPERATOR.finditer(text) if match.lastgroup == "operator"]
    return tuple(operator for match in runs if (operator := _operator(text, match)))


def _operator(text: str, match: re.Match[str]) -> str:
    """Return the operator that a run of signs is, "" where it is punctuation."""
    run, start, end = match[0], match.start(), match.end()
    before, after = text[start - 1 : start], text[end : end + 1]
    spaced = not before.strip() and not after.strip()
    if run == "-" and not before.strip(" (") and after.isdigit():
        return "-" if text[:start].rstrip()[-1:].isdigit() else "neg"
    if run in STRONG or spaced:
        prose = run in {"-", "--", "&", "!", "!!", "!!!"} and not _beside_number(text, start, end)
        return "" if prose and run != "!" else run
    if run[-1] == "-" and run[:-1] in STRONG and after.isdigit():
        return run[:-1]
    joined = (before.isalnum() or before in _OPERAND_ENDS) and (after.isalnum() or after in _OPERAND_BEGINS)
    if joined and run[0] != "!" and _beside_number(text, start, end):
        return run
    return ""


def _beside_number(text: str, start: int, end: int) -> bool:
    """Whether one operand at least is a number, a single letter, or in brackets."""
    left, right = text[max(start - 3, 0) : start].rstrip(" "), text[end : end + 3].lstrip(" ")
    return (
        (left[-1:].isdigit() or left[-1:] == ")" or (left[-1:].isalpha() and not left[-2:-1].isalnum()))
        and (right[:1].isalnum() or right[:1] in _OPERAND_BEGINS)
    ) or (right[:1].isdigit() and bool(left) and (left[-1].isalnum() or left[-1] in _OPERAND_ENDS))


def _measures(text: str) -> tuple[tuple[str, str], ...]:
    return tuple(
        (_NUMBERS.get(number, number.replace(",", "")), _UNITS[name]) for number, name in _MEASURE.findall(text)
    )


def without_accents(word: str) -> str:
    """Return a word in letters without marks."""
    parts = unicodedata.normalize("NFKD", word.translate(_LETTERS_APART))
    return "".join(letter for letter in parts if not unicodedata.combining(letter))


def bare(text: str) -> list[str]:
    """Return words and numbers alone, without case."""
    return _BARE.findall(text.casefold())


def brackets(text: str) -> list[str]:
    """Return the brackets of a text in their order, between its words."""
    return re.findall(r"[()]|\w+", text)


def layout(text: str) -> list[str]:
    """Return the lines of a text as they must stay: where one was not broken by chance, with its indentation."""
    lines: list[str] = []
    for line in text.strip().expandtabs(8).split("\n"):
        bare_line = " ".join(line.split())
        if not bare_line:
            continue
        indent = len(line) - len(line.lstrip())
        if lines and not indent and (len(lines[-1]) >= _FLOWING or lines[-1][-1:] in ".,!?;"):
            lines[-1] += " " + bare_line
        else:
            lines.append(" " * indent + bare_line)
    return lines


def quotes(text: str) -> list[str]:
    """Return what is quoted, with the white space in it."""
    return re.findall(r"\"[^\"\n]*\"|(?<!\w)'[^'\n]*'(?!\w)|`[^`\n]*`", text)


def typing(words: tuple[str, ...]) -> str:
    """Return how a text is typed throughout: lower, upper, title; "" where its capitals may say something."""
    letters = "".join(words)
    if letters == letters.lower():
        return "lower"
    if letters == letters.upper():
        return "upper"
    longer = [word for word in words if len(word) > 3 and word[0].isalpha()]
    if len(longer) > 1 and all(word[0].isupper() for word in longer):
        return "title"
    return ""


def case_tells(word: str) -> bool:
    """Whether the case of a word says something even where the rest of its text is typed in one case."""
    return not _PROSE.match(word) or word.casefold() in BY_CASE or bool(re.match(r"[a-z]{2,}[A-Z]", word))


def amount(folded: str) -> bool:
    """Whether this is a time, a rank or a number of thousands, which are typed in any case."""
    return _AMOUNT.match(folded) is not None


def short_code(word: str) -> bool:
    """Whether this is a name or an amount of letters and digits (PS4, 10AM) rather than a code."""
    return _SHORT.match(word) is not None
