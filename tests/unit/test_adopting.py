"""A head is adopted to the end, or leaves everything as it was; and goes when hits become wrong."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import msgspec
import pytest
import structlog

from cacheproxy import settings
from cacheproxy.adopting import Adopting, Means
from cacheproxy.embed.headfile import WEIGHTS, Artefact, pack
from cacheproxy.embed.headshelf import MOST_KEPT, HeadShelf, State
from cacheproxy.embed.layers import Form, Layers
from cacheproxy.errors import ConfigError, NotFound, StoreUnavailable, VersionConflict
from cacheproxy.examining import Examining
from cacheproxy.govern.audit import AuditLog
from cacheproxy.index.sidefile import FILE as SIDE
from cacheproxy.index.sidefile import SideFile
from cacheproxy.index.spaces import Spaces
from cacheproxy.learn.lookups import LookupLog
from cacheproxy.learn.pairfile import FILE
from cacheproxy.policy.active import Policy
from cacheproxy.policy.bound import share
from cacheproxy.policy.gate import Terms
from cacheproxy.policy.pack import Category, Encoder, Pack
from cacheproxy.proving import Proving
from cacheproxy.recoding import Around, Layered
from cacheproxy.supervise import Supervisor
from cacheproxy.telemetry import Telemetry
from tests.support.clock import FakeClock
from tests.support.heads import manifest_of, rotation
from tests.support.index_world import DIM, EPOCH, graphs_from, partition, scan, units
from tests.support.pairs import held_in
from tests.support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Sequence
    from pathlib import Path

    from cacheproxy.govern.book import PolicyBook
    from cacheproxy.index.restore import Row
    from cacheproxy.policy.bound import Share
    from cacheproxy.policy.learnt import Learnt
    from cacheproxy.ports import EntryCatalogue
    from cacheproxy.recoding import Recoding

HEAD = rotation(DIM, seed=3)
HEADED = Artefact(manifest=pack(HEAD, manifest_of(EPOCH))[0], head=HEAD).epoch
ROWS = units(20)
PACK = Pack(
    schema=1,
    name="test",
    description="",
    default_category="default",
    categories={"default": Category(semantic=True)},
    encoders={"e": Encoder(fingerprint=EPOCH, calibrated_on="x", thresholds={"default": 0.7})},
)


class Store:
    """Twenty entries; it fails on order."""

    fails = False
    ends: Sequence[int] = ()
    """After how many rows each scan from now on fails; those after them do not."""
    rows = ROWS

    def scan(self, epoch: str) -> AsyncIterator[Row]:
        assert epoch == EPOCH
        if self.fails:
            raise StoreUnavailable("store: the disk is full")
        rows = scan({f"e{at}": (partition(), row) for at, row in enumerate(self.rows)})
        if not self.ends:
            return rows
        end, *self.ends = self.ends
        return broken(rows, end)


async def broken(rows: AsyncIterator[Row], end: int) -> AsyncIterator[Row]:
    """Yield the first of them; then the store is away."""
    seen = 0
    async for row in rows:
        if seen == end:
            raise StoreUnavailable("store: away")
        seen += 1
        yield row


class Unopened(Layered):
    """Opens no encoder: its layers are of none that is here. Notes whose exports are wanted."""

    wanted: frozenset[str] | None = None

    async def prune(self, kept: Collection[Artefact]) -> None:
        await super().prune(kept)
        self.wanted = frozenset(artefact.epoch for artefact in kept if artefact.layers)

    async def open(self, artefact: Artefact) -> Recoding:
        raise ConfigError(f"{artefact.epoch}: its export failed")


class SlowShelf(HeadShelf):
    """Takes its time to note that nothing is on its way."""

    def __init__(self, folder: Path, may: threading.Event) -> None:
        super().__init__(folder, EPOCH, DIM)
        self._may = may

    def note(self, state: State) -> None:
        if state.adopting is None:
            self._may.wait(timeout=10.0)
        super().note(state)


class Book:
    """A pack that is nowhere on disk, so that its probes cannot be asked."""

    source = "no-such-pack"


class World:
    """What adopting has around it. No pairs were collected: a head is promoted by force."""

    def __init__(self, folder: Path, spaces: Spaces, supervisor: Supervisor) -> None:
        self.folder = folder
        self.spaces = spaces
        self.shelf = HeadShelf(folder, EPOCH, DIM)
        self.learnt: dict[str, Learnt] = {}
        self.heard: Share = share(0, 0)
        self.grace_s = 0.01
        self.store = Store()
        around = Around(
            store=cast("EntryCatalogue", None),  # no text is read here
            config=settings.Encoder(),
            data_dir=folder,
            busy=lambda: False,
        )
        self.layered = Unopened(around)
        self.whole = True
        """Whether the store has told of all it keeps."""
        self._book = cast("PolicyBook", Book())
        self._supervisor = supervisor
        policy = Policy.of(PACK)
        self._policy = lambda: policy

    def adopting(self) -> Adopting:
        """Begin as a start does."""
        found = Adopting(
            Means(
                spaces=self.spaces,
                shelf=self.shelf,
                learnt=self.learnt,
                proving=Proving(
                    shelf=self.shelf,
                    layered=self.layered,
                    examining=Examining(pairs=self.folder / FILE, base=EPOCH, book=self._book, terms=Terms()),
                    policy=self._policy,
                ),
                store=self.store,
                lookups=LookupLog(self._policy, Telemetry(), FakeClock(), EPOCH),
                heard=lambda: self.heard,
                spawn=self._supervisor.spawn,
                audit=AuditLog(self.folder / "audit.jsonl", FakeClock()),
                layered=self.layered,
                grace_s=self.grace_s,
                away_s=(0.01, 0.01),
            ),
            self.shelf.state(),
        )
        found.resume()
        return found

    def examined(self) -> None:
        """Leave what a stop leaves behind while a head is on its way."""
        manifest, weights = pack(HEAD, manifest_of(EPOCH))
        self.shelf.put(self.shelf.checked(manifest, weights, "it"), weights)
        self.shelf.note(State(adopting=HEADED))

    def damage(self, epoch: str = "") -> None:
        """Leave nothing of the weights of a head on the shelf, or of all."""
        for file in self.folder.glob(f"{epoch.rpartition('+')[2] or '*'}/{WEIGHTS}"):
            file.write_bytes(b"")

    @property
    def idle(self) -> bool:
        """Whether nothing is under way any more."""
        return not len(self._supervisor)

    def audited(self) -> str:
        """Return the audit log."""
        return (self.folder / "audit.jsonl").read_text()


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    async with Spaces(graphs_from(10_000), dim=DIM, base=EPOCH) as spaces, Supervisor() as supervisor:
        for at, row in enumerate(ROWS):
            spaces.add(partition(), f"e{at}", row)
        found = World(folder, spaces, supervisor)
        await spaces.restore(None, Store().scan(EPOCH), whole=lambda: found.whole)
        yield found


async def test_what_a_stop_cut_short_goes_on(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.examined()
        adopting = one.adopting()
        assert adopting.progress.step == "filling"
        with pytest.raises(VersionConflict, match="on its way"):
            await adopting.rollback()
        await eventually(lambda: adopting.progress.step == "", "it serves")
        assert (one.spaces.epoch, len(one.spaces)) == (HEADED, 20)
        assert one.shelf.state() == State(serving=HEADED, before=("",), watched=(0, 0))
        assert one.learnt[HEADED].rest == 0.8


async def test_a_head_that_cannot_be_read_leaves_everything_as_it_was(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.examined()
        one.damage()
        adopting = one.adopting()
        await eventually(lambda: adopting.progress.step == "failed", "it failed")
        assert "sha256" in adopting.progress.problem
        assert (one.spaces.epoch, len(one.spaces)) == (EPOCH, 20)
        await eventually(lambda: one.shelf.state() == State(), "nothing is on its way")
        with pytest.raises(NotFound):
            await adopting.rollback()


@pytest.mark.parametrize("wrong", [2, 30])
async def test_it_goes_when_hits_are_wrong_more_often(tmp_path: Path, wrong: int) -> None:
    async with world(tmp_path) as one:
        one.examined()
        one.heard = share(4, 100)
        adopting = one.adopting()
        await adopting.tend()  # nothing serves yet that could go
        await eventually(lambda: adopting.progress.step == "", "it serves")
        one.heard = share(wrong, 60)
        await adopting.tend()
        if wrong == 2:
            assert adopting.progress.step == ""
            assert one.spaces.epoch == HEADED
            return
        await eventually(lambda: one.spaces.epoch == EPOCH, "it went")
        await eventually(lambda: one.shelf.state() == State(), "it is written down")
        await adopting.tend()  # the encoder alone has nothing to go back to
        assert one.spaces.epoch == EPOCH


def manifest_tree(threshold: float = 0.8, seed: int = 3) -> tuple[dict[str, object], bytes]:
    manifest, weights = pack(rotation(DIM, seed), manifest_of(EPOCH, thresholds={"*": threshold}))
    return msgspec.to_builtins(manifest), weights


async def promoted(one: World, adopting: Adopting, seed: int = 3, threshold: float = 0.8) -> str:
    tree, weights = manifest_tree(threshold, seed)
    change = await adopting.promote(tree, weights, actor="admin@test", force=True, dry_run=False)
    await eventually(lambda: one.spaces.epoch == change.epoch, "it serves")
    await eventually(lambda: adopting.progress.step == "", "it is written down")
    return change.epoch


async def back(one: World, adopting: Adopting) -> str:
    change = await adopting.rollback()
    await eventually(lambda: one.spaces.epoch == change.epoch and adopting.progress.step == "", "it went back")
    return change.epoch


async def test_a_dry_run_leaves_no_threshold_behind(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        adopting = one.adopting()
        tree, weights = manifest_tree(0.5)
        assert not (await adopting.promote(tree, weights, actor="admin@test", force=True, dry_run=True)).began
        assert one.learnt == {}
        epoch = await promoted(one, adopting, threshold=0.9)
        assert {name: learnt.rest for name, learnt in one.learnt.items()} == {epoch: 0.9}


async def test_changes_that_overlap_a_grace_period_leave_every_entry_findable(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.grace_s = 0.3
        adopting = one.adopting()
        for _ in range(3):
            head = await promoted(one, adopting)
            assert await back(one, adopting) == EPOCH
        await asyncio.sleep(0.5)  # every grace is over
        assert one.spaces.epoch == EPOCH
        one.spaces.add(partition(), "new", ROWS[3])
        [found, *_] = await one.spaces.search(partition(epoch=EPOCH), ROWS[3], 2)
        assert found.similarity == pytest.approx(1.0)
        assert len(one.spaces) == 21
        assert one.spaces.held(head) is None


async def test_going_back_is_one_step_at_a_time_past_what_cannot_be_read(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        adopting = one.adopting()
        first, second = await promoted(one, adopting, 3), await promoted(one, adopting, 4)
        third = await promoted(one, adopting, 3, 0.7)
        assert list(adopting.before) == ["", first, second]
        one.damage(second)
        assert await back(one, adopting) == first
        assert list(adopting.before) == [""]
        assert await promoted(one, adopting, 3, 0.7) == third
        assert await back(one, adopting) == first
        assert await back(one, adopting) == EPOCH
        with pytest.raises(NotFound):
            await adopting.rollback()


async def test_a_head_that_served_before_may_be_promoted_again(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        adopting = one.adopting()
        first, second = await promoted(one, adopting, 3), await promoted(one, adopting, 4)
        assert await promoted(one, adopting, 3) == first
        assert list(adopting.before) == ["", first, second]
        assert await back(one, adopting) == second


async def test_what_serves_already_is_not_promoted(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        adopting = one.adopting()
        await promoted(one, adopting)
        tree, weights = manifest_tree()
        with pytest.raises(VersionConflict, match="serves already"):
            await adopting.promote(tree, weights, actor="admin@test", force=True, dry_run=False)


async def test_a_watch_outlives_a_restart(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.heard = share(4, 100)
        await promoted(one, one.adopting())
        again = one.adopting()
        one.heard = share(30, 60)
        await again.tend()
        await eventually(lambda: one.spaces.epoch == EPOCH, "it went")
        await eventually(lambda: "30 of 60" in one.audited(), "it is audited")


async def test_what_is_on_its_way_can_be_cancelled_until_it_serves(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        adopting = one.adopting()
        with pytest.raises(NotFound, match="nothing is on its way"):
            adopting.cancel()
        one.whole = False  # an engine is away: filling waits
        tree, weights = manifest_tree()
        change = await adopting.promote(tree, weights, actor="t", force=True, dry_run=False)
        await eventually(lambda: one.shelf.state().adopting == HEADED, "it is on its way")
        assert adopting.cancel(dry_run=True).epoch == change.epoch
        await asyncio.sleep(0.1)
        assert adopting.progress.step == "filling"
        assert adopting.cancel().epoch == change.epoch
        await eventually(lambda: adopting.progress.step == "failed", "it ended")
        assert "an operator stopped it" in adopting.progress.problem
        await eventually(lambda: one.shelf.state() == State(), "the next start does not go on with it")
        assert (one.spaces.epoch, one.spaces.held(HEADED)) == (EPOCH, None)
        one.whole = True
        assert await promoted(one, adopting) == HEADED
        with pytest.raises(NotFound, match="rolled back"):
            adopting.cancel()


async def test_what_is_cancelled_before_it_is_filled_is_not_filled(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        adopting = one.adopting()
        tree, weights = manifest_tree()
        await adopting.promote(tree, weights, actor="t", force=True, dry_run=False)
        adopting.cancel()  # its task has not run yet
        await eventually(lambda: adopting.progress.step == "failed", "it ended")
        assert one.spaces.epoch == EPOCH


async def test_what_is_cancelled_does_not_serve_though_its_space_is_there_from_its_grace_period(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.grace_s = 5.0
        adopting = one.adopting()
        head = await promoted(one, adopting)
        await adopting.rollback()
        assert adopting.cancel().epoch == EPOCH
        await eventually(lambda: not adopting.busy, "it ended")
        assert one.spaces.epoch == head
        assert "an operator stopped it" in adopting.progress.problem


async def test_nothing_else_begins_before_it_is_noted_what_became_of_the_last(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        written = threading.Event()
        one.shelf = SlowShelf(tmp_path, written)
        adopting = one.adopting()
        tree, weights = manifest_tree()
        one.store.fails = True
        await adopting.promote(tree, weights, actor="t", force=True, dry_run=False)
        await eventually(lambda: one.shelf.state().adopting == HEADED, "it is on its way")
        await asyncio.sleep(0.2)
        with pytest.raises(VersionConflict, match="is on its way"):
            await adopting.promote(tree, weights, actor="t", force=True, dry_run=False)
        written.set()
        await eventually(lambda: adopting.progress.step == "failed", "it failed")
        assert one.shelf.state() == State()


async def test_what_was_cut_short_twice_is_given_up(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.examined()
        one.shelf.note(State(adopting=HEADED, attempts=2))
        adopting = one.adopting()
        assert adopting.progress.step == "failed"
        assert "cut short 2 times" in adopting.progress.problem
        assert one.spaces.epoch == EPOCH
        await promoted(one, adopting)


async def test_what_is_given_up_leaves_no_vector_of_what_is_kept(tmp_path: Path) -> None:
    async with SideFile(tmp_path / SIDE) as side:
        await side.change(HEADED, {"e1": ROWS[1]}, ())
    async with world(tmp_path) as one, one.layered:
        one.examined()
        one.shelf.note(State(adopting=HEADED, attempts=2))
        adopting = one.adopting()
        await eventually(lambda: one.idle, "it is tidied up")
        assert adopting.progress.step == "failed"
    assert ROWS[1].tobytes() not in held_in(tmp_path)


# What cannot be opened


FORM = Form(mode="lora", dim=DIM, inner=32, depth=1, layers=1, rank=1)


def put_layers(one: World, seed: int) -> str:
    """Leave an encoder with changed layers on the shelf, as it once was promoted."""
    manifest, weights = pack(Layers(form=FORM, flat=FORM.start(seed)), manifest_of(EPOCH))
    artefact = one.shelf.checked(manifest, weights, "it")
    one.shelf.put(artefact, weights)
    return artefact.epoch


async def test_going_back_by_itself_passes_over_what_cannot_be_opened_and_is_told_once(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        first = await promoted(one, one.adopting())
        lost = [put_layers(one, seed) for seed in (1, 2)]
        one.shelf.note(State(serving=first, before=("", *lost), watched=(4, 100)))
        with structlog.testing.capture_logs() as logs:
            adopting = one.adopting()
            one.heard = share(30, 60)
            await adopting.tend()
            await eventually(lambda: one.spaces.epoch == EPOCH and not adopting.progress.step, "the encoder serves")
            await eventually(lambda: "encoders.rollback" in one.audited(), "it is audited")
            for _ in range(3):
                await adopting.tend()  # nothing is left to go back for
        told = [line["event"] for line in logs if line["log_level"] != "info"]
        assert told == ["head_left_out", "head_left_out", "head_rolled_back"]
        assert [line["epoch"] for line in logs if line["event"] == "head_left_out"] == [*reversed(lost)]
        assert one.audited().count("encoders.rollback") == 1
        assert list(adopting.before) == []


async def test_an_operator_goes_back_past_what_cannot_be_opened_as_well(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        first = await promoted(one, one.adopting(), 3)
        second = await promoted(one, one.adopting(), 4)
        lost = put_layers(one, 1)
        one.shelf.note(State(serving=second, before=("", first, lost)))
        adopting = one.adopting()
        assert (await adopting.rollback()).epoch == lost
        await eventually(lambda: one.spaces.epoch == first and not adopting.progress.step, "the one before serves")
        assert list(adopting.before) == [""]


async def test_a_store_that_fails_costs_no_head_and_no_line_in_the_audit_log(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        adopting = one.adopting()
        first, second = await promoted(one, adopting, 3), await promoted(one, adopting, 4)
        await eventually(lambda: one.idle, "the space of the first is closed")
        one.store.fails = True
        one.heard = share(55, 60)
        await adopting.tend()
        await eventually(lambda: adopting.progress.step == "failed", "it failed")
        assert one.spaces.epoch == second
        assert "encoders.rollback" not in one.audited()
        one.store.fails = False
        await adopting.tend()
        await eventually(lambda: one.spaces.epoch == first and not adopting.progress.step, "it went")
        await eventually(lambda: one.audited().count("encoders.rollback") == 1, "it is audited")


@pytest.mark.parametrize(
    "ends",
    [
        pytest.param((0, 10), id="as often as it is waited for"),
        pytest.param((64, 64, 128, 100), id="anew where it got further"),
    ],
)
async def test_a_store_that_is_away_in_the_midst_is_read_again(tmp_path: Path, ends: Sequence[int]) -> None:
    async with world(tmp_path) as one:
        one.store.rows = units(200)
        one.store.ends = ends
        adopting = one.adopting()
        assert await promoted(one, adopting) == HEADED
        assert len(one.spaces) == 200
        [found, *_] = await one.spaces.search(partition(epoch=HEADED), one.store.rows[150], 2)
        assert found.entry_id == "e150"
        assert found.similarity == pytest.approx(1.0)


async def test_a_store_that_stays_away_is_given_up(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.store.ends = (0, 10, 10)
        adopting = one.adopting()
        tree, weights = manifest_tree()
        await adopting.promote(tree, weights, actor="t", force=True, dry_run=False)
        await eventually(lambda: adopting.progress.step == "failed", "it failed")
        assert "away" in adopting.progress.problem
        assert (one.spaces.epoch, one.spaces.held(HEADED)) == (EPOCH, None)


async def test_a_way_back_that_a_stop_cut_short_is_audited_once_it_is_gone(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        first = await promoted(one, one.adopting())
        one.shelf.note(State(serving=first, before=("",), adopting="", back=True, attempts=1, why="hits were wrong"))
        adopting = one.adopting()
        await eventually(lambda: one.spaces.epoch == EPOCH and not adopting.progress.step, "it went")
        await eventually(lambda: one.audited().count("hits were wrong") == 1, "it is audited")


# What is left on disk


async def test_no_more_than_a_few_heads_are_kept_and_none_that_is_needed_goes(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        adopting = one.adopting()
        epochs = [await promoted(one, adopting, seed) for seed in range(MOST_KEPT + 4)]
        await eventually(lambda: len(adopting.known()) <= MOST_KEPT + 1, "the oldest are gone")
        assert len(adopting.before) == MOST_KEPT
        assert set(adopting.known()) >= {epoch for epoch in adopting.before if epoch} | {epochs[-1]}
        assert epochs[0] not in adopting.known()
        for _ in range(MOST_KEPT - 1):
            await back(one, adopting)
        assert await back(one, adopting) == EPOCH  # the encoder alone can always be gone back to


async def test_of_all_that_served_only_the_last_ones_export_is_wanted(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        first = await promoted(one, one.adopting())
        await eventually(lambda: one.idle, "it is done")
        assert one.layered.wanted == frozenset()  # a head has no export
        older, latest = put_layers(one, 1), put_layers(one, 2)
        one.shelf.note(State(serving=first, before=("", older, latest)))
        one.adopting()
        await eventually(lambda: one.idle, "it is done")
        assert one.layered.wanted == {latest}
