"""Evaluation files: one JSON object a line, plain or gzip."""

from __future__ import annotations

import gzip
import zlib
from typing import TYPE_CHECKING, TypeVar

import msgspec

from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

T = TypeVar("T")


def read_rows(file: Path, row: type[T], form: str) -> Iterator[tuple[str, T]]:
    """Yield `file:line` and the row of every line that is not empty. Fields beyond the row's are ignored.

    Raises ConfigError as `file:line: what is wrong`, never quoting a text; `form` is what each line must be like.
    """
    decoder = msgspec.json.Decoder(row)
    for number, line in enumerate(_read(file).split(b"\n"), start=1):
        if line.strip():
            try:
                yield f"{file}:{number}", decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as exc:
                raise ConfigError(f"{file}:{number}: {exc}; each line must be {form}") from exc


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
