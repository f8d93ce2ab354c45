"""A head is adopted to the end, or leaves everything as it was; and goes when hits become wrong."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import pytest

from cacheproxy.adopting import Adopting, Means
from cacheproxy.embed.headfile import WEIGHTS, epoch_of, pack
from cacheproxy.embed.headshelf import HeadShelf, State
from cacheproxy.errors import NotFound, VersionConflict
from cacheproxy.index.spaces import Spaces
from cacheproxy.learn.lookups import LookupLog
from cacheproxy.policy.active import Policy
from cacheproxy.policy.bound import share
from cacheproxy.policy.pack import Category, Encoder, Pack
from cacheproxy.supervise import Supervisor
from cacheproxy.telemetry import Telemetry
from tests.support.clock import FakeClock
from tests.support.heads import manifest_of, rotation
from tests.support.index_world import DIM, EPOCH, graphs_from, partition, scan, units
from tests.support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from cacheproxy.examining import Examining
    from cacheproxy.index.restore import Row
    from cacheproxy.policy.bound import Share
    from cacheproxy.policy.learnt import Learnt

HEAD = rotation(DIM, seed=3)
HEADED = epoch_of(EPOCH, HEAD)
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

    def scan(self, epoch: str) -> AsyncIterator[Row]:
        assert epoch == EPOCH
        return scan({f"e{at}": (partition(), row) for at, row in enumerate(ROWS)})


class World:
    """What adopting has around it. Nothing is examined here: what was to be adopted was examined before."""

    def __init__(self, folder: Path, spaces: Spaces, supervisor: Supervisor) -> None:
        self.folder = folder
        self.spaces = spaces
        self.shelf = HeadShelf(folder, EPOCH, DIM)
        self.learnt: dict[str, Learnt] = {}
        self.heard: Share = share(0, 0)
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
                examining=cast("Examining", None),
                store=Store(),
                policy=self._policy,
                lookups=LookupLog(self._policy, Telemetry(), FakeClock(), EPOCH),
                heard=lambda: self.heard,
                spawn=self._supervisor.spawn,
                grace_s=0.01,
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

    def damage(self) -> None:
        """Leave nothing of the weights of the head on the shelf."""
        for file in self.folder.glob(f"*/{WEIGHTS}"):
            file.write_bytes(b"")


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    async with Spaces(graphs_from(10_000), dim=DIM, base=EPOCH) as spaces, Supervisor() as supervisor:
        for at, row in enumerate(ROWS):
            spaces.add(partition(), f"e{at}", row)
        yield World(folder, spaces, supervisor)


async def test_what_a_stop_cut_short_goes_on(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.examined()
        adopting = one.adopting()
        assert adopting.progress.step == "filling"
        with pytest.raises(VersionConflict, match="on its way"):
            await adopting.rollback()
        await eventually(lambda: adopting.progress.step == "", "it serves")
        assert (one.spaces.epoch, len(one.spaces)) == (HEADED, 20)
        assert one.shelf.state() == State(serving=HEADED, before=("",))
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
