"""The commands that operate a running proxy, beside a real one."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from click.testing import CliRunner

from cacheproxy.admin_cli import COMMANDS as OPERATING
from cacheproxy.cli import main
from cacheproxy.entries_cli import COMMANDS as KEEPING
from cacheproxy.examples_cli import COMMANDS as LEARNING
from tests.support.proxy import PARAPHRASE, QUESTION, chat, proxy_settings, started

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import click

    from tests.support.proxy import Proxy
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")
TOKEN = "an-admin-token-of-some-length"
PLAIN = {"x-cacheproxy-category": "default"}


class Cli:
    """`cacheproxy` in a thread, so that the proxy in this loop can answer it."""

    def __init__(self, data_dir: Path, token: str = TOKEN) -> None:
        self.data_dir = data_dir
        self.token = token

    async def __call__(self, *words: str, code: int = 0, stdin: bytes | None = None) -> str:
        """Return stdout, after checking the exit code; stderr stands behind it where the code is not 0."""
        told = {"CACHEPROXY_ADMIN__TOKEN": self.token, "CACHEPROXY_DATA__DIR": str(self.data_dir)}
        runner = CliRunner(env=told)
        result = await asyncio.to_thread(runner.invoke, main, list(words), input=stdin)
        assert result.exit_code == code, (result.output, result.exception)
        return str(result.stdout if code == 0 else result.output)

    async def json(self, *words: str) -> Any:
        """Return the one JSON value that a command prints."""
        return json.loads(await self(*words, "--json"))

    async def lines(self, *words: str) -> list[dict[str, Any]]:
        """Return the JSON objects that a command prints, one a line."""
        return [json.loads(line) for line in (await self(*words, "--json")).splitlines()]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the logging of the test process alone."""
    monkeypatch.setattr("cacheproxy.logs.configure", lambda _: None)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(
    module_upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Proxy, Path]]:
    """A proxy that asks for a token, and its data directory."""
    folder = tmp_path_factory.mktemp("data")
    settings = proxy_settings(module_upstream.url, folder, admin={"token": TOKEN})
    async with started(settings) as live:
        yield live, folder


@pytest.fixture
def live(running: tuple[Proxy, Path], upstream: ScriptedUpstream) -> Proxy:
    return running[0]


@pytest.fixture
def cli(running: tuple[Proxy, Path]) -> Cli:
    return Cli(running[1])


async def entry_of(live: Proxy, key: str) -> str:
    first = await live.fill(chat(), key=key, headers=PLAIN)
    return first.get("x-cacheproxy-entry") or ""


async def test_entries_are_listed_shown_and_deleted(live: Proxy, cli: Cli, key: str) -> None:
    entry = await entry_of(live, key)
    tenant = next(row["tenant"] for row in await cli.lines("entries", "list") if row["id"] == entry)
    table = await cli("entries", "list", "--tenant", tenant, "--q", "PASSWORD")
    assert table.split()[:2] == ["id", "category"]
    assert entry in table
    assert QUESTION in table
    assert "no entries" in await cli("entries", "list", "--tenant", tenant, "--tag", "none")
    shown = await cli.json("entries", "show", entry)
    assert shown["text"] == QUESTION
    assert QUESTION in await cli("entries", "show", entry)
    assert "1 entry would go" in await cli("entries", "delete", entry, "--dry-run")
    assert "1 entry removed" in await cli("entries", "delete", entry)
    assert "no entry has this id" in await cli("entries", "show", entry, code=1)
    assert "no entry has this id" in await cli("entries", "delete", entry, code=1)


async def test_a_listing_goes_over_many_pages(live: Proxy, cli: Cli, key: str) -> None:
    items = [{"text": f"What is {n} and {n}?", "model": "m", "answer": "x"} for n in range(7)]
    lines = "\n".join(json.dumps(item) for item in items)
    assert "7 stored" in await cli("warm", "-", "--key", key, stdin=lines.encode())
    rows = await cli.lines("entries", "list", "--model", "m", "--limit", "5")
    assert len(rows) == 5


async def test_purge_takes_every_selector(live: Proxy, cli: Cli, key: str) -> None:
    entry = await entry_of(live, key)
    for words in (
        ("--id", entry),
        ("--category", "default", "--id", entry),
        ("--model", chat()["model"], "--id", entry),
        ("--older-than", "0s", "--id", entry),
        ("--similar-to", PARAPHRASE, "--radius", "0.2", "--id", entry),
    ):
        assert entry in await cli("purge", *words, "--dry-run"), words
    assert (await cli.json("purge", "--older-than", "0", "--dry-run"))["purged"] >= 1
    assert "0 entries would go" in await cli("purge", "--older-than", "1d", "--id", entry, "--dry-run")
    done = await cli.json("purge", "--id", entry, "--erase")
    assert (done["ids"], done["dry_run"]) == ([entry], False)
    assert {part["part"] for part in done["parts"]} >= {"entries", "snapshots"}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["purge"], 2, "nothing to purge by"),
        (["purge", "--similar-to", "x"], 2, "go together"),
        (["purge", "--similar-to", "x", "--radius", "3"], 2, "--radius"),
        (["purge", "--older-than", "soon"], 2, "7d"),
        (["purge", "--tenant", "webshop"], 2, "64 hex digits"),
        (["purge", "--id", "x"], 2, "$.ids"),
        (["entries", "list", "--limit", "0"], 2, "--limit"),
        (["policies", "patch", "default", "threshold"], 2, "KEY=VALUE"),
        (["policies", "patch", "default", "threshold=7"], 2, "threshold"),
        (["policies", "patch", "default", "surprise=1"], 2, "surprise"),
        (["policies", "show", "no-such"], 1, "no category"),
        (["policies", "rollback", "999"], 1, "999"),
        (["policies", "put", "nowhere.json"], 2, "nowhere.json"),
        (["sweep", "none-such", "0.9"], 2, "unknown category"),
        (["sweep", "default"], 2, "give thresholds, probabilities, or both"),
        (["near-misses", "promote", "none"], 1, "no near miss"),
        (["recommendations", "apply", "none"], 1, "recommended"),
        (["warm", "nowhere.jsonl"], 2, "nowhere.jsonl"),
    ],
)
async def test_wrong_use_and_a_no_are_told_apart(cli: Cli, live: Proxy, words: list[str], code: int, said: str) -> None:
    assert said in await cli(*words, code=code)


async def test_warm_tells_the_lines_that_were_not_kept(live: Proxy, cli: Cli, key: str, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    good = {"text": QUESTION, "model": chat()["model"], "answer": "Use the link."}
    lines = [json.dumps(good), "", "{", json.dumps({**good, "answer": ""}), json.dumps({**good, "x": 1}), "[]"]
    file.write_text("\n".join(lines), encoding="utf-8")
    said = await cli("warm", str(file), "--key", key, code=1)
    assert "1 stored, 1 refused, 3 invalid, 0 failed" in said
    for told in ("line 3: invalid", "line 4: refused: no_content", "line 5: invalid", "line 6: invalid"):
        assert told in said
    assert (await live.ask(chat(), key=key)).content == "Use the link."


async def test_warm_can_be_run_again_and_tried_first(live: Proxy, cli: Cli, key: str, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    items = [{"text": f"What is {n} times two?", "model": "m2", "answer": str(2 * n), "key": key} for n in range(150)]
    file.write_text("\n".join(json.dumps(item) for item in items), encoding="utf-8")
    assert "150 stored, 0 refused, 0 invalid, 0 failed (dry run)" in await cli("warm", str(file), "--dry-run")
    assert not await live.cached(chat("What is 7 times two?", model="m2"), key=key)
    for _ in range(2):
        assert "150 stored" in await cli("warm", str(file))
    assert len(await cli.lines("entries", "list", "--model", "m2", "--limit", "1000")) == 150


async def test_policies_are_changed_and_taken_back(live: Proxy, cli: Cli, tmp_path: Path) -> None:
    before = (await cli.json("policies", "show", "default"))["ttl_s"]
    assert "nothing was changed" in await cli("policies", "patch", "default", "ttl_s=77", "--dry-run")
    assert "ttl_s" in await cli("policies", "patch", "default", "ttl_s=77", "--reason", "a test")
    assert (await cli.json("policies", "show", "default"))["ttl_s"] == 77
    versions = (await cli.json("policies", "versions"))["versions"]
    assert versions[0]["reason"] == "a test"
    assert "a test" in await cli("policies", "versions")
    await cli("policies", "rollback", str(versions[1]["version"]))
    assert (await cli.json("policies", "show", "default"))["ttl_s"] == before
    file = tmp_path / "pack.json"
    file.write_text(json.dumps(await cli.json("policies", "show")), encoding="utf-8")
    assert "every probe passes" in await cli("policies", "validate", str(file))
    assert "no change" in await cli("policies", "put", str(file))
    assert "version" in await cli("policies", "put", str(file), "--if-match", '"0"', code=1)
    broken = json.loads(file.read_text(encoding="utf-8"))
    broken["categories"]["default"]["ttl_s"] = -1
    file.write_text(json.dumps(broken), encoding="utf-8")
    assert "ttl_s" in await cli("policies", "validate", str(file), code=1)


async def test_figures_are_shown_as_tables_and_as_json(live: Proxy, cli: Cli, key: str) -> None:
    await entry_of(live, key)
    assert await live.cached(chat(), key=key, headers=PLAIN)
    assert "default" in await cli("stats")
    assert {"category", "total"} <= set((await cli.json("stats"))["categories"][0])
    assert "0.9" in await cli("sweep", "default", "0.8", "0.9")
    assert len((await cli.json("sweep", "default", "0.8", "0.9"))["swept"]) == 2
    assert "in_flight" in await cli("upstreams")
    assert (await cli.json("upstreams"))["upstreams"]
    assert "recommended" in await cli("recommendations", "list")
    assert "recommendations" in await cli.json("recommendations", "list")
    assert "near misses" in await cli("near-misses", "list", "--category", "none-such")
    await cli("purge", "--tag", "none")
    assert "purge" in await cli("audit")
    assert (await cli.json("audit", "--limit", "2"))["deeds"]


async def test_the_token_is_asked_for_and_named(live: Proxy, running: tuple[Proxy, Path]) -> None:
    assert "CACHEPROXY_ADMIN__TOKEN" in await Cli(running[1], token="")("stats", code=2)
    said = await Cli(running[1], token="wrong-token-canary")("stats", code=2)
    assert "canary" not in said


async def test_without_a_proxy_the_message_says_what_to_do(tmp_path: Path) -> None:
    said = await Cli(tmp_path)("stats", code=2)
    assert str(tmp_path) in said
    assert "cacheproxy serve" in said
    assert "--url" in await Cli(tmp_path)("stats", "--url", "file:///etc/passwd", code=2)
    assert "did not answer" in await Cli(tmp_path)("stats", "--url", "http://127.0.0.1:9", code=1)


async def test_what_callers_wrote_does_not_steer_the_terminal(live: Proxy, cli: Cli, key: str) -> None:
    await live.fill(chat("Clear \x1b[2J\x07 this [bold]screen[/bold] now?"), key=key)
    said = await cli("entries", "list", "--limit", "1000")
    assert "[bold]screen" in said
    assert "\x1b" not in said
    assert "\x07" not in said


@pytest.mark.parametrize("command", [*KEEPING, *OPERATING, *LEARNING], ids=lambda command: command.name)
async def test_help_shows_examples(command: click.Command) -> None:
    for words in ([], *([name] for name in getattr(command, "commands", {}))):
        result = CliRunner().invoke(main, [str(command.name), *words, "--help"])
        assert result.exit_code == 0
        assert "Example" in result.stdout
        assert f"cacheproxy {' '.join([str(command.name), *words])}" in result.stdout


async def test_as_a_process_it_says_one_line_and_ends(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cacheproxy", "stats", "--data-dir", str(tmp_path)),
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    assert process.returncode == 2
    assert len(said.decode().splitlines()) == 1
