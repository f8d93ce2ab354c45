"""What replicas learn of the arms is added up: once, in any order, and what a replica learnt before it went stays."""

from __future__ import annotations

from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING

import pytest

from cacheproxy.augment.arms import Arm, Situation
from cacheproxy.augment.sharedarms import SharedArms
from cacheproxy.augment.state import AugmentState
from cacheproxy.clock import SystemClock
from tests.support.fleet import linked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.redis import RedisServer

ASKED = Situation(max_similarity=0.9, mean_helpfulness=0.5, examples=3, question_tokens=40)


class Learning:
    """One replica's state of augmentation."""

    def __init__(self, state: AugmentState, shared: SharedArms) -> None:
        self.state = state
        self.shared = shared

    def reward(self, value: float, times: int = 1) -> None:
        for _ in range(times):
            self.state.router.reward("default", Arm.AUGMENTED, ASKED, value)

    def told(self) -> tuple[float, float, bool]:
        """Return what speaks for the small model with examples: quality, rewards, and whether it is known."""
        scores = self.state.router.scores("default", ASKED, Random(1), 0.0)
        [one] = [one for one in scores if one.arm is Arm.AUGMENTED]
        return one.quality, one.rewards, one.known


@asynccontextmanager
async def learning(redis: RedisServer, folder: Path, name: str, models: str = "m") -> AsyncIterator[Learning]:
    async with linked(redis) as (link, layout), AugmentState(folder / f"{name}.sqlite3", models) as state:
        yield Learning(state, SharedArms(link, layout, state, name, SystemClock()))


async def rounds(*replicas: Learning) -> None:
    for _ in range(3):
        for one in replicas:
            await one.shared.tend()


async def test_two_replicas_know_together_what_neither_knows_alone(redis: RedisServer, tmp_path: Path) -> None:
    async with learning(redis, tmp_path, "one") as one, learning(redis, tmp_path, "other") as other:
        one.reward(0.9, 12)
        other.reward(0.9, 12)
        assert not one.told()[2]
        await rounds(one, other)
        assert one.told()[2]
        assert other.told()[2]
        assert one.told()[:2] == pytest.approx(other.told()[:2])
        assert one.told()[1] < 24.001
        one.reward(0.9)
        await rounds(one, other)
        assert one.told()[:2] == pytest.approx(other.told()[:2])


async def test_who_went_is_remembered_and_who_comes_back_is_counted_once(redis: RedisServer, tmp_path: Path) -> None:
    async with learning(redis, tmp_path, "one") as one:
        one.reward(0.9, 12)
        await rounds(one)
        alone = one.told()[1]
    async with learning(redis, tmp_path, "other") as other:
        await rounds(other)
        assert other.told()[1] == pytest.approx(alone)
        async with learning(redis, tmp_path, "one") as one:
            await rounds(one, other)
            assert one.told()[1] == other.told()[1] == pytest.approx(alone)
            await redis.ask("FLUSHALL")
            await rounds(one, other)
            assert other.told()[1] == pytest.approx(alone)


async def test_other_models_are_not_mixed_in(redis: RedisServer, tmp_path: Path) -> None:
    async with learning(redis, tmp_path, "one") as one, learning(redis, tmp_path, "other", "n") as other:
        one.reward(0.9, 12)
        await rounds(one, other)
        assert other.told()[1] == 0.0


async def test_a_surprise_at_one_replica_is_not_outvoted_by_what_others_knew(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with learning(redis, tmp_path, "one") as one, learning(redis, tmp_path, "other") as other:
        one.reward(0.95, 100)
        other.reward(0.95, 100)
        await rounds(one, other)
        one.reward(0.0, 5)
        await rounds(one, other)
        assert not one.told()[2]
        assert other.told()[2]
        one.reward(0.0, 20)
        await rounds(one, other)
        assert one.told()[0] < 0.5
        one.reward(0.0, 140)
        await rounds(one, other)
        assert one.told()[0] < 0.2  # the other one, which learns nothing new, has not brought the old belief back
        assert one.told()[1] > 120


async def test_without_the_engine_each_goes_by_what_it_knows(redis: RedisServer, tmp_path: Path) -> None:
    async with learning(redis, tmp_path, "one") as one:
        one.reward(0.9, 12)
        await rounds(one)
        await redis.kill()
        await rounds(one)
        assert one.told()[1] > 11
