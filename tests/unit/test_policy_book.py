"""The policy book: one whole policy at a time, changed by one at a time, kept over restarts, never half."""

from __future__ import annotations

import asyncio
import stat
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cacheproxy.errors import (
    EmbedderUnavailable,
    NotChanged,
    NotFound,
    PackError,
    PolicyRefused,
    StoreUnavailable,
    VersionConflict,
)
from cacheproxy.govern.audit import AuditLog, broken_at
from cacheproxy.govern.book import Order, PolicyBook, Records
from cacheproxy.govern.condition import matches
from cacheproxy.govern.maker import Means, PolicyMaker
from cacheproxy.govern.versions import VersionFile
from cacheproxy.model import Classification, Embedding
from cacheproxy.policy.edit import merged, with_category, without_category
from cacheproxy.policy.loader import POLICY_FILE, find_pack, pack_tree
from tests.support.clock import FakeClock
from tests.support.packs import changed_pack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from cacheproxy.policy.active import Classify, Policy
    from cacheproxy.policy.pack import Pack

EPOCH = "an encoder"


class Encoder:
    """Embeds, counts what it embedded, and fails where told to."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.fails = False

    async def __call__(self, texts: Sequence[str]) -> list[Embedding]:
        if self.fails:
            raise EmbedderUnavailable("the encoder failed")
        self.texts += texts
        await asyncio.sleep(0)
        return [Embedding(vector=np.full(4, 0.5, dtype=np.float32), unseen=b"") for _ in texts]


def fit(pack: Pack, vectors: Mapping[str, Sequence[Any]]) -> Classify:
    assert set(vectors) == {name for name, category in pack.categories.items() if category.examples}

    def classify(vector: NDArray[np.float32]) -> Classification:
        return Classification(category=pack.default_category, source="examples")

    return classify


class World:
    """A data directory and a pack on disk, over several starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pack = folder / "pack"
        self.pack.mkdir()
        self.write_pack()
        self.encoder = Encoder()
        self.clock = FakeClock()

    def write_pack(self, **keys: bool | float) -> None:
        changed_pack(self.pack, **keys)

    def damage_pack(self) -> None:
        (self.pack / POLICY_FILE).write_text("schema = 7\n")

    @property
    def log(self) -> Path:
        return self.folder / "audit.jsonl"

    @property
    def file(self) -> Path:
        return self.folder / "policies.sqlite3"

    async def start(self) -> PolicyBook:
        audit = AuditLog(self.log, self.clock)
        means = Means(epoch=EPOCH, tenant_of=str, embed_all=self.encoder, fit=fit)
        book = PolicyBook(str(self.pack), Records(VersionFile(self.file), audit), PolicyMaker(means), self.clock)
        await book.open()
        return book


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def order(**fields: Any) -> Order:
    return Order(actor="tests", **fields)


def with_ttl(ttl_s: float) -> Callable[[Pack], dict[str, Any]]:
    return lambda pack: merged(pack_tree(pack), {"categories": {"default": {"ttl_s": ttl_s}}})


def ttl(policy: Policy) -> float:
    return policy.pack.categories["default"].ttl_s


def adding(name: str, **category: Any) -> Callable[[Pack], dict[str, Any]]:
    return lambda pack: with_category(pack, name, category, EPOCH)


# Who is in force


async def test_the_first_start_takes_the_pack_on_disk_as_version_one(world: World) -> None:
    book = await world.start()
    assert (book().version, book().etag) == (1, '"1"')
    assert book().pack.name == "balanced"
    assert stat.S_IMODE(world.file.stat().st_mode) == 0o600


async def test_texts_that_are_only_tried_are_not_remembered_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheproxy.govern.maker.MOST_TEXTS", 10)
    maker = PolicyMaker(Means(epoch=EPOCH, tenant_of=str, embed_all=world.encoder, fit=fit))
    for n in range(10):
        await maker.embed(["in force", *(f"tried {n}, {m}" for m in range(3))])
    assert maker.remembered == 10
    assert world.encoder.texts.count("in force") == 1
    assert len(await maker.embed([str(n) for n in range(30)])) == 30
    assert maker.remembered == 10


async def test_texts_forgotten_while_others_are_embedded_are_still_answered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheproxy.govern.maker.MOST_TEXTS", 1)
    maker = PolicyMaker(Means(epoch=EPOCH, tenant_of=str, embed_all=world.encoder, fit=fit))
    await maker.embed(["a"])
    found = await asyncio.gather(maker.embed(["a", "b"]), maker.embed(["c", "d"]), maker.embed(["a", "e"]))
    assert [sorted(one) for one in found] == [["a", "b"], ["c", "d"], ["a", "e"]]


async def test_an_operators_version_survives_a_restart(world: World) -> None:
    book = await world.start()
    await book.change(with_ttl(77), order())
    again = await world.start()
    assert (again().version, ttl(again())) == (2, 77)


async def test_a_pack_changed_on_disk_wins_at_the_next_start_as_a_version_of_its_own(world: World) -> None:
    book = await world.start()
    await book.change(with_ttl(77), order())
    world.write_pack(ttl_s=55.0)
    again = await world.start()
    assert (again().version, ttl(again())) == (3, 55)
    await again.rollback(2, order())
    assert (again().version, ttl(again())) == (4, 77)
    assert ttl((await world.start())()) == 77


async def test_a_comment_on_disk_is_no_change(world: World) -> None:
    await (await world.start()).change(with_ttl(77), order())
    with (world.pack / POLICY_FILE).open("a") as file:
        file.write("\n# nothing\n")
    assert ttl((await world.start())()) == 77


async def test_a_damaged_pack_on_disk_stops_the_start(world: World) -> None:
    await world.start()
    world.damage_pack()
    with pytest.raises(PackError, match="schema"):
        await world.start()


async def test_a_version_that_cannot_be_read_any_more_gives_way_to_the_disk(world: World) -> None:
    book = await world.start()
    newest = VersionFile(world.file).newest()
    assert newest is not None
    VersionFile(world.file).append(msgspec_replace(newest, n=2, pack_json='{"schema": 1, "from": "the future"}'))
    again = await world.start()
    assert (again().version, again().pack) == (3, book().pack)


def msgspec_replace(version: Any, **fields: Any) -> Any:
    from dataclasses import replace

    return replace(version, **fields)


# Changing it


async def test_a_change_is_in_force_at_once_and_older_snapshots_stay_as_they_were(world: World) -> None:
    book = await world.start()
    before = book()
    change = await book.change(with_ttl(77), order())
    assert book() is change.policy
    assert (ttl(before), ttl(book())) != (77, 77)
    assert [one.key for one in change.differences] == ["categories.default.ttl_s"]


@pytest.mark.parametrize("if_match", ['"1"', "*", None, '"7", "1"'])
async def test_the_version_in_force_may_be_changed(world: World, if_match: str | None) -> None:
    book = await world.start()
    await book.change(with_ttl(77), order(if_match=if_match))
    assert book().version == 2


@pytest.mark.parametrize("if_match", ['"2"', 'W/"1"', "1", "", '"0"'])
async def test_another_version_may_not(world: World, if_match: str) -> None:
    book = await world.start()
    with pytest.raises(VersionConflict, match="version 1 is in force"):
        await book.change(with_ttl(77), order(if_match=if_match))
    assert book().version == 1


async def test_of_changes_at_once_under_one_version_exactly_one_wins(world: World) -> None:
    book = await world.start()
    tried = (book.change(with_ttl(float(100 + at)), order(if_match='"1"')) for at in range(20))
    ended = await asyncio.gather(*tried, return_exceptions=True)
    won = [end for end in ended if not isinstance(end, BaseException)]
    assert len(won) == 1
    assert sum(isinstance(end, VersionConflict) for end in ended) == 19
    assert ttl(book()) == ttl(won[0].policy)


async def test_changes_at_once_without_a_version_lose_nothing(world: World) -> None:
    book = await world.start()
    await asyncio.gather(*(book.change(adding(f"c{at}"), order()) for at in range(12)))
    assert {f"c{at}" for at in range(12)} < set(book().pack.categories)
    assert book().version == 13
    assert broken_at(world.log) is None


BAD: list[tuple[dict[str, Any], str]] = [
    ({"categories": {"default": {"ttl_s": -1}}}, "categories.default.ttl_s"),
    ({"categories": {"default": {"ttl_s": 0}}}, "categories.default.ttl_s"),
    ({"categories": {"default": {"ttl_s": float("nan")}}}, "categories.default.ttl_s"),
    ({"categories": {"default": {"ttl_s": float("inf")}}}, "categories.default.ttl_s"),
    ({"categories": {"default": {"ttl_s": "1h"}}}, "categories.default.ttl_s"),
    ({"categories": {"default": {"tttl_s": 1}}}, "categories.default.tttl_s"),
    ({"default_category": "nowhere"}, "default_category"),
    ({"categories": None}, "categories"),
    ({"encoders": {"x": {"fingerprint": "x", "calibrated_on": "y", "thresholds": {"default": 0}}}}, "encoders.x"),
    ({"schema": 9}, "schema"),
    ({"extends": "balanced"}, "extends"),
]


@pytest.mark.parametrize(("patch", "key"), BAD)
async def test_a_pack_with_problems_is_refused_by_its_keys_and_the_old_one_stays(
    world: World, patch: dict[str, Any], key: str
) -> None:
    book = await world.start()
    before = book()
    with pytest.raises(PolicyRefused) as refused:
        await book.change(lambda pack: merged(pack_tree(pack), patch), order())
    assert any(found.startswith(key) for found, _ in refused.value.problems), refused.value.problems
    assert book() is before
    assert (await world.start())().version == 1


async def test_all_problems_are_told_at_once(world: World) -> None:
    book = await world.start()
    bad = {"categories": {"default": {"ttl_s": -1, "candidates": 0, "nope": 1}}}
    with pytest.raises(PolicyRefused) as refused:
        await book.change(lambda pack: merged(pack_tree(pack), bad), order())
    assert len(refused.value.problems) == 3


async def test_a_dry_run_changes_nothing_and_tells_all(world: World) -> None:
    book = await world.start()
    before = book()
    change = await book.change(with_ttl(77), order(dry_run=True))
    assert (ttl(change.policy), change.policy.version, book()) == (77, 2, before)
    assert [version.n for version in await book.versions()] == [1]


async def test_what_changes_nothing_makes_no_version(world: World) -> None:
    book = await world.start()
    change = await book.activate(pack_tree(book().pack), order())
    assert (change.policy.version, change.differences) == (1, ())


async def test_versions_tell_who_and_why_and_the_oldest_go(world: World) -> None:
    book = await world.start()
    await book.change(with_ttl(77), order(reason="false hits", action="categories.patch"))
    newest, oldest = await book.versions()
    assert (newest.n, newest.actor, newest.reason, newest.action) == (2, "tests", "false hits", "categories.patch")
    assert (oldest.n, oldest.actor, oldest.action) == (1, "start", "policies.load")
    file = VersionFile(world.file, kept=5)
    for n in range(3, 9):
        file.append(msgspec_replace(newest, n=n, pack_json="{}"))
    assert [version.n for version in file.listed()] == [8, 7, 6, 5, 4]


async def test_rolling_back_to_nowhere_says_so(world: World) -> None:
    book = await world.start()
    with pytest.raises(NotFound, match="no version 9"):
        await book.rollback(9, order())


async def test_every_change_is_in_the_audit_log_with_what_was_and_is(world: World) -> None:
    book = await world.start()
    await book.change(with_ttl(77), order(target="default", reason="why not"))
    [deed, _], _ = await AuditLog(world.log, world.clock).page()
    assert (deed.actor, deed.target, deed.outcome) == ("tests", "default", "done")
    assert deed.before == {"version": 1, "keys": {"categories.default.ttl_s": ttl_of(world)}}
    assert deed.after == {"version": 2, "reason": "why not", "keys": {"categories.default.ttl_s": 77}}


def ttl_of(world: World) -> float:
    from cacheproxy.policy.loader import load_pack

    return load_pack(world.pack).categories["default"].ttl_s


def block(path: Path) -> None:
    path.rename(path.with_suffix(".aside"))
    path.mkdir()


@pytest.mark.parametrize("which", ["log", "file"])
async def test_what_cannot_be_written_down_is_not_done(world: World, which: str) -> None:
    book = await world.start()
    before = book()
    block(getattr(world, which))
    with pytest.raises(NotChanged, match="nothing was changed"):
        await book.change(with_ttl(77), order())
    assert book() is before


# Examples


async def test_examples_are_embedded_once_and_a_patched_number_embeds_nothing(world: World) -> None:
    book = await world.start()
    world.encoder.texts.clear()
    await book.change(adding("code", examples=["How do I sort a list?", "What is a monad?"]), order())
    assert world.encoder.texts == ["How do I sort a list?", "What is a monad?"]
    classify = book().classify
    await book.change(with_ttl(77), order())
    assert book().classify is classify
    await book.change(adding("code", examples=["What is a monad?", "Why does git ask me this?"]), order())
    assert world.encoder.texts[2:] == ["Why does git ask me this?"]
    assert book().classify is not None


async def test_an_encoder_that_fails_refuses_the_change(world: World) -> None:
    book = await world.start()
    before = book()
    world.encoder.fails = True
    with pytest.raises(NotChanged, match="could not be embedded"):
        await book.change(adding("code", examples=["How do I sort a list?"]), order())
    assert book() is before
    assert (await book.change(with_ttl(77), order())).policy.version == 2


async def test_an_encoder_that_fails_at_the_start_leaves_every_query_unknown_until_it_does_not(world: World) -> None:
    book = await world.start()
    await book.change(adding("private", examples=["What is my salary?"], allow_caching=False), order())
    world.encoder.fails = True
    again = await world.start()
    classify = again().classify
    assert classify is not None
    assert classify(np.ones(4, dtype=np.float32)).source == "unknown"
    assert "could not be embedded" in again.health()
    world.encoder.fails = False
    await again.tend()
    classify = again().classify
    assert classify is not None
    assert classify(np.ones(4, dtype=np.float32)).source == "examples"
    assert (again.health(), again().version) == ("", 2)


# The file changes under a running proxy


async def test_a_changed_file_is_read_again_where_asked(world: World) -> None:
    book = await world.start()
    await book.change(with_ttl(77), order())
    assert await book.reload() is None
    assert ttl(book()) == 77
    world.write_pack(ttl_s=55.0)
    book.ask_reload()
    await book.tend()
    assert (book().version, ttl(book())) == (3, 55)
    assert ttl((await world.start())()) == 55


async def test_a_changed_file_with_problems_leaves_the_old_policy(world: World) -> None:
    book = await world.start()
    world.damage_pack()
    book.ask_reload()
    await book.tend()
    assert book().version == 1


# Listeners


async def test_listeners_are_told_what_was_and_is_after_it_came_into_force(world: World) -> None:
    book = await world.start()
    told: list[tuple[int, int, int]] = []

    async def listen(old: Policy, new: Policy) -> None:
        told.append((old.version, new.version, book().version))

    book.on_change(listen)
    await book.change(with_ttl(77), order())
    await book.change(with_ttl(78), order(dry_run=True))
    assert told == [(1, 2, 2)]


async def test_a_listener_that_fails_is_told_again_from_where_it_was(world: World, monkeypatch: Any) -> None:
    monkeypatch.setattr("cacheproxy.govern.book._RETRY_S", 0)
    book = await world.start()
    told: list[tuple[int, int]] = []
    fails = True

    async def listen(old: Policy, new: Policy) -> None:
        told.append((old.version, new.version))
        if fails:
            raise StoreUnavailable("the disk is full")

    book.on_change(listen)
    await book.change(with_ttl(77), order())
    await book.change(with_ttl(78), order())
    await book.tend()
    fails = False
    await book.tend()
    await book.change(with_ttl(79), order())
    assert told == [(1, 2), (1, 3), (1, 3), (1, 3), (3, 4)]


async def test_what_listeners_had_not_done_before_a_crash_they_are_told_after_it(world: World) -> None:
    book = await world.start()
    await book.change(adding("gone"), order())
    await book.tend()

    async def crash(_: Policy, __: Policy) -> None:
        raise StoreUnavailable("the process died here")

    book.on_change(crash)
    await book.change(lambda pack: without_category(pack, "gone"), order())
    again = await world.start()
    told: list[tuple[bool, bool]] = []

    async def listen(old: Policy, new: Policy) -> None:
        told.append(("gone" in old.pack.categories, "gone" in new.pack.categories))

    again.on_change(listen)
    await again.tend()
    assert told == [(True, False)]


async def test_dropped_categories_are_those_whose_answers_may_not_be_kept_any_more(world: World) -> None:
    book = await world.start()
    await book.change(adding("a"), order())
    await book.change(adding("b"), order())
    assert (await book.change(adding("a", allow_caching=False), order())).dropped == ("a",)
    assert (await book.change(lambda pack: without_category(pack, "b"), order())).dropped == ("b",)
    assert (await book.change(lambda pack: without_category(pack, "a"), order())).dropped == ()


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=1, max_size=5))
def test_under_any_interleaving_each_version_is_won_once(steps: list[tuple[int, bool]]) -> None:
    """Each writer reads, then writes under what it read: every version has exactly one author, none is lost."""
    import tempfile
    from pathlib import Path

    async def run(folder: Path) -> None:
        book = await World(folder).start()
        for at, (writers, yields) in enumerate(steps):
            read = book().etag
            tried = [book.change(with_ttl(10.0 + 10 * at + n), order(if_match=read)) for n in range(writers)]
            if yields:
                await asyncio.sleep(0)
            ended = await asyncio.gather(*tried, return_exceptions=True)
            assert sum(not isinstance(end, BaseException) for end in ended) == 1
            assert book().version == at + 2

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder)))


@pytest.mark.parametrize(
    ("header", "allowed"),
    [(None, True), ("*", True), ('"3"', True), ('"2", "3"', True), ('W/"3"', False), ("3", False)],
)
def test_if_match_compares_strongly(header: str | None, allowed: bool) -> None:
    assert matches(header, '"3"') is allowed


def test_a_shipped_pack_goes_through_a_tree_and_back(tmp_path: Path) -> None:
    from cacheproxy.policy.loader import load_pack, pack_from

    pack = load_pack(find_pack("balanced"))
    assert pack_from(msgspec.json.decode(msgspec.json.encode(pack_tree(pack)))) == pack
