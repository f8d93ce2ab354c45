"""An erasure does every part, says which is not done, and does it later, also after a restart."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest

from cacheproxy.erasure import Erasure, Part
from cacheproxy.errors import FeedbackUnavailable, InvalidRequest, PartUnavailable, StoreUnavailable
from cacheproxy.model import Selector
from cacheproxy.settings import Store
from cacheproxy.store.memory import MemoryStore
from tests.support.clock import FakeClock
from tests.support.entries import entry_id, make_entry

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

SECRET = "canary-model"


class Remembering:
    """A part that remembers what it was told to forget, and fails as often as it is told."""

    def __init__(self, failures: int = 0) -> None:
        self.told: list[tuple[Selector, tuple[str, ...]]] = []
        self._failures = failures

    async def forget(self, selector: Selector, ids: Collection[str]) -> int:
        if self._failures:
            self._failures -= 1
            raise FeedbackUnavailable("the disk is full")
        self.told.append((selector, tuple(ids)))
        return len(ids)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def store(clock: FakeClock) -> MemoryStore:
    store = MemoryStore(Store(), clock)
    for key in ("x", "y"):
        await store.put(make_entry(key, created_s=clock.now() - 1), store.fence)
    return store


def erasure(
    store: MemoryStore, clock: FakeClock, journal: Path, gone: list[str] | None = None, **parts: Remembering
) -> Erasure:
    listed = [Part(name=name, forget=part.forget) for name, part in parts.items()]
    unindexed = gone if gone is not None else []

    def unindex(entry_ids: Collection[str], *, scrub: bool) -> None:
        unindexed.extend(entry_id if scrub else f"{entry_id} lightly" for entry_id in entry_ids)

    return Erasure(store, unindex, listed, clock, journal)


async def test_parts_go_after_the_entries_and_know_their_ids(
    store: MemoryStore, clock: FakeClock, tmp_path: Path
) -> None:
    part, gone = Remembering(), list[str]()
    selector = Selector(tag="x")
    erased = await erasure(store, clock, tmp_path / "j", gone, notes=part).erase(selector)
    assert erased.ids == (entry_id("x"),)
    assert gone == [entry_id("x")]
    assert part.told == [(selector, erased.ids)]
    assert erased.pending == ()
    assert not (tmp_path / "j").exists()
    assert await store.get(entry_id("y")) is not None


async def test_a_purge_leaves_the_other_parts_alone(store: MemoryStore, clock: FakeClock, tmp_path: Path) -> None:
    part = Remembering()
    erased = await erasure(store, clock, tmp_path / "j", notes=part).purge(Selector(tag="x"))
    assert [done.part for done in erased.parts] == ["entries"]
    assert part.told == []


PURGES = (Selector(tag="x"), Selector(ids=(entry_id("x"),)))


def with_purged(store: MemoryStore, clock: FakeClock, journal: Path, gone: list[str], purged: Remembering) -> Erasure:
    def unindex(entry_ids: Collection[str], *, scrub: bool) -> None:
        gone.extend(entry_id if scrub else f"{entry_id} lightly" for entry_id in entry_ids)

    parts = [Part(name="notes", forget=Remembering().forget), Part(name="told", forget=purged.forget, purged=True)]
    return Erasure(store, unindex, parts, clock, journal)


@pytest.mark.parametrize("selector", PURGES)
async def test_a_part_that_is_told_of_purges_knows_the_entries_and_makes_no_erasure_of_it(
    store: MemoryStore, clock: FakeClock, tmp_path: Path, selector: Selector
) -> None:
    purged, gone = Remembering(), list[str]()
    whole = with_purged(store, clock, tmp_path / "j", gone, purged)
    erased = await whole.purge(selector)
    assert [done.part for done in erased.parts] == ["entries", "told"]
    assert purged.told == [(selector, (entry_id("x"),))]
    assert gone == [f"{entry_id('x')} lightly"]
    assert [done.part for done in (await whole.erase(Selector(tag="y"))).parts] == ["entries", "notes"]


@pytest.mark.parametrize("selector", PURGES)
async def test_where_such_a_part_fails_the_purge_is_owed(
    store: MemoryStore, clock: FakeClock, tmp_path: Path, selector: Selector
) -> None:
    purged = Remembering(failures=2)
    whole = with_purged(store, clock, tmp_path / "j", [], purged)
    erased = await whole.purge(selector)
    while whole.owed:
        await whole.retry()
    [(again, ids)] = purged.told
    assert (again.ids, again.tag) == (selector.ids, selector.tag)
    assert set(ids) <= {entry_id("x")}
    assert erased.pending in ((), ("told",))
    assert await store.get(entry_id("x")) is None


async def test_nothing_is_meant_by_nothing(store: MemoryStore, clock: FakeClock, tmp_path: Path) -> None:
    part = Remembering()
    for selector in (Selector(), Selector(ids=())):
        assert (await erasure(store, clock, tmp_path / "j", notes=part).erase(selector)).ids == ()
    assert len(store) == 2
    assert part.told == []


async def test_a_part_that_fails_is_told_and_tried_until_it_is_done(
    store: MemoryStore, clock: FakeClock, tmp_path: Path
) -> None:
    failing, fine = Remembering(failures=2), Remembering()
    whole = erasure(store, clock, tmp_path / "j", notes=failing, other=fine)
    erased = await whole.erase(Selector(tag="x"))
    assert erased.pending == ("notes",)
    assert [done.failed for done in erased.parts] == ["", "the disk is full", ""]
    await whole.retry()
    assert whole.owed == 1
    await whole.retry()
    assert whole.owed == 0
    assert failing.told[0][1] == (entry_id("x"),)
    assert len(fine.told) == 1
    assert not (tmp_path / "j").exists()


async def test_a_restart_finishes_it_and_takes_nothing_new(
    store: MemoryStore, clock: FakeClock, tmp_path: Path
) -> None:
    journal = tmp_path / "j"
    await erasure(store, clock, journal, notes=Remembering(failures=1)).erase(Selector(tag="x", model=SECRET))
    again = Remembering()
    restarted = erasure(store, clock, journal, notes=again)
    assert restarted.owed == 1
    asked_s = clock.now()
    clock.advance(60)
    await restarted.retry()
    assert again.told[0][0] == Selector(tag="x", model=SECRET, before_s=asked_s)
    assert restarted.owed == 0


async def test_only_its_owner_reads_the_journal(store: MemoryStore, clock: FakeClock, tmp_path: Path) -> None:
    journal = tmp_path / "j"
    await erasure(store, clock, journal, notes=Remembering(failures=1)).erase(Selector(tag="x"))
    assert journal.stat().st_mode & 0o777 == 0o600


async def test_words_of_a_question_choose_nothing_to_erase(
    store: MemoryStore, clock: FakeClock, tmp_path: Path
) -> None:
    """The journal holds no text, so trying again would mean everything from before."""
    whole = erasure(store, clock, tmp_path / "j", notes=Remembering(failures=1))
    for begin in (whole.erase, whole.purge):
        with pytest.raises(InvalidRequest) as refused:
            await begin(Selector(ids=(entry_id("x"),), text="canary"))
        assert "canary" not in refused.value.message
    assert (whole.owed, len(store), (tmp_path / "j").exists()) == (0, 2, False)


async def test_retries_that_overlap_do_each_erasure_once(store: MemoryStore, clock: FakeClock, tmp_path: Path) -> None:
    part = Remembering(failures=2)
    whole = erasure(store, clock, tmp_path / "j", notes=part)
    for key in ("x", "y"):
        assert (await whole.erase(Selector(tag=key))).pending
    await asyncio.gather(whole.retry(), whole.retry())
    assert whole.owed == 0
    assert [selector.tag for selector, _ in part.told] == ["x", "y"]


async def test_what_is_owed_is_never_dropped_for_what_is_new(
    store: MemoryStore, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheproxy.erasure._MOST_OWED", 1)
    part = Remembering(failures=1)
    whole = erasure(store, clock, tmp_path / "j", notes=part)
    await whole.erase(Selector(tag="x"))
    with pytest.raises(PartUnavailable, match="not finished"):
        await whole.erase(Selector(tag="y"))
    assert (whole.owed, len(store)) == (1, 1)
    await whole.retry()
    assert [selector.tag for selector, _ in part.told] == ["x"]
    assert (await whole.erase(Selector(tag="y"))).pending == ()


async def test_a_purge_by_ids_leaves_the_fills_of_others_alone(
    store: MemoryStore, clock: FakeClock, tmp_path: Path
) -> None:
    gone, fence = list[str](), store.fence
    erased = await erasure(store, clock, tmp_path / "j", gone).purge(Selector(ids=(entry_id("x"), entry_id("z"))))
    assert (erased.ids, erased.pending) == ((entry_id("x"),), ())
    assert await store.put(make_entry("new", created_s=clock.now()), fence)
    assert not await store.put(make_entry("z", created_s=clock.now()), fence)
    assert {entry.removesuffix(" lightly") for entry in gone} == {entry_id("x"), entry_id("z")}
    assert all(entry.endswith(" lightly") for entry in gone)


class Failing(MemoryStore):
    """A store whose disk is full while it is told so."""

    fails = True

    async def purge(self, entry_ids: Collection[str]) -> int:
        if self.fails:
            raise StoreUnavailable("the disk is full")
        return await super().purge(entry_ids)

    async def erase(self, selector: Selector, *, dry_run: bool = False, scrub: bool = True) -> list[str]:
        if self.fails and not dry_run:
            raise StoreUnavailable("the disk is full")
        return await super().erase(selector, dry_run=dry_run, scrub=scrub)


async def test_a_purge_by_ids_that_fails_is_owed(clock: FakeClock, tmp_path: Path) -> None:
    store = Failing(Store(), clock)
    await store.put(make_entry("x", created_s=clock.now() - 1), store.fence)
    whole = erasure(store, clock, tmp_path / "j")
    assert (await whole.purge(Selector(ids=(entry_id("x"),)))).pending == ("entries",)
    assert (whole.owed, (tmp_path / "j").exists()) == (1, True)
    store.fails = False
    await whole.retry()
    assert (whole.owed, len(store)) == (0, 0)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b'[{"asked_s": 1}]'])
async def test_a_journal_that_is_none_stops_no_start(
    store: MemoryStore, clock: FakeClock, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "j").write_bytes(content)
    whole = erasure(store, clock, tmp_path / "j", notes=Remembering())
    assert (await whole.erase(Selector(tag="x"))).pending == ()


async def test_a_journal_that_cannot_be_written_stops_no_erasure(
    store: MemoryStore, clock: FakeClock, tmp_path: Path
) -> None:
    whole = erasure(store, clock, tmp_path / "missing" / "j", notes=Remembering(failures=1))
    assert (await whole.erase(Selector(tag="x"))).pending == ("notes",)
    await whole.retry()
    assert whole.owed == 0


def test_what_is_owed_reads_back_as_it_was_meant() -> None:
    from cacheproxy.owing import Owed

    meant: dict[str, str | float | tuple[str, ...] | None] = {"ids": ("a" * 32,), "tenant": "t", "before_s": 5.0}
    owed = Owed(asked_s=7.0, parts=("entries",), ids=(), meant=meant)
    read = msgspec.json.decode(msgspec.json.encode(owed), type=Owed)
    assert read.selector() == Selector(ids=("a" * 32,), tenant="t", before_s=5.0)
