"""Labelled pairs, one JSON object a line, plain or gzip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec

from cacheproxy.errors import ConfigError
from cacheproxy.evaluate.lines import read_rows

if TYPE_CHECKING:
    from pathlib import Path

_FORM = '{"a": text, "b": text, "label": 0|1}'


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledPair:
    """May `b` be served `a`'s cached answer? `label` says so; an empty `category` or `split` was not given."""

    a: str
    b: str
    label: bool
    category: str = ""
    split: Literal["", "choose", "measure"] = ""
    """Which half of a calibration it belongs to, where more must be kept apart than the questions: intents, sources."""


class _Row(msgspec.Struct):
    a: str
    b: str
    label: bool | int | None = None
    same_answer: bool | int | None = None
    category: str | None = None
    split: Literal["", "choose", "measure"] = ""


def read_pairs(file: Path) -> list[LabelledPair]:
    """Read every pair, at least one. Fields beyond the contract's are ignored, and so are empty lines.

    Raises ConfigError as `file:line: what is wrong`, never quoting a text.
    """
    pairs = [
        LabelledPair(a=row.a, b=row.b, label=_label(row, where), category=row.category or "", split=row.split)
        for where, row in read_rows(file, _Row, _FORM)
    ]
    if not pairs:
        raise ConfigError(f"{file}: holds no pair; each line must be {_FORM}")
    return pairs


def _label(row: _Row, where: str) -> bool:
    given = {value for value in (row.label, row.same_answer) if value is not None}
    if not given:
        raise ConfigError(f"{where}: neither label nor same_answer; each line must be {_FORM}")
    if len(given) > 1:
        raise ConfigError(f"{where}: label and same_answer disagree; keep one")
    if not given <= {0, 1}:
        raise ConfigError(f"{where}: label must be 0 or 1 (same_answer: true or false)")
    return bool(given.pop())
