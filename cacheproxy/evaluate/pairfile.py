"""Labelled pairs, one JSON object a line, plain or gzip."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FORM = '{"a": text, "b": text, "label": 0|1}'


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledPair:
    """May `b` be served `a`'s cached answer? `label` says so; an empty `category` means that the file gave none."""

    a: str
    b: str
    label: bool
    category: str = ""


class _Row(msgspec.Struct):
    a: str
    b: str
    label: bool | int | None = None
    same_answer: bool | int | None = None
    category: str | None = None


def read_pairs(file: Path) -> list[LabelledPair]:
    """Read every pair, at least one. Fields beyond the contract's are ignored, and so are empty lines.

    Raises ConfigError as `file:line: what is wrong`, never quoting a text.
    """
    decoder = msgspec.json.Decoder(_Row)
    pairs = []
    for number, line in enumerate(_read(file).split(b"\n"), start=1):
        if line.strip():
            try:
                row = decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as exc:
                raise ConfigError(f"{file}:{number}: {exc}; each line must be {_FORM}") from exc
            label = _label(row, f"{file}:{number}")
            pairs.append(LabelledPair(a=row.a, b=row.b, label=label, category=row.category or ""))
    if not pairs:
        raise ConfigError(f"{file}: holds no pair; each line must be {_FORM}")
    return pairs


def _read(file: Path) -> bytes:
    try:
        content = file.read_bytes()
        if content.startswith(_GZIP_MAGIC):
            content = gzip.decompress(content)
    except OSError as exc:
        raise ConfigError(f"{file}: cannot be read ({exc.strerror or exc}); give a JSONL file, plain or gzip") from exc
    except (EOFError, zlib.error) as exc:
        raise ConfigError(f"{file}: damaged gzip ({exc}); fetch the file again") from exc
    return content.removeprefix(_BYTE_ORDER_MARK)


def _label(row: _Row, where: str) -> bool:
    given = {value for value in (row.label, row.same_answer) if value is not None}
    if not given:
        raise ConfigError(f"{where}: neither label nor same_answer; each line must be {_FORM}")
    if len(given) > 1:
        raise ConfigError(f"{where}: label and same_answer disagree; keep one")
    if not given <= {0, 1}:
        raise ConfigError(f"{where}: label must be 0 or 1 (same_answer: true or false)")
    return bool(given.pop())
