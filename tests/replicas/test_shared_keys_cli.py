"""`cacheproxy keys` where replicas share an engine: made anywhere, known everywhere."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from cacheproxy.cli import main
from cacheproxy.install import known_secret

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.redis import RedisServer


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the logging of the test process alone."""
    monkeypatch.setattr("cacheproxy.logs.configure", lambda _: None)


async def keys(redis: RedisServer, data_dir: Path, *words: str) -> Result:
    command, *rest = words
    environ = {"CACHEPROXY_STORE__URL": redis.url}
    arguments = ["keys", command, "--data-dir", str(data_dir), *rest]
    return await asyncio.to_thread(lambda: CliRunner(env=environ).invoke(main, arguments))


async def listed(redis: RedisServer, data_dir: Path) -> list[dict[str, object]]:
    result = await keys(redis, data_dir, "list", "--json")
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]  # logs, here, go there too


async def test_a_key_made_from_one_directory_is_seen_limited_and_revoked_from_another(
    redis: RedisServer, tmp_path: Path
) -> None:
    made = await keys(redis, tmp_path / "one", "new", "webshop")
    assert made.exit_code == 0, made.output
    assert "the engine that replicas share" in made.stderr
    [row] = await listed(redis, tmp_path / "two")
    assert (row["name"], row["state"], row["today"]) == ("webshop", "active", 0)
    for words in (("limit", "--rpm", "5"), ("revoke",)):
        done = await keys(redis, tmp_path / "two", words[0], str(row["id"]), *words[1:])
        assert done.exit_code == 0, done.output
    [row] = await listed(redis, tmp_path / "one")
    assert (row["rpm"], row["state"]) == (5, "revoked")
    assert known_secret(tmp_path / "one") == known_secret(tmp_path / "two")
    assert (await keys(redis, tmp_path / "one", "revoke", "nobody")).exit_code == 1


async def test_without_the_engine_keys_say_where_they_are(redis: RedisServer, tmp_path: Path) -> None:
    await redis.kill()
    told = await keys(redis, tmp_path / "one", "list")
    assert told.exit_code == 2
    assert "virtual keys of replicas are kept there" in told.output
