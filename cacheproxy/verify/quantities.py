"""Numbers, dates and times in a list of words: read once, brought to values that can be compared."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheproxy.verify.vocabulary import (
    CURRENCIES,
    FRACTIONS,
    LARGE,
    MONTHS,
    ORDINALS,
    PERIODS,
    PRODUCTS,
    RELATIVE,
    RELATIVE_DAYS,
    SCALES,
    SEASONS,
    SMALL,
    SPANS,
    UNITS,
    WEEKDAYS,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

_NUMBER = re.compile(r"([$€£¥₹]?)(\d[\d,]*(?:\.\d+)*)(%|[^\W\d_]{0,12})\Z")
_CLOCK = re.compile(r"(\d{1,2})[:.](\d{2})(?::\d{2})?([ap]?m?)\Z")
_DAY = re.compile(r"(\d{1,4})[-/](\d{1,2})[-/](\d{1,4})\Z")
_FRACTION = re.compile(r"([1-9])/([2-9]|10)\Z")
_LIST = re.compile(r"[$€£¥₹]?\d+(?:[,.]\d+)*(?:[-/:+]\d+(?:[,.]\d+)*)+[^\W\d_]{0,12}\Z")
_TO_TWELVE = 12
_CENTURIES = frozenset({"17", "18", "19", "20"})
ORDER = "th"
"""The unit of ordinals."""


_SPELLED = frozenset((*SMALL, *LARGE, *FRACTIONS, *ORDINALS))
_DATED = frozenset(
    (
        *MONTHS, *WEEKDAYS, *RELATIVE_DAYS, *SEASONS, *RELATIVE, *PERIODS,
        "noon", "midday", "midnight", "per", "a", "an", "each", "every",
    )
)  # fmt: skip
"""Words that `_calendar` looks at."""
_PARTS = {
    "half": 2,
    "halves": 2,
    "third": 3,
    "thirds": 3,
    "quarters": 4,
    "fourths": 4,
    "fifth": 5,
    "fifths": 5,
    "tenth": 10,
    "tenths": 10,
}


def _hundredth(value: str) -> str:
    return f"{float(value) / 100:.6g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """A number with what it counts. `value` is as written, `base` in the family's base unit; both compare as text."""

    value: str
    base: str
    unit: str = ""
    version: bool = False

    def same(self, other: Quantity) -> bool:
        """Whether both say the same amount; one without a unit may be any."""
        if self.version and other.version:
            return self.value == other.value
        if self.unit == "percent" and other.value == _hundredth(self.value):
            return True
        if other.unit == "percent" and self.value == _hundredth(other.value):
            return True
        if self.unit and other.unit and ORDER not in {self.unit, other.unit}:
            return self.unit == other.unit and self.base == other.base
        return self.value == other.value or self.base == other.base


@dataclass(slots=True, kw_only=True)
class Found:
    """What was read of one text; `taken` are the places of its words."""

    quantities: list[Quantity]
    dates: set[str]
    periods: set[str]
    taken: set[int]


def find(words: Sequence[str], cased: Sequence[str]) -> Found:
    """Read the numbers, dates, times and periods of lower-case `words`; `cased` are the same as written.

    A date part is text: y2024 a year, m3 a month, d5 a day of it, w0 Monday, t420 minutes after midnight, anything else
    a relative day or a season.
    """
    found = Found(quantities=[], dates=set(), periods=set(), taken=set())
    at, end = 0, len(words)
    while at < end:
        word = words[at]
        if word in _SPELLED:
            at = _spelled(words, at, found)
        elif word in _DATED:
            at = _calendar(words, cased, at, found)
        elif word[0].isdigit() or word[0] in CURRENCIES:
            at = _digits(words, at, found)
        else:
            at += 1
    return found


def _after(words: Sequence[str], at: int) -> str:
    return words[at] if 0 <= at < len(words) else ""


def _digits(words: Sequence[str], at: int, found: Found) -> int:
    word, before, after = words[at], _after(words, at - 1), _after(words, at + 1)
    found.taken.add(at)
    if (clock := _CLOCK.match(word)) and (":" in word or clock[3] or after in {"am", "pm"}):
        return _clock(int(clock[1]), int(clock[2]), clock[3], words, at, found)
    if day := _DAY.match(word):
        _date(int(day[1]), int(day[2]), int(day[3]), found)
        return at + 1
    if part := _FRACTION.match(word):
        value = f"{int(part[1]) / int(part[2]):.6g}"
        found.quantities.append(Quantity(value=value, base=value))
        return at + 1
    if _LIST.match(word):
        return _list(words, at, found)
    number = _NUMBER.match(word)
    if number is None:
        found.quantities.append(Quantity(value=word, base=word, version=True))
        return at + 1
    money, digits, tail = number[1], number[2].replace(",", ""), number[3]
    if tail in {"am", "pm"} or (not tail and after in {"am", "pm", "o'clock"}):
        return _clock(int(float(digits.split(".")[0])), 0, tail, words, at, found)
    if digits.count(".") > 1:
        found.quantities.append(Quantity(value=digits, base=digits, version=True))
        return at + 1
    if tail in {"st", "nd", "rd", "th"}:
        return _ordinal(int(digits.split(".")[0] or 0), words, at, found)
    plain = not (money or "." in digits or "," in number[2])
    if plain and (date := _date_part(digits, tail, words, at)):
        found.dates.add(date)
        return at + 1
    if not (money or tail) and before in PRODUCTS and after not in UNITS:
        found.quantities.append(Quantity(value=digits, base=digits, version=True))
        return at + 1
    amount = float(digits)
    if tail in SCALES and (tail != "m" or money) and (tail != "b" or money):
        amount, tail = amount * SCALES[tail], ""
    return _amount(amount, words, at + 1, found, CURRENCIES.get(money, ""), tail)


def _date_part(digits: str, tail: str, words: Sequence[str], at: int) -> str:
    """Return the decade, year or day of a month that digits are, "" for a mere number."""
    after, before = _after(words, at + 1), _after(words, at - 1)
    if tail == "s" and len(digits) in {2, 4} and digits.endswith("0"):
        return "y" + digits[-2:] + "s"
    if tail:
        return ""
    if len(digits) == 4 and digits[:2] in _CENTURIES and after not in UNITS and before not in PRODUCTS:
        return "y" + digits
    if len(digits) <= 2 and (_month(before) or _month(after) or (after == "of" and _month(_after(words, at + 2)))):
        return f"d{int(digits)}"
    return ""


def _list(words: Sequence[str], at: int, found: Found) -> int:
    """Take a range or a list as its numbers: 12-15, 500/1000."""
    after, before = _after(words, at + 1), _after(words, at - 1)
    for digits in re.findall(r"\d+(?:[,.]\d+)*", words[at]):
        plain = digits.replace(",", "")
        if (_month(after) or _month(before)) and len(plain) <= 2:
            found.dates.add("d" + str(int(plain)))
        elif len(plain) == 4 and plain[:2] in {"19", "20"} and not found.quantities:
            found.dates.add("y" + plain)
        else:
            _amount(float(plain) if plain.count(".") < 2 else 0.0, words, at + 1, found, "", "")
    return at + 1


def _month(word: str) -> bool:
    return word in MONTHS


def _amount(value: float, words: Sequence[str], at: int, found: Found, money: str, tail: str) -> int:
    """Take scale words and the unit that follow the number; return the place after them."""
    while (scale := LARGE.get(_after(words, at))) is not None:
        value *= scale
        found.taken.add(at)
        at += 1
        rest = at + (_after(words, at) == "and")
        if scale == 100 and 0 < (more := SMALL.get(_after(words, rest), 0)) < 100:
            value += more
            found.taken.add(rest)
            at = rest + 1
    name = "percent" if tail == "%" else tail
    if not money and not name and (nearest := _after(words, at)):
        name = nearest if nearest in UNITS else ""
        if not name and nearest == "per" and _after(words, at + 1) == "cent":
            name = "percent"
            found.taken.update((at, at + 1))
            at += 2
        elif name or nearest in {"%", "degrees", "degree"}:
            name = name or ("percent" if nearest == "%" else "")
            found.taken.add(at)
            at += 1
    unit, factor = UNITS.get(name, ("", 1.0))
    if money:
        unit, factor = money, 1.0
        if _after(words, at) in {"dollar", "dollars", "euro", "euros", "pounds"}:
            found.taken.add(at)
            at += 1
    if unit == "length" and _after(words, at) in {"per", "an"} and _after(words, at + 1) == "hour":
        unit, factor = "speed", factor / UNITS["mile"][1]
        at += 2
    if name and not unit:
        unit = name
    found.quantities.append(Quantity(value=f"{value:.6g}", base=f"{value * factor:.4g}", unit=unit))
    return at


def _spelled(words: Sequence[str], at: int, found: Found) -> int:
    word, after, before = words[at], _after(words, at + 1), _after(words, at - 1)
    if word in ORDINALS:
        if word == "second" and (before in {"a", "per", "each", "every", "one"} or before[:1].isdigit()):
            return at + 1
        if word == "first" and before in {"at"}:
            return at + 1
        if word in {"third", "fourth", "fifth", "tenth"} and before in {"a", "one"} and after == "of":
            return _amount(1 / ORDINALS[word], words, at + 1, found, "", "")
        return _ordinal(ORDINALS[word], words, at, found)
    if word == "one" and not (after in UNITS or after in LARGE or after in {"or", "to"}):
        return at + 1
    if word in LARGE and word not in {"dozen"} and before not in {"a", "one", "half"}:
        return at + 1
    if word in {"double", "triple"}:
        return at + 1
    found.taken.add(at)
    value = FRACTIONS.get(word) or LARGE.get(word) or float(SMALL.get(word, 0))
    at += 1
    if word in SMALL and 20 <= value < 100 and 0 < SMALL.get(after, 0) < 10:
        value += SMALL[after]
        found.taken.add(at)
        at += 1
    if (part := _PARTS.get(_after(words, at))) is not None:
        value /= part
        found.taken.add(at)
        at += 1
    if word == "half" and _after(words, at) in {"a", "an"}:
        at += 1
    return _amount(value, words, at, found, "", "")


def _ordinal(value: int, words: Sequence[str], at: int, found: Found) -> int:
    found.taken.add(at)
    after, before = _after(words, at + 1), _after(words, at - 1)
    if _month(after) or _month(before) or (after == "of" and _month(_after(words, at + 2))):
        found.dates.add(f"d{value}")
    else:
        found.quantities.append(Quantity(value=str(value), base=str(value), unit=ORDER))
    return at + 1


def _clock(hour: int, minute: int, half: str, words: Sequence[str], at: int, found: Found) -> int:
    if not half and _after(words, at + 1) in {"am", "pm", "o'clock"}:
        half = words[at + 1]
        found.taken.add(at + 1)
    used = 2 if at + 1 in found.taken else 1
    if half.startswith("p") and hour < _TO_TWELVE:
        hour += _TO_TWELVE
    elif half.startswith("a") and hour == _TO_TWELVE:
        hour = 0
    found.dates.add(f"t{hour * 60 + minute}")
    return at + used


def _date(first: int, second: int, third: int, found: Found) -> None:
    year, month, day = (first, second, third) if first > 31 else (third, first, second)
    if month > _TO_TWELVE:
        month, day = day, month
    found.dates.update((f"y{year if year > 99 else 2000 + year}", f"m{month}", f"d{day}"))


def _calendar(words: Sequence[str], cased: Sequence[str], at: int, found: Found) -> int:
    word, before, after = words[at], _after(words, at - 1), _after(words, at + 1)
    part = ""
    if word in MONTHS:
        near = (
            before[:1].isdigit()
            or after[:1].isdigit()
            or before in {"in", "of", "since", "until", "by", "last", "next", "on"}
        )
        if near or (
            word not in {"may", "march", "mar"} and not (word in {"jan", "sep", "dec"} and not cased[at][0].isupper())
        ):
            part = f"m{MONTHS[word]}"
    elif word in WEEKDAYS and not (word in {"mon", "wed", "sat", "sun"} and not cased[at][0].isupper()):
        part = f"w{WEEKDAYS[word]}"
    elif word in RELATIVE_DAYS or word in SEASONS:
        part = "" if word == "now" or before in {"before", "after"} or (word == "spring" and not before) else word
        part = "today" if part == "tonight" else part
    elif word in {"noon", "midday"}:
        part = "t720"
    elif word == "midnight":
        part = "t0"
    elif word in RELATIVE and after in SPANS:
        found.dates.add(
            ("last" if word in {"previous", "past"} else "next" if word == "coming" else word) + " " + SPANS[after]
        )
        found.taken.update((at, at + 1))
        return at + 2
    elif word in PERIODS:
        found.periods.add(PERIODS[word])
        found.taken.add(at)
    elif word in {"per", "a", "an", "each", "every"} and after in SPANS:
        found.periods.add("day" if SPANS[after] == "night" else SPANS[after])
        found.taken.add(at + 1)
        return at + 2
    if part:
        found.dates.add(part)
        found.taken.add(at)
    return at + 1
