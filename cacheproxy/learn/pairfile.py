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

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

FILE = "training.sqlite3"
FORM = Form(
    what="training pairs",
    mark=0x63707470,  # `cptp`
    version=2,
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
    second TEXT NOT NULL DEFAULT '',
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
    upgrades={
        1: """
ALTER TABLE pairs ADD COLUMN second TEXT NOT NULL DEFAULT '';
PRAGMA user_version = 2;
"""
    },
)

_HELD = 5
"""One group in so many is never trained on."""
_READ_TIMEOUT_S = 10.0
_CHUNK_ROWS = 4096
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
    """(n,) about a fifth of the groups, never trained on: by them a model is judged."""
    texts: tuple[tuple[str, str], ...] | None
    """Both questions, ("", "") of a row from when texts were not kept; None where no row has any."""


def read_pairs(path: Path, base: str) -> PairRows:
    """Return the pairs that were embedded by the encoder of fingerprint `base`; the file is not changed.

    Rows that are added never make a group held that was trained on; a held one is trained on from when a pair joins it
    with one that is. Only when a group's oldest rows go may it change sides at will. Safe beside a proxy that writes.
    Raises ConfigError when there is no such file, or it is not one of this version.
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
        if marks not in ([FORM.mark, version] for version in (*FORM.upgrades, FORM.version)):  # all of them hold _ROWS
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
    """Return each row's group, and whether it is held, for (tenant, kept question, asked question), oldest row first.

    Questions are told by the halves of their fingerprints. Of one tenant, equal vectors are one question, too: the same
    text may have been asked of another model.
    """
    groups = _Groups()
    marks = [_marks(rows).tolist() for rows in vectors]
    joined = [
        groups.join(((tenant, kept), (tenant, asked), (tenant, a), (tenant, b)), kept)
        for (tenant, kept, asked), a, b in zip(told, *marks, strict=True)
    ]
    found, of_row = np.unique(np.array([groups.find(at) for at in joined], dtype=np.int64), return_inverse=True)
    held = np.array([groups.held[at] for at in found.tolist()], dtype=np.bool_)
    return of_row.astype(np.int64), held[of_row]


class _Groups:
    """Groups as they came to be, row by row: who was trained on once must never judge a model.

    A new group is held by the digest of its first kept question. Who joins it changes nothing, and where two become
    one, it is held only if both were.
    """

    def __init__(self) -> None:
        self.held: list[bool] = []
        self._into: list[int] = []
        self._of: dict[tuple[str, bytes | int], int] = {}

    def join(self, names: Iterable[tuple[str, bytes | int]], kept: bytes) -> int:
        """Put the questions of a row, told by all their names, into one group, and return it."""
        names = tuple(names)
        known = {self.find(at) for name in names if (at := self._of.get(name)) is not None}
        group = min(known, default=len(self.held))
        if known:
            self.held[group] = all(self.held[at] for at in known)
        else:
            self.held.append(_is_held(kept))
            self._into.append(group)
        for at in known:
            self._into[at] = group
        self._of.update((name, group) for name in names)
        return group

    def find(self, group: int) -> int:
        """Return the group that a group is part of by now."""
        while self._into[group] != group:
            self._into[group] = group = self._into[self._into[group]]
        return group


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
