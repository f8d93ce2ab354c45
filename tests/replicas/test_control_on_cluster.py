"""What replicas share beside documents, on a Cluster: every step of it stays within one slot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cacheproxy.access.keyring import KeyRecord
from cacheproxy.access.limits import Accounts
from cacheproxy.access.sharedkeys import SharedKeys
from cacheproxy.access.usage import SharedUsage, spent_today
from cacheproxy.clock import SystemClock
from cacheproxy.govern.fleet import Fleet
from cacheproxy.govern.versions import Version
from cacheproxy.learn.sharedlabels import BEGINNING, Labels, SharedLabel
from cacheproxy.learn.words import SharedWord, Words
from cacheproxy.ports import Turn
from cacheproxy.shared.erasures import Asked, Erasures
from cacheproxy.shared.flights import SharedFlights
from cacheproxy.shared.installs import Installs
from tests.support.fleet import linked
from tests.support.redis_groups import redis_cluster

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

SECRET = b"s" * 32


async def test_every_kind_of_state_works_on_a_cluster(tmp_path: Path) -> None:
    async with redis_cluster() as cluster, linked(cluster) as (link, layout):
        assert await Installs(link, layout, by_file=False).agree(SECRET, ours=False) == SECRET
        fleet = Fleet(link, layout, log_messages=100)
        version = Version(n=1, at_s=1.0, actor="a", action="b", reason="", source="d", settled=False, pack_json="{}")
        await fleet.append(version, after=0)
        assert await fleet.newest() == await fleet.find(1) == version
        assert [one.n for one in await fleet.listed()] == [1]
        assert await fleet.known("d")
        words = Words(link, layout, log_messages=100)
        word = SharedWord(at_s=1.0, tenant="t", entry_id="e", question=b"q" * 16, good=False)
        await words.say(word)
        assert [one async for one in words.all()] == [word]
        await words.unsay([word.pair])
        assert [one async for one in words.all()] == []
        keys = SharedKeys(link, layout, SECRET, log_messages=100)
        record = KeyRecord(id="k", name="k", hash="0" * 64, tenant="t", tokens_per_day=10)
        assert await keys.change(lambda _: [record]) == await keys.records()
        accounts, clock = Accounts(), SystemClock()
        accounts.adopt([record], clock.monotonic())
        accounts.of("k").charge_tokens(7, clock.monotonic(), clock.now())
        await SharedUsage(link, layout, lambda: accounts, clock).tend()
        assert await spent_today(link, layout, clock.now()) == {"k": 7}
        labels = Labels(link, layout, "r")
        label = SharedLabel(
            by="r",
            verifier="v",
            source="shadow",
            tenant="t",
            category="c",
            entry_id="e",
            question=b"q",
            probability=None,
            right=True,
        )
        await labels.tell([label])
        assert (await labels.after(BEGINNING))[0] == [label]
        assert await labels.forget(lambda _: True) == 1
        erasures = Erasures(link, layout, log_messages=100, replica="r", seen=tmp_path / "seen")
        assert await erasures.missed() == []
        asked = Asked(token="x", by="r", asked_s=1.0, purges=False, ids=("e",), meant={"tenant": "t"})
        await erasures.ask(asked)
        assert await erasures.missed() == [asked]
        await erasures.did("x")
        assert await erasures.done_by("x") == {"r"}
        flights = SharedFlights(link, layout, clock)
        for number in range(8):  # of several slots
            key = bytes([number]) * 32
            assert await flights.turn(key, 0.1) is Turn.LEAD
            await flights.release(key, kept=True)
