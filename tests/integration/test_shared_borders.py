"""What goes on for as long as a proxy runs: one failure that nobody foresaw ends neither heartbeats nor an election."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Never

from tests.support.polling import eventually
from tests.support.shared_store import joined_store

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.support.redis import RedisServer


async def test_an_unforeseen_failure_ends_neither_heartbeats_nor_the_election(
    redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with joined_store(redis.url, tmp_path / "a", lease_ms=400) as one:
        failed = set[str]()

        async def fails(script: Any, *_: Any, **__: Any) -> Never:
            failed.add(script.text)
            raise RuntimeError("told to")

        with monkeypatch.context() as patch:
            patch.setattr(one.link, "slow_run", fails)
            await eventually(lambda: len(failed) >= 2, "a heartbeat and a candidacy failed", within_s=5)
            await eventually(lambda: not one.members.serving(0), "its lease has ended", within_s=5)
        await eventually(lambda: one.members.serving(0), "heartbeats go on", within_s=5)
        assert one.election._running is not None
        assert not one.election._running.done()
