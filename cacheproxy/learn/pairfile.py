"""The file of training pairs, as a training node reads it: vectors of both questions, and whether they match.

Two proxies' files never meet: a node trains on the one beside it, and what leaves it are weights and counts.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from cacheproxy.datafile import Form, unusable
from cacheproxy.errors import ConfigError
from cacheproxy.learn.labels import HALF

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

FILE = "training.sqlite3"
FORM = Form(
    what="training pairs",
    mark=0x63707470,  # `cptp`
    version=1,
    # Vectors are apart from what erasures look through; a page of 16 KiB wastes little on them.
    pragmas=("journal_mode = WAL", "secure_delete = ON", "foreign_keys = ON"),
    schema="""
PRAGMA page_size = 16384;
CREATE TABLE pairs (
    n INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    tenant TEXT NOT NULL,
    entry TEXT NOT NULL,
    question BLOB NOT NULL,
    category TEXT NOT NULL,
    user TEXT NOT NULL,
    kept BLOB NOT NULL,
    kept_at REAL NOT NULL,
    kept_category TEXT NOT NULL,
    kept_second TEXT NOT NULL,
    kept_user TEXT NOT NULL,
    matches INTEGER NOT NULL,
    source TEXT NOT NULL,
    base TEXT NOT NULL,
    UNIQUE (tenant, entry, question)
);
CREATE TABLE contents (
    n INTEGER PRIMARY KEY REFERENCES pairs (n) ON DELETE CASCADE,
    a BLOB NOT NULL,
    b BLOB NOT NULL,
    a_text TEXT NOT NULL,
    b_text TEXT NOT NULL
);
""",
)

_HELD = 5
"""One group in so many is never trained on."""
_READ_TIMEOUT_S = 10.0
_CHUNK_ROWS = 4096
_ODD = np.uint64(0x9E3779B97F4A7C15)
_ROWS = """
SELECT tenant, kept, question, matches, category, a, b, a_text, b_text FROM pairs JOIN contents USING (n)
WHERE base = ? ORDER BY n
"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairRows:
    """Labelled pairs of one encoder, the oldest first; n rows of d dimensions."""

    a: NDArray[np.float32]
    """(n, d) unit vectors of the kept questions."""
    b: NDArray[np.float32]
    """(n, d) unit vectors of the questions asked."""
    right: NDArray[np.bool_]
    """(n,) whether a's answer is right for b."""
    category: tuple[str, ...]
    group: NDArray[np.int64]
    """(n,) which rows share questions, directly or by others, within a tenant: never parted in training and held."""
    held: NDArray[np.bool_]
    """(n,) a fifth of the groups, never trained on: by them a model is judged."""
    texts: tuple[tuple[str, str], ...] | None
    """Both questions, ("", "") of a row from when texts were not kept; None where no row has any."""


def read_pairs(path: Path, base: str) -> PairRows:
    """Return the pairs that were embedded by the encoder of fingerprint `base`; the file is not changed.

    Whether a group is held depends on its questions alone: it stays so when rows are added elsewhere. Safe beside a
    proxy that writes. Raises ConfigError when there is no such file, or it is not one of this version.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no training pairs yet; set federated.collect where the proxy runs, see its docs")
    try:
        with contextlib.closing(_open(path)) as connection:
            connection.execute("BEGIN")  # one state of the file for all that follows
            return _read(connection, path, base)
    except sqlite3.Error as exc:
        raise unusable(path, FORM, exc) from exc


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=_READ_TIMEOUT_S)
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(connection.close)
        marks = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        if marks != [FORM.mark, FORM.version]:
            raise ConfigError(f"{path}: not a file of {FORM.what} of this version; name the proxy's {FILE}")
        on_failure.pop_all()
    return connection


def _read(connection: sqlite3.Connection, path: Path, base: str) -> PairRows:
    told: list[tuple[str, bytes, bytes]] = []
    right: list[int] = []
    category: list[str] = []
    texts: list[tuple[str, str]] = []
    raw, lengths = (bytearray(), bytearray()), set[int]()
    for tenant, kept, asked, matches, name, a, b, a_text, b_text in connection.execute(_ROWS, (base,)):
        told.append((tenant, kept, asked))
        right.append(matches)
        category.append(sys.intern(name))
        texts.append((a_text, b_text))
        lengths |= {len(a), len(b)}
        raw[0].extend(a)
        raw[1].extend(b)
    width = max(lengths, default=0)
    if len(lengths) > 1 or width % 4 or (told and not width):
        raise ConfigError(f"{path}: its vectors are not all of one length; the file is damaged, move it aside")
    vectors = [np.frombuffer(one, dtype="<f4").reshape(len(told), width // 4) for one in raw]
    groups, held = grouped(told, vectors)
    return PairRows(
        a=vectors[0].astype(np.float32, copy=False),
        b=vectors[1].astype(np.float32, copy=False),
        right=np.array(right, dtype=np.bool_),
        category=tuple(category),
        group=groups,
        held=held,
        texts=tuple(texts) if any(map(any, texts)) else None,
    )


def grouped(
    told: Sequence[tuple[str, bytes, bytes]], vectors: Sequence[NDArray[np.float32]]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return each row's group, and whether it is held, for (tenant, kept question, asked question) of each row.

    Questions are told by the halves of their fingerprints. Of one tenant, equal vectors are one question, too: the same
    text may have been asked of another model.
    """
    named = [kept + tenant.encode() for tenant, kept, _ in told], [asked + tenant.encode() for tenant, _, asked in told]
    names = sorted({*named[0], *named[1]})  # by the question first: a group's smallest node is its smallest question
    number = {name: at for at, name in enumerate(names)}
    kept, asked = (np.array([number[name] for name in side], dtype=np.int64) for side in named)
    tenants: dict[str, int] = {}
    salts = np.array([tenants.setdefault(tenant, len(tenants)) for tenant, *_ in told], dtype=np.uint64) * _ODD
    marks = np.concatenate([_marks(rows) + salts for rows in vectors])
    _, alike = np.unique(marks, return_inverse=True)
    same = np.split(alike.astype(np.int64) + len(names), 2)
    edges = np.concatenate([kept, kept, asked]), np.concatenate([asked, *same])
    smallest = _components(*edges, count=len(names) + len(marks))[kept]
    found, groups = np.unique(smallest, return_inverse=True)
    held = np.array([_is_held(names[at][:HALF]) for at in found.tolist()], dtype=np.bool_)
    return groups.astype(np.int64), held[groups]


def _components(one: NDArray[np.int64], other: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return for each of `count` nodes the smallest that it is connected with by edges, directly or not."""
    smallest = np.arange(count)
    while True:
        before = smallest.copy()
        least = np.minimum(before[one], before[other])
        for at in (one, other, before[one], before[other]):
            np.minimum.at(smallest, at, least)
        while not np.array_equal(smallest, further := smallest[smallest]):
            smallest = further
        if np.array_equal(smallest, before):
            return smallest


def _marks(rows: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return a number for each vector that equal vectors share, and hardly any others (64 bits)."""
    weights = np.random.default_rng(0).integers(1, 1 << 63, rows.shape[1], dtype=np.uint64) | np.uint64(1)
    bits = rows.view(np.uint32)
    made = np.empty(len(rows), dtype=np.uint64)
    for at in range(0, len(rows), _CHUNK_ROWS):
        made[at : at + _CHUNK_ROWS] = (bits[at : at + _CHUNK_ROWS].astype(np.uint64) * weights).sum(axis=1)
    return made


def _is_held(question: bytes) -> bool:
    return int.from_bytes(blake2b(question, digest_size=8).digest()) % _HELD == 0
