"""Labels of replicas: each learns from all, once, also over restarts; erased ones teach nobody any more."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from cacheproxy.install import name_of
from cacheproxy.learn.budget import Budget, Label
from cacheproxy.learn.sharedlabels import Labels
from cacheproxy.model import Selector
from tests.support.clock import FakeClock
from tests.support.fleet import linked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest

    from tests.support.redis import RedisServer


@asynccontextmanager
async def learning(redis: RedisServer, folder: Path, verifier: str = "v") -> AsyncIterator[Budget]:
    folder.mkdir(exist_ok=True)  # noqa: ASYNC240 - a test's own folder
    async with linked(redis) as (link, layout):
        labels = Labels(link, layout, name_of(folder))
        async with Budget(folder / "budget.sqlite3", verifier, FakeClock(), labels=labels) as budget:
            yield budget


def word(entry: str, *, right: bool = True, user: str = "", question: bytes = b"q" * 32) -> Label:
    return Label(
        source="feedback",
        tenant="t",
        category="default",
        entry_id=entry,
        question=question,
        probability=0.9,
        right=right,
        user=user,
    )


def known(budget: Budget) -> dict[str, int]:
    return budget.standing("default", 0.5, 0.02).sources


async def test_every_replica_learns_from_all_labels_once(redis: RedisServer, tmp_path: Path) -> None:
    async with learning(redis, tmp_path / "one") as one, learning(redis, tmp_path / "other") as other:
        assert one.hear(word("e1"))
        assert other.hear(word("e2", right=False))
        assert other.hear(word("e1"))  # the same word on the same answer, not yet heard of
        for _ in range(3):
            await one.converge()
            await other.converge()
        assert known(one) == known(other) == {"feedback": 2}
        async with learning(redis, tmp_path / "joined") as joined:
            await joined.converge()
            assert known(joined) == {"feedback": 2}


async def test_a_restart_repeats_and_loses_nothing(redis: RedisServer, tmp_path: Path) -> None:
    async with learning(redis, tmp_path / "one") as one, learning(redis, tmp_path / "other") as other:
        one.hear(word("e1"))
        other.hear(word("e2"))
        for each in (one, other, one):
            await each.converge()
    async with learning(redis, tmp_path / "one") as one:
        await one.converge()
        assert known(one) == {"feedback": 2}


async def test_labels_of_another_verifier_teach_nothing(redis: RedisServer, tmp_path: Path) -> None:
    async with learning(redis, tmp_path / "one") as one, learning(redis, tmp_path / "other", "w") as other:
        one.hear(word("e1"))
        await one.converge()
        await other.converge()
        assert known(other) == {}


async def test_without_the_engine_labels_wait(redis: RedisServer, tmp_path: Path) -> None:
    async with learning(redis, tmp_path / "one") as one, learning(redis, tmp_path / "other") as other:
        await redis.kill()
        one.hear(word("e1"))
        await one.converge()
        assert known(one) == {"feedback": 1}
        await redis.start()
        for _ in range(2):
            await one.converge()
        await other.converge()
        assert known(other) == {"feedback": 1}


async def test_what_is_labelled_while_others_are_told_is_told_afterwards(
    redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where more waits than there is room for, so that the oldest of it has to go."""
    monkeypatch.setattr("cacheproxy.learn.labelexchange._MOST_UNTOLD", 2)
    async with learning(redis, tmp_path / "one") as one, learning(redis, tmp_path / "other") as other:
        one.hear(word("e1"))
        one.hear(word("e2"))
        redis.pause()
        telling = asyncio.create_task(one.converge())
        await asyncio.sleep(0.2)
        one.hear(word("e3"))
        one.hear(word("e4"))
        redis.resume()
        await telling
        await one.converge()
        await other.converge()
        assert known(other) == {"feedback": 4}


async def test_what_is_erased_while_it_is_told_teaches_nobody(redis: RedisServer, tmp_path: Path) -> None:
    async with learning(redis, tmp_path / "one") as one:
        one.hear(word("e1", user="u"))
        one.hear(word("e2"))
        redis.pause()
        telling = asyncio.create_task(one.converge())
        await asyncio.sleep(0.2)
        forgetting = asyncio.create_task(one.forget(Selector(user="u")))
        await asyncio.sleep(0.2)
        redis.resume()
        await asyncio.gather(telling, forgetting)
        async with learning(redis, tmp_path / "joined") as joined:
            await joined.converge()
            assert known(joined) == {"feedback": 1}


async def test_what_is_erased_teaches_nobody_who_joins(redis: RedisServer, tmp_path: Path) -> None:
    async with learning(redis, tmp_path / "one") as one:
        one.hear(word("e1", user="u"))
        one.hear(word("e2"))
        await one.converge()
        await one.forget(Selector(user="u"))
        async with learning(redis, tmp_path / "joined") as joined:
            await joined.converge()
            assert known(joined) == {"feedback": 1}
