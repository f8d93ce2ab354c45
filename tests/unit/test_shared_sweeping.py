"""A replica's sweeps: what one removed for all stays away, however late the log tells that it came."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cacheproxy.errors import StoreUnavailable
from cacheproxy.model import Selector
from cacheproxy.store.caps import Caps
from cacheproxy.store.codec import encode
from cacheproxy.store.meta import decode_meta, encode_meta
from cacheproxy.store.redis.directory import Directory
from cacheproxy.store.redis.sweeping import Sweeping
from tests.support.clock import FakeClock
from tests.support.entries import entry_id, make_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cacheproxy.store.meta import Meta

ROOMY = Caps(max_entries=100, max_bytes=2**30)


class _Engine:
    """Stands for `Documents`: a real engine and its log cannot be made to answer in a chosen order."""

    def __init__(self, directory: Directory, late: Meta) -> None:
        self.evicted: list[tuple[str, int]] = []
        self.away = False
        self.meanwhile: Callable[[], object] = lambda: None
        self._directory = directory
        self._late = late

    def shard_of(self, name: str) -> int:
        return 0

    async def evict(self, shard: int, entries: Sequence[tuple[str, int]]) -> None:
        self._directory.put(self._late, 0.0)  # the follower is at the message of its coming just now
        self.meanwhile()
        if self.away:
            raise StoreUnavailable("away")
        self.evicted += entries


def meta(key: str, ver: int) -> Meta:
    return decode_meta(encode_meta(encode(make_entry(key, ttl_s=10))), entry_id(key), ver)


def sweeping(clock: FakeClock) -> tuple[Sweeping, Directory, _Engine]:
    directory = Directory(1, lambda _: 0)
    engine = _Engine(directory, meta("a", 1))
    directory.put(meta("a", 1), clock.now())
    found = Sweeping(directory, engine, clock, ROOMY, dict, leads=lambda: True)  # type: ignore[arg-type] # see _Engine
    return found, directory, engine


async def test_the_message_of_its_coming_does_not_bring_a_swept_entry_back() -> None:
    clock = FakeClock()
    sweeps, directory, engine = sweeping(clock)
    clock.advance(10)
    assert await sweeps.sweep(reachable=True) == [entry_id("a")]
    assert len(directory) == 0  # the message came while the engine was asked
    assert not directory.put(meta("a", 1), clock.now())  # and once more after that
    assert await sweeps.sweep(reachable=True) == []
    assert engine.evicted == [(entry_id("a"), 1)]
    assert sum(sweeps.evictions.values()) == 1
    assert directory.put(meta("a", 2), clock.now()), "what is kept anew is there"


async def test_what_the_engine_was_not_told_of_is_there_again() -> None:
    clock = FakeClock()
    sweeps, directory, engine = sweeping(clock)
    clock.advance(10)
    engine.away = True
    with pytest.raises(StoreUnavailable):
        await sweeps.sweep(reachable=True)
    assert len(directory) == 1
    engine.away = False
    assert await sweeps.sweep(reachable=True) == [entry_id("a")]
    assert sum(sweeps.evictions.values()) == 1


async def test_what_was_removed_while_a_sweep_was_in_vain_is_not_there_again() -> None:
    clock = FakeClock()
    sweeps, directory, engine = sweeping(clock)
    clock.advance(10)
    engine.away, engine.meanwhile = True, lambda: directory.removed(entry_id("a"), 2)
    with pytest.raises(StoreUnavailable):
        await sweeps.sweep(reachable=True)
    assert len(directory) == 0


async def test_what_was_hidden_while_a_sweep_was_in_vain_stays_hidden() -> None:
    clock = FakeClock()
    sweeps, directory, engine = sweeping(clock)
    clock.advance(10)
    everything = Selector(before_s=clock.now() + 1)
    engine.away, engine.meanwhile = True, lambda: directory.hide(0, everything, 2)
    with pytest.raises(StoreUnavailable):
        await sweeps.sweep(reachable=True)
    assert len(directory) == 0
    assert [meta.id for meta in directory.doomed()] == [entry_id("a")], "it is still to be removed"
