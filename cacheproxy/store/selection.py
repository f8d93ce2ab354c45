"""Which entries a selector means: asked of an entry in memory, and of a store's file in steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheproxy.model import ALIAS_TAG
from cacheproxy.store.codec import RecordError, decode, open_record

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence

    from cacheproxy.model import Entry, Selector
    from cacheproxy.store.meta import Meta

STEP_ROWS = 10_000
"""Rows that one step looks through for columns that no index answers: some 5 ms of the reader's thread."""
STEP_TEXTS = 256
STEP_BYTES = 4 * 1024 * 1024
"""Records that one step reads."""
IDS_AT_ONCE = 500
_MADE_OF = "n IN (SELECT tags.n FROM tags WHERE tags.tag IN"


def meaning(selector: Selector) -> Callable[[Entry | Meta], bool]:
    """Return what tells whether an entry is meant; an empty selector means each. What is known of one has no words."""
    ids, words, parents = frozenset(selector.ids), selector.text.casefold(), frozenset(selector.parents)

    def means(entry: Entry | Meta) -> bool:
        return (
            (not ids or entry.id in ids)
            and (not parents or not parents.isdisjoint(entry.parents))
            and selector.tenant in {"", entry.tenant}
            and selector.namespace in {"", entry.namespace}
            and selector.category in {"", entry.partition.category, entry.second}
            and selector.model in {"", entry.model}
            and selector.user in {"", entry.user}
            and (not selector.tag or selector.tag in entry.tags)
            and (selector.before_s is None or entry.created_s < selector.before_s)
            and (not words or words in entry.text.casefold())
        )

    return means


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Ids that one step found, in row order. The next step begins after row `last`; None: there is nothing more."""

    ids: list[str]
    damaged: list[str]
    last: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """Entries that one step found, otherwise as `Chosen`."""

    entries: list[Entry]
    damaged: list[str]
    last: int | None


def choose(connection: sqlite3.Connection, selector: Selector, after: int) -> Chosen:
    """Take one step through all rows that are meant, gone ones included."""
    rows, last = _rows(connection, selector, after, float("-inf"), STEP_TEXTS if selector.text else STEP_ROWS)
    if not selector.text:
        return Chosen(ids=[entry_id for _, entry_id in rows], damaged=[], last=last)
    ids: list[str] = []
    damaged: list[str] = []
    words, read = selector.text.casefold(), 0
    for n, entry_id in rows:
        if read > STEP_BYTES:
            break
        (record,) = connection.execute("SELECT record FROM documents WHERE n = ?", (n,)).fetchone() or (None,)
        read += len(record or b"")
        after = n
        try:
            if words in open_record(record, entry_id).text.casefold():
                ids.append(entry_id)
        except RecordError:
            damaged.append(entry_id)
    return Chosen(ids=ids, damaged=damaged, last=after if rows and after != rows[-1][0] else last)


def list_entries(connection: sqlite3.Connection, selector: Selector, after: int, now_s: float, limit: int) -> Listed:
    """Take one step through the entries that are meant and not gone, at most `limit` of them."""
    wanted = max(1, min(limit, STEP_TEXTS))
    rows, last = _rows(connection, selector, after, now_s, STEP_TEXTS if selector.text else wanted)
    entries: list[Entry] = []
    damaged: list[str] = []
    words, read = selector.text.casefold(), 0
    for n, entry_id in rows:
        if read > STEP_BYTES or len(entries) == wanted:
            break
        record, vector = connection.execute("SELECT record, vector FROM documents WHERE n = ?", (n,)).fetchone() or (
            None,
            None,
        )
        read += len(record or b"")
        after = n
        try:
            if not words or words in open_record(record, entry_id).text.casefold():
                entries.append(decode(record, vector, entry_id).entry)
        except RecordError:
            damaged.append(entry_id)
    return Listed(entries=entries, damaged=damaged, last=after if rows and after != rows[-1][0] else last)


def _rows(
    connection: sqlite3.Connection, selector: Selector, after: int, now_s: float, limit: int
) -> tuple[list[tuple[int, str]], int | None]:
    """Return some rows that are meant but for the text, and the row after which the next ones begin."""
    where, values = _where(selector)
    where, values = ["n > ?", "gone > ?", *where], [after, now_s, *values]
    if selector.ids or selector.parents:
        named = _rows_of(connection, "id IN", selector.ids, where, values) if selector.ids else None
        tags = [f"{ALIAS_TAG}{parent}" for parent in selector.parents]
        made = _rows_of(connection, _MADE_OF, tags, where, values) if tags else None
        rows = sorted(named & made if named is not None and made is not None else named or made or set())
        return rows[:limit], rows[limit - 1][0] if len(rows) > limit else None
    end = _end(connection, selector, after)
    if end is None:
        return [], None
    rows = connection.execute(
        f"SELECT n, id FROM entries WHERE {' AND '.join([*where, 'n <= ?'])} ORDER BY n LIMIT ?", (*values, end, limit)
    ).fetchall()
    return rows, rows[-1][0] if len(rows) == limit else end


def _end(connection: sqlite3.Connection, selector: Selector, after: int) -> int | None:
    """Return the last row of this step, by the narrowest index there is. It counts rows: their numbers have holes."""
    if selector.user:
        source, values = "entries WHERE user = ? AND user != '' AND n > ?", [selector.user, after]
    elif selector.tag:
        source, values = "tags WHERE tag = ? AND n > ?", [selector.tag, after]
    else:
        source, values = "entries WHERE n > ?", [after]
    (end,) = connection.execute(
        f"SELECT max(n) FROM (SELECT n FROM {source} ORDER BY n LIMIT ?)", (*values, STEP_ROWS)
    ).fetchone()
    return None if end is None else int(end)


def _rows_of(
    connection: sqlite3.Connection, among: str, names: Sequence[str], where: list[str], values: list[str | float]
) -> set[tuple[int, str]]:
    rows: set[tuple[int, str]] = set()
    for start in range(0, len(names), IDS_AT_ONCE):
        some = names[start : start + IDS_AT_ONCE]
        closed = ")" if among == _MADE_OF else ""
        conditions = " AND ".join([f"{among} ({', '.join('?' * len(some))}){closed}", *where])
        rows.update(connection.execute(f"SELECT n, id FROM entries WHERE {conditions}", (*some, *values)))
    return rows


def _where(selector: Selector) -> tuple[list[str], list[str | float]]:
    """Return the conditions on columns, `ids` and `text` left out, and their values."""
    conditions: dict[str, str | float | None] = {
        "tenant = ?": selector.tenant,
        "namespace = ?": selector.namespace,
        "model = ?": selector.model,
        "user != '' AND user = ?": selector.user,  # as the index says it
        "? IN (category, second)": selector.category,
        "EXISTS (SELECT 1 FROM tags WHERE tags.tag = ? AND tags.n = entries.n)": selector.tag,
    }
    given = {condition: value for condition, value in conditions.items() if value}
    if selector.before_s is not None:
        given["created < ?"] = selector.before_s
    return list(given), [value for value in given.values() if value is not None]
