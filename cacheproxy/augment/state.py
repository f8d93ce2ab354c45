"""State: what augmentation learnt, held in memory and written behind, so that a restart does not start afresh.

Numbers only; no text is in the file. The one module of this room that is not pure.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from cacheproxy.augment.arms import Router, Terms
from cacheproxy.augment.gains import Gains
from cacheproxy.augment.helpful import Helpfulness
from cacheproxy.augment.observed import Observed
from cacheproxy.augment.worth import Standing
from cacheproxy.datafile import Form, empty_log
from cacheproxy.errors import AugmentUnavailable, ConfigError
from cacheproxy.filethread import FileThread

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Collection, Iterable, Iterator
    from pathlib import Path

log = structlog.get_logger()
T = TypeVar("T")

_FORM = Form(
    what="what augmentation learnt",
    mark=0x63706175,  # `cpau`
    version=2,
    pragmas=("journal_mode = WAL", "synchronous = NORMAL", "secure_delete = ON"),
    schema="""
CREATE TABLE learnt (part TEXT PRIMARY KEY, models TEXT NOT NULL, state BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE examples (
    entry_id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    category TEXT NOT NULL,
    user TEXT NOT NULL,
    tokens INTEGER NOT NULL,
    since_s REAL NOT NULL,
    at_s REAL NOT NULL,
    quality REAL NOT NULL,
    words REAL NOT NULL,
    offloads REAL NOT NULL,
    uses REAL NOT NULL,
    loss REAL NOT NULL,
    replays INTEGER NOT NULL,
    better REAL NOT NULL,
    pinned INTEGER NOT NULL,
    quarantined INTEGER NOT NULL
) WITHOUT ROWID;
""",
    upgrades={
        1: """
ALTER TABLE examples ADD COLUMN quarantined INTEGER NOT NULL DEFAULT 0;
PRAGMA user_version = 2;
"""
    },
)
_COLUMNS = tuple(field.name for field in fields(Standing))
_TIMEOUT_S = 30.0
_MOST_EXAMPLES = 100_000


class AugmentState:
    """Owns what is learnt. Use it as an async context manager, and call `tend` every few seconds.

    `models` says which models, and which encoder, all of it is about: what was learnt with others is not read, but for
    the standing of examples, which is of their own answers. What cannot be read starts afresh, and is said in the log;
    a file of another version is refused. A crash loses what was learnt since the last `tend`.
    """

    def __init__(
        self, path: Path, models: str, terms: Terms | None = None, *, most_examples: int = _MOST_EXAMPLES
    ) -> None:
        self.models = models
        self._terms = terms
        self._most = most_examples
        self.router = Router(terms)
        self.helpfulness = Helpfulness()
        self.gains = Gains()
        self.observed = Observed()
        self._examples: OrderedDict[str, Standing] = OrderedDict()
        self._counts: Counter[str] = Counter()
        self._changed: set[str] = set()
        self._gone: set[str] = set()
        self._written: dict[str, bytes] = {}
        self._file = FileThread(path, _FORM, AugmentUnavailable)

    async def __aenter__(self) -> AugmentState:
        learnt, rows = await self._file.open(self._load)
        self._take(learnt)
        for row in rows:
            one = Standing(**dict(zip(_COLUMNS, row, strict=True)))
            self._examples[one.entry_id] = replace(one, pinned=bool(one.pinned), quarantined=bool(one.quarantined))
            self._counts[one.category] += 1
        return self

    async def __aexit__(self, *exc: object) -> None:
        try:
            await self.tend()
        finally:
            await self._file.close()

    # Examples

    def standing(self, entry_id: str) -> Standing | None:
        """Return what is known of an example; None for one that is not known."""
        return self._examples.get(entry_id)

    def put(self, one: Standing) -> None:
        """Remember what is known of an example.

        Of too many, who changed longest ago is forgotten, but for what an operator pinned or quarantined.
        """
        before = self._examples.get(one.entry_id)
        self._counts[one.category] += 1
        if before is not None:
            self._counts[before.category] -= 1
        self._examples[one.entry_id] = one
        self._examples.move_to_end(one.entry_id)
        self._changed.add(one.entry_id)
        self._gone.discard(one.entry_id)
        if len(self._examples) > self._most:
            unmarked = (kept.entry_id for kept in self._examples.values() if not (kept.pinned or kept.quarantined))
            oldest = next(unmarked, one.entry_id)
            self.drop((oldest,))

    def drop(self, entry_ids: Iterable[str]) -> None:
        """Forget examples: their entries are gone, or they are not worth their room."""
        for entry_id in entry_ids:
            gone = self._examples.pop(entry_id, None)
            if gone is not None:
                self._counts[gone.category] -= 1
                self._changed.discard(entry_id)
                self._gone.add(entry_id)

    def standings(self, category: str = "") -> Iterator[Standing]:
        """Yield what is known of the examples of a category, or of all, who changed longest ago first."""
        return (one for one in list(self._examples.values()) if category in ("", one.category))

    def counts(self) -> dict[str, int]:
        """Return how many examples are known of each category that has any."""
        return {category: count for category, count in self._counts.items() if count}

    async def forget(self, meant: Callable[[Standing], bool], erased: Collection[str] = ()) -> int:
        """Forget examples that an erasure means, and entries that it erased: none can be read from the file.

        Returns how many were known. Raises AugmentUnavailable when the file could not be written: nothing of them is
        used any more, and it is to be called again. What models learnt are sums of categories, which tell of nobody.
        """
        ids = frozenset(erased)
        gone = [one.entry_id for one in self._examples.values() if one.entry_id in ids or meant(one)]
        self.drop(gone)
        await self.tend(erased={*gone, *ids})
        return len(gone)

    # The file

    async def tend(self, erased: Collection[str] = ()) -> None:
        """Write what changed. Raises AugmentUnavailable when that fails: it is tried again with the next call.

        `erased` leave no trace in the file.
        """
        changed, gone = self._changed, self._gone
        parts = {name: raw for name, raw in self._parts().items() if self._written.get(name) != raw}
        if not (parts or changed or gone or erased):
            return
        self._changed, self._gone = set(), set()
        rows = [_row(self._examples[entry_id]) for entry_id in changed]

        def work(connection: sqlite3.Connection) -> None:
            self._save(connection, parts, rows, {*gone, *erased})
            if erased:
                empty_log(connection)

        try:
            await self._file.do(
                work,
                timeout_s=_TIMEOUT_S,
                failure="what augmentation learnt could not be written; see the log and the disk",
            )
        except BaseException:  # cancelled, too: it may not have been written
            self._changed |= {entry_id for entry_id in changed if entry_id in self._examples}
            self._gone |= {entry_id for entry_id in (*gone, *erased) if entry_id not in self._examples}
            raise
        self._written.update(parts)

    def _parts(self) -> dict[str, bytes]:
        return {
            "router": self.router.to_bytes(),
            "helpfulness": self.helpfulness.to_bytes(),
            "gains": self.gains.to_bytes(),
            "observed": self.observed.to_bytes(),
        }

    def _save(
        self,
        connection: sqlite3.Connection,
        parts: dict[str, bytes],
        rows: list[tuple[object, ...]],
        gone: Collection[str],
    ) -> None:
        with connection:
            connection.executemany(
                "INSERT OR REPLACE INTO learnt VALUES (?, ?, ?)",
                ((name, self.models, raw) for name, raw in parts.items()),
            )
            places = ", ".join("?" * len(_COLUMNS))
            connection.executemany(
                f"INSERT OR REPLACE INTO examples ({', '.join(_COLUMNS)}) VALUES ({places})",
                rows,
            )
            connection.executemany("DELETE FROM examples WHERE entry_id = ?", ((entry_id,) for entry_id in gone))

    def _load(self, connection: sqlite3.Connection) -> tuple[dict[str, bytes], list[tuple[Any, ...]]]:
        learnt = connection.execute("SELECT part, state FROM learnt WHERE models = ?", (self.models,)).fetchall()
        rows = connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM examples ORDER BY at_s").fetchall()
        return dict(learnt), rows

    def _take(self, learnt: dict[str, bytes]) -> None:
        """Read each part by itself: one that cannot be read starts afresh."""
        self.router = self._read(learnt, "router", lambda raw: Router.from_bytes(raw, self._terms), self.router)
        self.helpfulness = self._read(learnt, "helpfulness", Helpfulness.from_bytes, self.helpfulness)
        self.gains = self._read(learnt, "gains", Gains.from_bytes, self.gains)
        self.observed = self._read(learnt, "observed", Observed.from_bytes, self.observed)

    def _read(self, learnt: dict[str, bytes], part: str, read: Callable[[bytes], T], fresh: T) -> T:
        raw = learnt.get(part)
        if raw is None:
            return fresh
        try:
            found = read(raw)
        except ConfigError as exc:
            log.warning("augment_state_unreadable", part=part, error=exc.message)
            return fresh
        self._written[part] = raw
        return found


def _row(one: Standing) -> tuple[object, ...]:
    return tuple(getattr(one, name) for name in _COLUMNS)
