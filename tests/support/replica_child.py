"""One replica's store in a process of its own: it fills, serves and purges as fast as it can, and writes down what was.

`python -m tests.support.replica_child URL DIRECTORY NUMBER KEYS SECONDS OUT` says "ready", begins at a line on stdin,
and writes its history to OUT. Everything but HTTP and the index is the proxy's own: link, leases, followers, store.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import time
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import uvloop

from cacheproxy import settings
from cacheproxy.clock import SystemClock
from cacheproxy.errors import PartUnavailable
from cacheproxy.shared.follower import Follower, Message, head
from cacheproxy.shared.layout import Layout
from cacheproxy.shared.link import Link
from cacheproxy.shared.members import Members
from cacheproxy.store.redis.store import RedisStore
from tests.support.entries import entry_id, make_entry
from tests.support.histories import NEVER_S, Event, Kept, Made, Purged, Served, write_history
from tests.support.polling import eventually, eventually_true

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from cacheproxy.shared.layout import Log

READERS, PURGERS = 6, 3
AT_ONCE = 32
"""Keys of one purge."""
FILLED = 0.3
"""Share of misses that are filled: so long a purged key stays away that whoever missed the purge would show it."""


class Opened:
    """A replica's store with what lets it serve."""

    def __init__(self, store: RedisStore, members: Members) -> None:
        self.store = store
        self.members = members


@asynccontextmanager
async def opened(url: str, directory: Path, name: str, *, lease_ms: int = 2000) -> AsyncIterator[Opened]:
    """Open a store that follows its logs, until the block ends; entered once it serves."""
    chosen, clock = settings.Store(url=url), SystemClock()
    replicas = settings.Replicas(timeout_ms=1000, lease_ms=lease_ms)
    async with Link(chosen, replicas, clock) as link:
        layout = Layout(chosen.prefix, link.shards)
        async with Members(link, layout, replicas, clock, name) as members:
            journal = directory / f"{name}.sqlite3"
            store = RedisStore(link, layout, members, chosen, replicas, clock, journal, leads=lambda: name == "0")
            async with store, asyncio.TaskGroup() as tasks:
                following = [
                    tasks.create_task(_follower(link, layout, log, members, store).run()) for log in layout.logs
                ]
                await eventually(lambda: all(map(members.serving, layout.logs)), "the replica serves", 20)
                try:
                    yield Opened(store, members)
                finally:
                    for task in following:
                        task.cancel()


def _follower(link: Link, layout: Layout, log: Log, members: Members, store: RedisStore) -> Follower:
    async def handle(messages: Sequence[Message]) -> None:
        if log != "c":
            await store.follow(log, messages)

    async def resync(reason: str) -> str:
        return await (head(link, layout, log, 5) if log == "c" else store.resync(log, reason))

    return Follower(link, layout, log, members, handle, resync)


class Racer:
    """Fills, serves and purges the same keys as all other replicas do."""

    def __init__(self, number: int, keys: int, opened_: Opened, until_s: float) -> None:
        self.history: list[Event] = []
        self.refused = 0
        self._number = number
        self._keys = [f"key {key}" for key in range(keys)]
        self._store = opened_.store
        self._members = opened_.members
        self._until_s = until_s
        self._versions = itertools.count(1)

    async def run(self) -> None:
        """Go on until it is time."""
        async with asyncio.TaskGroup() as tasks:
            for lane in range(READERS):
                tasks.create_task(self._read(lane, random.Random(f"{self._number}/read/{lane}")))
            for lane in range(PURGERS):
                tasks.create_task(self._purge(random.Random(f"{self._number}/{lane}")))

    async def _read(self, lane: int, chance: random.Random) -> None:
        start = (lane * len(self._keys)) // READERS
        for key in itertools.islice(itertools.cycle(self._keys), start, None):
            if time.monotonic() > self._until_s:
                return
            try:
                await self._ask(key, fill=chance.random() < FILLED)
            except PartUnavailable:
                self.refused += 1
                await asyncio.sleep(0.01)
            await asyncio.sleep(0)  # a hit in memory waits for nothing

    async def _ask(self, key: str, *, fill: bool) -> None:
        store, began_s = self._store, time.monotonic()
        entry = await store.get(entry_id(key))
        if entry is not None:
            version = int(entry.reply.body["version"])
            self.history.append(Served(self._name, str(entry.reply.body["key"]), version, began_s, time.monotonic()))
            if entry.reply.body["key"] != key:
                raise AssertionError(f"{key} was asked, and {entry.reply.body['key']} answered")
            return
        if not fill:
            return
        fence = store.fence
        version = next(self._versions) * 100 + self._number
        self.history.append(Made(key, version, time.monotonic()))
        await asyncio.sleep(0)  # the backend
        if await store.put(make_entry(key, version=version, dim=0), fence):
            self.history.append(Kept(self._name, key, version, time.monotonic()))

    async def _purge(self, chance: random.Random) -> None:
        while time.monotonic() < self._until_s:
            called_s, binding_s = time.monotonic(), NEVER_S
            keys: list[str] = []
            try:
                keys = [key for key in chance.sample(self._keys, AT_ONCE) if await self._store.get(entry_id(key))]
                called_s = time.monotonic()
                await self._store.purge([entry_id(key) for key in keys])
                positions: dict[Log, str] = dict(self._store.positions.items())
                told = await self._members.acknowledged(positions, 1.0)
                binding_s = time.monotonic() + (0.0 if told.everybody else told.until_s)
            except PartUnavailable:
                self.refused += 1
            self.history += [Purged(key, called_s, binding_s) for key in keys]
            await asyncio.sleep(chance.uniform(0, 0.02))

    @property
    def _name(self) -> str:
        return str(self._number)


async def main(url: str, directory: Path, number: int, keys: int, seconds: float, out: Path) -> None:
    """Race, then wait until all is quiet and write down what is there."""
    async with opened(url, directory, str(number)) as replica:
        _say("ready")
        await asyncio.to_thread(sys.stdin.readline)
        racer = Racer(number, keys, replica, time.monotonic() + seconds)
        await racer.run()
        write_history(out, racer.history)
        _say(str(racer.refused))
        await asyncio.to_thread(sys.stdin.readline)
        view: dict[str, int | None] = {}

        async def looked(key: str) -> bool:
            try:
                entry = await replica.store.get(entry_id(key))
            except PartUnavailable:
                return False  # no lease at this moment: a busy machine
            view[key] = None if entry is None else int(entry.reply.body["version"])
            return True

        for key in (f"key {one}" for one in range(keys)):
            await eventually_true(partial(looked, key), "the replica serves", 30)
        out.with_suffix(".view").write_bytes(msgspec.json.encode(view))


def _say(word: str) -> None:
    sys.stdout.write(f"> {word}\n")  # logs go there, too
    sys.stdout.flush()


if __name__ == "__main__":
    _, url_, directory_, number_, keys_, seconds_, out_ = sys.argv
    uvloop.run(main(url_, Path(directory_), int(number_), int(keys_), float(seconds_), Path(out_)))
