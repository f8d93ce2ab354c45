"""Words of callers across replicas: said at one, true at all; the last one by time; erased is erased everywhere."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from cacheproxy.learn.verdicts import Verdict, Verdicts, Word, pairs
from cacheproxy.learn.words import Words
from cacheproxy.model import Selector
from tests.support.fleet import linked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.redis import RedisServer

Q1, Q2 = b"1" * 16, b"2" * 16


def verdict(word: Word, *, entry: str = "e1", question: bytes = Q1, at_s: float = 1.0, **more: Any) -> Verdict:
    told = {"tenant": "t", "category": "default", "similarity": 0.9, "threshold": 0.8, "comment": ""}
    told |= {"entry_text": "How?", "question_text": "How so?"}
    return Verdict(word=word, entry_id=entry, question=question, at_s=at_s, **{**told, **more})


@asynccontextmanager
async def replica(redis: RedisServer, path: Path) -> AsyncIterator[tuple[Verdicts, Words]]:
    async with linked(redis) as (link, layout):
        words = Words(link, layout, log_messages=1000)
        async with Verdicts(path, words=words) as verdicts:
            await verdicts.reload()
            yield verdicts, words


async def told(redis: RedisServer, verdicts: Verdicts) -> None:
    """Let a replica hear all that was ever said, over again."""
    for _, fields in await redis.ask("XRANGE", "{cacheproxy:c}:log", "-", "+"):
        await verdicts.hear(fields[b"payload"])


async def test_a_quarantine_holds_at_all_replicas_and_at_those_that_join(redis: RedisServer, tmp_path: Path) -> None:
    async with replica(redis, tmp_path / "one") as (one, _), replica(redis, tmp_path / "other") as (other, _):
        await one.record(verdict(Word.BAD))
        await told(redis, other)
        assert other.quarantined_s("t", "e1", Q1) == 1.0
        async with replica(redis, tmp_path / "joined") as (joined, _):
            assert joined.quarantined_s("t", "e1", Q1) == 1.0
            assert joined.quarantined_s("t", "e1", Q2) is None
    assert len(list(pairs(tmp_path / "one"))) == 1
    assert list(pairs(tmp_path / "joined")) == []  # texts stay where they were heard
    await redis.kill()
    async with replica_alone(tmp_path / "joined") as alone:
        assert alone.quarantined_s("t", "e1", Q1) == 1.0


@asynccontextmanager
async def replica_alone(path: Path) -> AsyncIterator[Verdicts]:
    async with Verdicts(path) as verdicts:
        yield verdicts


async def test_the_last_word_by_time_wins_in_any_order_of_arrival(redis: RedisServer, tmp_path: Path) -> None:
    async with replica(redis, tmp_path / "one") as (one, _), replica(redis, tmp_path / "other") as (other, _):
        await one.record(verdict(Word.BAD, at_s=20.0))
        await other.record(verdict(Word.GOOD, at_s=10.0))  # said before, told later
        for each in (one, other, one):
            await told(redis, each)
        assert one.quarantined_s("t", "e1", Q1) == other.quarantined_s("t", "e1", Q1) == 20.0
        await other.record(verdict(Word.GOOD, at_s=15.0))  # its clock is behind, but it knows what it answers
        await told(redis, one)
        assert one.quarantined_s("t", "e1", Q1) is None
        assert other.quarantined_s("t", "e1", Q1) is None
        async with replica(redis, tmp_path / "joined") as (joined, _):
            assert joined.standing("t", "e1") == 1


async def test_a_word_said_while_the_engine_was_away_is_told_afterwards(redis: RedisServer, tmp_path: Path) -> None:
    async with replica(redis, tmp_path / "one") as (one, _):
        await one.record(verdict(Word.BAD, entry="e0"))
        redis.pause()
        await one.record(verdict(Word.BAD))
        assert one.quarantined_s("t", "e1", Q1) == 1.0
        redis.resume()
        await one.reload()
        async with replica(redis, tmp_path / "joined") as (joined, _):
            assert joined.quarantined_s("t", "e1", Q1) == 1.0


async def test_an_emptied_engine_is_told_again(redis: RedisServer, tmp_path: Path) -> None:
    async with replica(redis, tmp_path / "one") as (one, _):
        await one.record(verdict(Word.BAD))
        await redis.ask("FLUSHALL")
        await one.reload()
        async with replica(redis, tmp_path / "joined") as (joined, _):
            assert joined.quarantined_s("t", "e1", Q1) == 1.0


async def test_what_is_erased_cannot_be_learnt_again(redis: RedisServer, tmp_path: Path) -> None:
    async with replica(redis, tmp_path / "one") as (one, _), replica(redis, tmp_path / "other") as (other, _):
        await one.record(verdict(Word.BAD, user="u"))
        await one.record(verdict(Word.BAD, question=Q2))
        await told(redis, other)
        assert await other.forget(Selector(user="u")) == 1
        await other.reload()
        assert other.quarantined_s("t", "e1", Q1) is None
        assert other.quarantined_s("t", "e1", Q2) == 1.0
        async with replica(redis, tmp_path / "joined") as (joined, _):
            assert len(joined) == 1
        await other.forget(Selector(tenant="t"))
        assert await redis.ask("KEYS", "*words*") == []


async def test_no_tenant_pushes_out_anothers_words(redis: RedisServer, tmp_path: Path) -> None:
    async with linked(redis) as (link, layout):
        words = Words(link, layout, log_messages=100, most_of_a_tenant=3)
        async with Verdicts(tmp_path / "one", words=words) as one:
            await one.record(verdict(Word.BAD))
            for number in range(5):
                await one.record(verdict(Word.BAD, tenant="noisy", entry=f"n{number}", at_s=10.0 + number))
        kept = sorted([(word.tenant, word.entry_id) async for word in words.all()])
        assert kept == [("noisy", "n2"), ("noisy", "n3"), ("noisy", "n4"), ("t", "e1")]
