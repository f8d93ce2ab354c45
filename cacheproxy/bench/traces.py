"""Arrival traces from files, as their makers publish them: Azure's LLM inference traces, Mooncake's, and BurstGPT.

Known by the names of their columns: CSV with a header, or JSON lines; either may be gzipped. None holds text.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from cacheproxy.bench.arrivals import Arrival
from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from typing import TextIO


def _of_date(told: str) -> float:
    return datetime.fromisoformat(told[:26]).timestamp()  # Azure writes units of 100 ns


def _of_ms(told: str) -> float:
    return float(told) / 1000


_TIMES: dict[str, Callable[[str], float]] = {
    "TIMESTAMP": _of_date,  # Azure
    "timestamp": _of_ms,  # Mooncake
    "Timestamp": float,  # BurstGPT
    "t": float,
}
_IN = ("ContextTokens", "input_length", "Request tokens", "in")
_OUT = ("GeneratedTokens", "output_length", "Response tokens", "out")
_SHAPE = "week1_min"
"""What a file holds that tells BurstGPT's load a minute instead of its requests."""


def read_trace(file: Path) -> Iterator[Arrival]:
    """Yield the arrivals of a trace in the order of their time. Raises ConfigError, naming the line.

    BurstGPT's failed requests (no response tokens) are left out.
    """
    before_s = float("-inf")
    with _opened(file) as text:
        for number, row in enumerate(_rows(text, file), start=1):
            arrival = _arrival(row, file, number)
            if arrival is None:
                continue
            if arrival.at_s < before_s:
                raise ConfigError(f"{file}: row {number} is earlier than the one before; sort the trace by time")
            before_s = arrival.at_s
            yield arrival
    if before_s == float("-inf"):
        raise ConfigError(f"{file}: holds no requests")


def read_shape(file: Path) -> list[float] | None:
    """Return the load of each minute, of a file that tells a load instead of requests; None of any other file.

    Such a file is one JSON object: `{"week1_min": [{"t": minute, "tps": tokens a second}, ...]}`.
    """
    with _opened(file) as text:
        start = text.read(64)
        if _SHAPE not in start:
            return None
        try:
            told = json.loads(start + text.read())[_SHAPE]
            load = {int(one["t"]): float(one["tps"]) for one in told}
        except (ValueError, TypeError, KeyError) as exc:
            raise ConfigError(f"{file}: {_SHAPE} is not a list of t (minute) and tps (tokens a second)") from exc
    if not load or min(load.values()) < 0 or not any(load.values()):
        raise ConfigError(f"{file}: {_SHAPE} tells no load")
    return [load.get(minute, 0.0) for minute in range(max(load) + 1)]


@contextmanager
def _opened(file: Path) -> Iterator[TextIO]:
    try:
        with file.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            plain = gzip.GzipFile(fileobj=raw) if packed else raw
            with io.TextIOWrapper(plain, encoding="utf-8-sig") as text:
                yield text
    except (OSError, UnicodeDecodeError, EOFError) as exc:
        raise ConfigError(f"{file}: cannot be read as a trace ({exc})") from exc


def _rows(text: TextIO, file: Path) -> Iterator[Mapping[str, Any]]:
    first = text.readline()
    if first.startswith("{"):
        for number, line in enumerate(_lines(first, text), start=1):
            try:
                row = json.loads(line)
            except ValueError as exc:
                raise ConfigError(f"{file}: line {number} is not JSON") from exc
            yield row if isinstance(row, dict) else {}
        return
    yield from csv.DictReader(text, fieldnames=[name.strip() for name in next(csv.reader([first]), [])])


def _lines(first: str, text: TextIO) -> Iterator[str]:
    yield first
    yield from (line for line in text if line.strip())


def _arrival(row: Mapping[str, Any], file: Path, number: int) -> Arrival | None:
    named = next((name for name in _TIMES if row.get(name) not in (None, "")), None)
    if named is None:
        raise ConfigError(
            f"{file}: row {number} has no time; known columns are {', '.join(_TIMES)} "
            "(Azure's, Mooncake's, BurstGPT's, or seconds)"
        )
    try:
        at_s = _TIMES[named](str(row[named]))
        tokens_in, tokens_out = (
            int(float(next((row[name] for name in names if row.get(name) not in (None, "")), 0)))
            for names in (_IN, _OUT)
        )
    except ValueError as exc:
        raise ConfigError(f"{file}: row {number}: {exc}") from exc
    if named == "Timestamp" and not tokens_out:
        return None
    blocks = row.get("hash_ids")
    key = "-".join(map(str, blocks)) if isinstance(blocks, list) else ""  # the same blocks: the same prompt
    return Arrival(at_s=at_s, tokens_in=tokens_in, tokens_out=tokens_out, key=key)
