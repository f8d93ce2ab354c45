"""The file of training pairs, as the proxy writes it: the last word on a pair counts, and the oldest pairs go first."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from cacheproxy.datafile import empty_log
from cacheproxy.errors import TrainingUnavailable
from cacheproxy.filethread import FileThread
from cacheproxy.learn.pairfile import FORM
from cacheproxy.learn.traces import Trace, meant, of_entries
from cacheproxy.model import Selector

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Collection, Iterable
    from pathlib import Path

_TIMEOUT_S = 2.0
_ERASE_TIMEOUT_S = 30.0
_TOLD = (
    "SELECT n, at, tenant, entry, question, category, second, user,"
    " kept, kept_at, kept_category, kept_second, kept_user"
)
Erases: TypeAlias = "Callable[[tuple[Trace, Trace], tuple[Trace, Trace]], bool]"
"""Whether an erasure means a pair, by what is told of the question asked and the kept one, in both categories each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRow:
    """One labelled pair: of the entry's own question what starts with `kept`, of the question asked the rest.

    `kept` and `question` are 16 bytes of each one's exact fingerprint, `a` and `b` their unit vectors as little-endian
    float32, made by the encoder of fingerprint `base`. Texts are "" unless they are kept.
    """

    at_s: float
    tenant: str
    entry_id: str
    question: bytes
    category: str
    user: str
    kept: bytes
    kept_at_s: float
    kept_category: str
    kept_second: str
    kept_user: str
    right: bool
    source: str
    base: str
    a: bytes = field(repr=False)
    b: bytes = field(repr=False)
    second: str = ""
    """What the question asked may be of as well; as `kept_second` of the kept one."""
    a_text: str = field(default="", repr=False)
    b_text: str = field(default="", repr=False)

    def traces(self) -> tuple[tuple[Trace, Trace], tuple[Trace, Trace]]:
        """Return what is told of the question asked, and of the kept one, each in both of its categories."""
        asked = Trace(self.at_s, self.tenant, self.entry_id, self.question, self.category, self.user)
        kept = Trace(self.kept_at_s, self.tenant, self.entry_id, self.kept, self.kept_category, self.kept_user)
        return _both(asked, self.second), _both(kept, self.kept_second)


class PairWriter:
    """At most `most` pairs on disk. Use it as an async context manager.

    What is being made of a question when something is erased may be of what is erased: ask for the `fence` first, and
    give it with the pair, which is then not written.
    """

    def __init__(self, path: Path, most: int) -> None:
        self.fence = 0
        self._most = most
        self._file = FileThread(path, FORM, TrainingUnavailable)

    async def __aenter__(self) -> PairWriter:
        await self._file.open(self._trim)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._file.close()

    async def record(self, row: PairRow, fence: int) -> bool:
        """Write a pair in place of an earlier word on it; return False where something was erased since `fence`.

        Raises TrainingUnavailable.
        """
        return await self._file.do(
            partial(self._insert, row=row, fence=fence),
            timeout_s=_TIMEOUT_S,
            failure="a training pair could not be written; see the log and the disk",
        )

    async def forget(self, selector: Selector, erased: Collection[str] = ()) -> int:
        """Remove what a selector means of either question, and pairs with the entries `erased`; return how many.

        An entry that the selector names by its id need not be there any more. Nothing of it can be read from the file
        afterwards. Raises TrainingUnavailable; then it must be asked again.
        """
        return await self._remove(erasing(selector, erased))

    async def forget_entries(self, selector: Selector, erased: Collection[str] = ()) -> int:
        """Remove pairs with the entries `erased`, or named by the selector, and nothing else; as `forget`."""
        ids, none = frozenset(erased), Selector()
        return await self._remove(
            lambda asked, kept: any(meant(none, ids, one) for one in (*asked, *kept)) or _named(selector, kept)
        )

    async def forget_categories(self, names: Collection[str]) -> int:
        """Remove pairs of which either question is, or may be, of one of these categories. Raises as `forget`."""
        return await self._remove(lambda asked, kept: any(one.category in names for one in (*asked, *kept)))

    async def _remove(self, goes: Erases) -> int:
        self.fence += 1
        return await self._file.do(
            partial(_erase, goes=goes),
            timeout_s=_ERASE_TIMEOUT_S,
            failure="training pairs could not be erased; see the log and the disk",
        )

    def _insert(self, connection: sqlite3.Connection, row: PairRow, fence: int) -> bool:
        if fence != self.fence:
            return False
        told = (row.at_s, row.tenant, row.entry_id, row.question, row.category, row.second, row.user)
        kept = (row.kept, row.kept_at_s, row.kept_category, row.kept_second, row.kept_user)
        with connection:
            connection.execute(
                "DELETE FROM pairs WHERE tenant = ? AND entry = ? AND question = ?",
                (row.tenant, row.entry_id, row.question),
            )
            at = connection.execute(
                "INSERT INTO pairs (at, tenant, entry, question, category, second, user, kept, kept_at,"
                " kept_category, kept_second, kept_user, matches, source, base)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*told, *kept, int(row.right), row.source, row.base),
            ).lastrowid
            connection.execute(
                "INSERT INTO contents VALUES (?, ?, ?, ?, ?)", (at, row.a, row.b, row.a_text, row.b_text)
            )
        self._trim(connection)
        return True

    def _trim(self, connection: sqlite3.Connection) -> None:
        (count,) = connection.execute("SELECT count(*) FROM pairs").fetchone()
        if count > self._most:
            with connection:
                connection.execute(
                    "DELETE FROM pairs WHERE n IN (SELECT n FROM pairs ORDER BY n LIMIT ?)", (count - self._most,)
                )


def erasing(selector: Selector, erased: Collection[str] = ()) -> Erases:
    """Return which pairs an erasure means, as `PairWriter.forget`."""
    ids = frozenset(erased)
    return lambda asked, kept: any(meant(selector, ids, one) for one in (*asked, *kept)) or _named(selector, kept)


def _named(selector: Selector, kept: tuple[Trace, Trace]) -> bool:
    """Whether a selector names a kept question's entry by its id, and means it, as far as a pair knows it."""
    rest = replace(selector, ids=())
    if kept[0].entry_id not in selector.ids or of_entries(rest):
        return False
    return not rest or any(meant(rest, frozenset(), one) for one in kept)


def _erase(connection: sqlite3.Connection, goes: Erases) -> int:
    with connection:
        gone = [n for n, asked, kept in _traces(connection) if goes(asked, kept)]
        connection.executemany("DELETE FROM pairs WHERE n = ?", ((n,) for n in gone))
    empty_log(connection)
    return len(gone)


def _traces(connection: sqlite3.Connection) -> Iterable[tuple[int, tuple[Trace, Trace], tuple[Trace, Trace]]]:
    """Yield each row with what it tells, as `PairRow.traces`."""
    for n, at_s, tenant, entry_id, question, category, second, user, *rest in connection.execute(f"{_TOLD} FROM pairs"):
        kept, kept_at_s, kept_category, kept_second, kept_user = rest
        asked = Trace(at_s, tenant, entry_id, question, category, user)
        of_kept = Trace(kept_at_s, tenant, entry_id, kept, kept_category, kept_user)
        yield n, _both(asked, second), _both(of_kept, kept_second)


def _both(trace: Trace, second: str) -> tuple[Trace, Trace]:
    return trace, trace._replace(category=second) if second else trace
