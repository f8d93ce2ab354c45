"""`cacheproxy keys` beside a real proxy: a key is made, used, limited, revoked."""

from __future__ import annotations

import asyncio
import json
import signal
import stat
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from cacheproxy.cli import main
from tests.support.polling import eventually_true
from tests.support.process import serving
from tests.support.proxy import chat

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.proxy import Proxy
    from tests.support.upstream import ScriptedUpstream

KEYS_MODE = {"CACHEPROXY_ACCESS__MODE": "keys", "CACHEPROXY_UPSTREAM__API_KEY": "sk-backend-canary"}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the logging of the test process alone."""
    monkeypatch.setattr("cacheproxy.logs.configure", lambda _: None)


def keys(data_dir: Path, *words: str) -> Result:
    command, *rest = words
    return CliRunner().invoke(main, ["keys", command, "--data-dir", str(data_dir), *rest])


def made(data_dir: Path, *words: str) -> str:
    result = keys(data_dir, "new", *words)
    assert result.exit_code == 0, result.output
    key: str = result.stdout.strip()
    assert key.startswith("sk-cp-")
    assert "\n" not in key
    return key


def listed(data_dir: Path) -> list[dict[str, object]]:
    result = keys(data_dir, "list", "--json")
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_key_is_printed_once_and_kept_as_a_hash(tmp_path: Path) -> None:
    result = keys(tmp_path, "new", "webshop")
    key = result.stdout.strip()
    assert "cannot be shown again" in result.stderr
    assert "CACHEPROXY_ACCESS__MODE=keys" in result.stderr
    assert key not in result.stderr
    kept = (tmp_path / "keys.json").read_text()
    assert key not in kept
    assert stat.S_IMODE((tmp_path / "keys.json").stat().st_mode) == 0o600
    shown = keys(tmp_path, "list").stdout + keys(tmp_path, "list", "--json").stdout
    assert key not in shown
    assert json.loads(kept)["keys"][0]["hash"] not in shown


def test_every_option_reaches_the_record(tmp_path: Path) -> None:
    words = "--tenant shop --model gpt-4o* --model o1 --rpm 10 --tpm 2000 --tokens-per-day 30000 --expires 2031-01-02"
    words += " --answer-ms 1500 --answer-usd 0.002"
    made(tmp_path, "webshop", *words.split(), "--upstream-key-env", "SHOP_KEY")
    (row,) = listed(tmp_path)
    assert str(row.pop("id")).startswith("k")
    assert row == {
        "name": "webshop",
        "tenant": "shop",
        "models": ["gpt-4o*", "o1"],
        "rpm": 10,
        "tpm": 2000,
        "tokens_per_day": 30000,
        "answer_ms": 1500,
        "answer_usd": 0.002,
        "today": 0,
        "expires": "2031-01-02",
        "train": False,
        "state": "active",
    }
    table = keys(tmp_path, "list").stdout
    assert table.splitlines()[0].split()[:3] == ["id", "name", "tenant"]
    assert "gpt-4o*, o1" in table


def test_a_tenant_is_shared_only_on_purpose(tmp_path: Path) -> None:
    made(tmp_path, "webshop")
    refused = keys(tmp_path, "new", "webshop")
    assert refused.exit_code == 2
    assert "--tenant webshop" in refused.stderr
    made(tmp_path, "webshop", "--tenant", "webshop")
    assert [row["tenant"] for row in listed(tmp_path)] == ["webshop", "webshop"]


def test_limits_change_and_go(tmp_path: Path) -> None:
    made(tmp_path, "a", "--rpm", "5", "--tpm", "6")
    made(tmp_path, "b", "--rpm", "5")
    key_id = str(listed(tmp_path)[0]["id"])
    assert keys(tmp_path, "limit", key_id, "--rpm", "7").exit_code == 0
    assert [(row["rpm"], row["tpm"]) for row in listed(tmp_path)] == [(7, 6), (5, None)]
    assert keys(tmp_path, "limit", key_id, "--none", "--tokens-per-day", "9").exit_code == 0
    row = listed(tmp_path)[0]
    assert (row["rpm"], row["tpm"], row["tokens_per_day"]) == (None, None, 9)


def test_consent_is_given_taken_back_and_shown(tmp_path: Path) -> None:
    made(tmp_path, "a", "--train")
    made(tmp_path, "b", "--rpm", "5")
    assert [row["train"] for row in listed(tmp_path)] == [True, False]
    one, other = (str(row["id"]) for row in listed(tmp_path))
    assert keys(tmp_path, "limit", one, "--no-train").exit_code == 0
    assert keys(tmp_path, "limit", other, "--train").exit_code == 0
    assert keys(tmp_path, "limit", other, "--none").exit_code == 0  # a consent is no limit
    assert [(row["train"], row["rpm"]) for row in listed(tmp_path)] == [(False, None), (True, None)]
    head, *rows = keys(tmp_path, "list").stdout.splitlines()
    assert [row[head.index("train") :].split()[0] for row in rows] == ["-", "yes"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["revoke", "nobody"], 1, "no key has the id 'nobody'"),
        (["limit", "nobody", "--rpm", "1"], 1, "no key has the id 'nobody'"),
        (["limit", "nobody"], 2, "nothing to change"),
        (["new"], 2, "NAME"),
        (["new", "x", "--rpm", "0"], 2, "--rpm"),
        (["new", "x", "--answer-usd", "0"], 2, "--answer-usd"),
        (["new", "x", "--expires", "soon"], 2, "--expires"),
        (["new", " x"], 2, r"$.name"),
        (["new", "x", "--tenant", "a\nb"], 2, r"$.tenant"),
        (["new", "x", "--model", ""], 2, r"$.models"),
    ],
)
def test_wrong_use_is_told_with_its_exit_code(tmp_path: Path, words: list[str], code: int, said: str) -> None:
    made(tmp_path, "first")
    before = (tmp_path / "keys.json").read_bytes()
    result = keys(tmp_path, *words)
    assert result.exit_code == code
    assert said in result.stderr
    assert (tmp_path / "keys.json").read_bytes() == before


def test_without_a_file_list_says_how_to_start(tmp_path: Path) -> None:
    result = keys(tmp_path, "list")
    assert result.exit_code == 2
    assert "cacheproxy keys new" in result.stderr


@pytest.mark.parametrize("command", [[], ["new"], ["list"], ["revoke"], ["limit"]])
def test_help_teaches(command: list[str]) -> None:
    result = CliRunner().invoke(main, ["keys", *command, "--help"])
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) > 6


async def ran(data_dir: Path, *words: str) -> str:
    command, *rest = words
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cacheproxy", "keys", command, "--data-dir", str(data_dir), *rest),
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0
    return said.decode().strip()


async def answers(proxy: Proxy, key: str, status: int, within_s: float = 2.0) -> None:
    async def so() -> bool:
        return (await proxy.ask(chat(), key=key)).status == status

    await eventually_true(so, f"{status} for the key", within_s)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_running_proxy_takes_up_new_and_revoked_keys(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    first = await ran(tmp_path, "new", "first")
    async with serving(tmp_path, upstream.url, environ=KEYS_MODE) as server:
        proxy = server.proxy
        await proxy.fill(chat(), key=first)
        second = await ran(tmp_path, "new", "second", "--tenant", "first")
        await answers(proxy, second, 200)
        assert (await proxy.ask(chat(), key=second)).outcome == "hit"
        rows = [json.loads(line) for line in (await ran(tmp_path, "list", "--json")).splitlines()]
        await ran(tmp_path, "revoke", rows[0]["id"])
        await answers(proxy, first, 401, within_s=1.0)
        assert (await proxy.ask(chat(), key=second)).outcome == "hit"
        await ran(tmp_path, "limit", rows[1]["id"], "--rpm", "1")
        await answers(proxy, second, 429)
        server.send(signal.SIGHUP)
        assert await server.stop() == 0
        assert {"keys_read", "pack_reloaded"} <= {event["event"] for event in server.events}
    for key in (first, second, "sk-backend-canary"):
        assert key not in server.said


@pytest.mark.asyncio(loop_scope="module")
async def test_spent_tokens_outlive_a_restart(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    key = await ran(tmp_path, "new", "first", "--tokens-per-day", "1")
    async with serving(tmp_path, upstream.url, environ=KEYS_MODE) as server:
        await server.proxy.fill(chat(), key=key)
        assert await server.stop() == 0
    (row,) = listed(tmp_path)
    assert isinstance(row["today"], int)
    assert row["today"] > 1
    async with serving(tmp_path, upstream.url, environ=KEYS_MODE) as server:
        refused = await server.proxy.ask(chat("Another one?"), key=key)
        refused.assert_problem(429, "rate_limit_exceeded")
        assert (await server.proxy.ask(chat(), key=key)).outcome == "hit"
