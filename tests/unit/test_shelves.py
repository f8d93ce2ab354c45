"""Entries in memory, in rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cacheproxy.store.shelves import Shelves
from tests.support.entries import NOW_S, entry_id, make_entry

if TYPE_CHECKING:
    from cacheproxy.model import Entry


def test_rows_of_some_ids_are_read_without_looking_through_the_others() -> None:
    shelves: Shelves[Entry] = Shelves()
    for key in "abcdefgh":
        shelves.put(make_entry(key), 1, NOW_S)
    shelves.delete(entry_id("c"))
    shelves._rows = []  # whoever looks through all finds nothing
    ids = [entry_id(key) for key in "fcbbx"]
    assert [(row, entry.id) for row, entry in shelves.after(0, 9, ids)] == [(2, entry_id("b")), (6, entry_id("f"))]
    assert [row for row, _ in shelves.after(2, 9, ids)] == [6]
    assert [row for row, _ in shelves.after(0, 1, ids)] == [2]
