"""The command line as its users meet it: real processes, exit codes, one clear line when something is wrong.

Most of what opens an encoder in a process of its own is marked slow.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
import pytest

from cacheproxy import __version__
from cacheproxy.cli import main
from cacheproxy.install import running_admin_url
from cacheproxy.policy.loader import find_pack
from tests.support.encoders import write_model
from tests.support.process import serving
from tests.support.proxy import ENCODERS, PARAPHRASE, QUESTION, UNRELATED, chat, proxy_settings, started
from tests.support.upstream import ScriptedUpstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

MODEL = "gpt-4o-mini"
NOWHERE = "http://127.0.0.1:9/v1"
CONTRACT_KEYS = [
    "n",
    "tp",
    "fp",
    "fn",
    "tn",
    "precision",
    "recall",
    "f1",
    "f05",
    "hit_rate",
    "false_hit_rate",
    "average_precision",
    "best_f1",
    "best_f1_threshold",
    "encoder",
    "policies",
    "by_category",
    "vetoes",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line that says what is wrong; log lines may stand before it."""
        assert "Traceback" not in self.err
        *before, last = self.err.splitlines()
        assert last.startswith("cacheproxy: "), self.err
        assert [line for line in before if "[info" not in line] == []
        return last.removeprefix("cacheproxy: ")


async def cacheproxy(*words: str, cwd: Path, **environ: str) -> Ended:
    """Run a command in a directory that is also its home."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cacheproxy", *words),
        cwd=cwd,
        env={**kept, "HOME": str(cwd), "CACHEPROXY_ENCODER__CACHE_DIR": str(ENCODERS), **environ},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Ended(code=process.returncode, out=out.decode(), err=err.decode())


# Help.


def every_command(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from every_command(command, (*path, name))
        else:
            yield (*path, name)


COMMANDS = list(every_command())
EACH_COMMAND = pytest.mark.parametrize("path", COMMANDS, ids=" ".join)


def command_at(path: tuple[str, ...]) -> click.Command:
    command: click.Command = main
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    return command


@EACH_COMMAND
async def test_help_costs_no_engine(path: tuple[str, ...], tmp_path: Path) -> None:
    before_s = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = await cacheproxy(*path, "--help", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    after_s = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert shown.code == 0
    assert shown.out.startswith(f"Usage: {' '.join(('python -m cacheproxy', *path))} [OPTIONS]")
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in shown.err.splitlines()}
    assert imported & {"torch", "transformers", "onnxruntime", "numpy", "litestar", "aiohttp", "hnswlib"} == set()
    assert after_s.ru_utime - before_s.ru_utime < 1.5


@EACH_COMMAND
def test_help_explains_or_shows_an_example(path: tuple[str, ...]) -> None:
    command = command_at(path)
    assert command.help
    told = click.Context(command, info_name="cacheproxy").get_help()
    assert len(command.help.split("\n\n")) > 1 or "cacheproxy " in command.help, told


@EACH_COMMAND
def test_every_option_is_explained(path: tuple[str, ...]) -> None:
    options = [param for param in command_at(path).params if isinstance(param, click.Option)]
    assert [option.name for option in options if not option.help] == []


async def test_the_version_is_told(tmp_path: Path) -> None:
    told = await cacheproxy("--version", cwd=tmp_path)
    assert (told.code, told.out) == (0, f"cacheproxy, version {__version__}\n")


# Wrong usage and configuration: exit code 2, one line.


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--port", "99999"], "command line: Expected `int` <= 65535 - at `$.server.port`"),
        (["--port", "http"], "command line: Expected `int`, got `str` - at `$.server.port`"),
        (["--device", "tpu"], "command line: encoder.device must be one of auto, cpu, cuda, mps, got 'tpu'"),
        (["--config", "none.toml"], "none.toml: cannot be read (No such file or directory)"),
        (["--config", "typo.toml"], "typo.toml: unknown key store.max_entrys; known: url, password"),
        (["--config", "broken.toml"], "broken.toml: not valid TOML"),
        (["--policies", "nope"], "'nope' is neither a pack's directory nor a shipped pack; shipped: balanced"),
        (["--policies", "empty"], "empty: holds no policy.toml"),
        (["--encoder", "nope"], "encoder.name: 'nope' is neither a directory nor a known model"),
        (["--encoder", "./empty"], "empty/config.json: cannot be read"),
        (["--encoder", "./cut"], "cut/model.safetensors"),
        (["--store", "redis://127.0.0.1:6379/x"], "store.url: the address must have the number of a database"),
        (["--store", "postgres://127.0.0.1/cache"], "store.url: this version keeps entries in sqlite:///FILE"),
        pytest.param(
            ["--upstream", "example.org"], "upstream.url must look like https://host/v1", marks=pytest.mark.slow
        ),
        (["--data-dir", "typo.toml"], "data.dir: cannot create typo.toml (File exists)"),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else "",
)
async def test_a_start_with_a_bad_setting_is_refused_in_one_line(
    tmp_path: Path, words: list[str], complaint: str
) -> None:
    (tmp_path / "typo.toml").write_text("[store]\nmax_entrys = 3\n")
    (tmp_path / "broken.toml").write_text("[store\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut").mkdir()
    write_model(tmp_path / "cut", weights=b"\0" * 20)
    given = ["--port", "0", "--admin-port", "0", "--upstream", NOWHERE, *words]
    refused = await cacheproxy("serve", *given, cwd=tmp_path)
    assert refused.code == 2
    assert refused.complaint.startswith(complaint)


@pytest.mark.parametrize("option", ["--port", "--admin-port"])
async def test_a_busy_port_is_named(tmp_path: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        given = ["--port", "0", "--admin-port", "0", "--upstream", NOWHERE, option, str(port)]
        refused = await cacheproxy("serve", *given, cwd=tmp_path)
    part = "admin_" if "admin" in option else ""
    keys = f"server.{part}host, server.{part}port"
    told = f"{keys}: cannot listen on 127.0.0.1:{port} (Address already in use); choose another"
    assert (refused.code, refused.complaint) == (2, told)


@pytest.mark.slow
async def test_our_own_variable_beats_the_official_clients(tmp_path: Path) -> None:
    environ = {"OPENAI_BASE_URL": NOWHERE, "CACHEPROXY_UPSTREAM__URL": "not-a-url"}
    refused = await cacheproxy("serve", "--port", "0", "--admin-port", "0", cwd=tmp_path, **environ)
    assert (refused.code, refused.complaint[:12]) == (2, "upstream.url")


@pytest.mark.slow
async def test_the_official_clients_variable_names_the_backend(tmp_path: Path) -> None:
    given = ["serve", "--port", "0", "--admin-port", "0"]
    refused = await cacheproxy(*given, cwd=tmp_path, OPENAI_BASE_URL="not-a-url")
    assert (refused.code, refused.complaint[:12]) == (2, "upstream.url")


@pytest.mark.parametrize(
    "words", [["nonsense"], ["serve", "--nonsense"], ["eval", "pairs"], ["calibrate", "none.jsonl"]]
)
async def test_wrong_usage_is_exit_code_2(tmp_path: Path, words: list[str]) -> None:
    refused = await cacheproxy(*words, cwd=tmp_path)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith("Usage: ")
    assert "Traceback" not in refused.err


# check


async def test_check_passes_the_shipped_pack_and_logs_json_where_asked(tmp_path: Path) -> None:
    passed = await cacheproxy("check", "balanced", "--log-format", "json", cwd=tmp_path)
    assert passed.code == 0
    assert "probes hold" in passed.out
    events = [json.loads(line)["event"] for line in passed.err.splitlines()]
    assert "encoder_opened" in events


async def test_check_names_file_line_and_key_of_what_is_wrong(tmp_path: Path) -> None:
    pack = tmp_path / "mine"
    pack.mkdir()
    lines = (find_pack("balanced") / "policy.toml").read_text().splitlines()
    at = lines.index("max_temperature = 0.7")
    lines[at] = "max_temperature = -1"
    (pack / "policy.toml").write_text("\n".join(lines))
    failed = await cacheproxy("check", "mine", cwd=tmp_path)
    assert (failed.code, failed.err) == (1, "")
    told = f"mine/policy.toml:{at + 1}: categories.default.max_temperature must be in [0, 3.2e+09], got -1"
    assert failed.out.splitlines()[0] == told


@pytest.mark.slow
async def test_check_names_the_probe_that_fails(tmp_path: Path) -> None:
    pack = tmp_path / "mine"
    pack.mkdir()
    (pack / "policy.toml").write_text((find_pack("balanced") / "policy.toml").read_text())
    probe = f'[[probes]]\ncached = "{QUESTION}"\nasked = "{UNRELATED}"\nexpect = "hit"\nwhy = "it must not be"\n'
    (pack / "probes.toml").write_text(f"\n{probe}")
    failed = await cacheproxy("check", "mine", cwd=tmp_path)
    assert failed.code == 1
    assert "mine/probes.toml:2: " in failed.out


async def test_check_of_no_pack_is_wrong_usage(tmp_path: Path) -> None:
    refused = await cacheproxy("check", "nope", cwd=tmp_path)
    assert refused.code == 2
    assert refused.complaint.startswith("'nope' is neither")


# eval pairs, calibrate


def write_pairs(file: Path, *pairs: tuple[str, str, int]) -> Path:
    file.write_text("".join(json.dumps({"a": a, "b": b, "label": label}) + "\n" for a, b, label in pairs))
    return file


async def test_eval_pairs_prints_the_contracts_keys(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", (QUESTION, PARAPHRASE, 1), (QUESTION, UNRELATED, 0))
    measured = await cacheproxy("eval", "pairs", str(pairs), "--json", cwd=tmp_path)
    assert measured.code == 0
    report = json.loads(measured.out)
    assert list(report) == [*CONTRACT_KEYS, "intervals", "by_veto"]
    assert {key: report[key] for key in ("n", "tp", "fp", "fn", "tn")} == {"n": 2, "tp": 1, "fp": 0, "fn": 0, "tn": 1}
    assert (report["policies"], list(report["by_category"])) == ("balanced", ["default", "support"])


@pytest.mark.slow
async def test_eval_pairs_compares_with_plain_cosine_where_asked(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", (QUESTION, PARAPHRASE, 1), (QUESTION, UNRELATED, 0))
    measured = await cacheproxy("eval", "pairs", str(pairs), "--baseline", "cosine", "--json", cwd=tmp_path)
    report = json.loads(measured.out)
    assert list(report) == [*CONTRACT_KEYS, "intervals", "by_veto", "baseline"]
    assert set(report["baseline"]) == {"default", "tuned_f1", "tuned_f05"}


async def test_a_bad_pair_is_named_by_file_and_line(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"a": "x", "b": "y", "label": 1}\n\n{"a": "secret-text", "label": 1}\n')
    refused = await cacheproxy("eval", "pairs", "pairs.jsonl", cwd=tmp_path)
    assert refused.code == 2
    assert refused.complaint.startswith("pairs.jsonl:3: ")
    assert "secret-text" not in refused.err


TOPICS = ["Rome", "Oslo", "Lima", "Cairo", "Quito", "Hanoi", "Accra", "Sofia", "Paris", "Tokyo", "Dakar", "Delhi"]


@pytest.mark.slow
async def test_calibrate_prints_a_table_that_a_pack_can_take(tmp_path: Path) -> None:
    pairs = write_pairs(
        tmp_path / "pairs.jsonl",
        *((f"How many people live in {city}?", f"How many people are living in {city}?", 1) for city in TOPICS),
        *((f"What is the weather like in {city}?", f"How do I get to {city} by train?", 0) for city in TOPICS),
    )
    chosen = await cacheproxy("calibrate", str(pairs), cwd=tmp_path)
    assert chosen.code == 0
    policy = (find_pack("balanced") / "policy.toml").read_text()
    without = policy[: policy.index("[encoders.")] + policy[policy.index("[[prices]]") :]
    pack = tmp_path / "mine"
    pack.mkdir()
    (pack / "policy.toml").write_text(f"{without}\n{chosen.out}")
    checked = await cacheproxy("check", "mine", cwd=tmp_path)
    assert checked.code == 0, checked.out


@pytest.mark.slow
async def test_calibrate_on_too_few_pairs_says_so(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", (QUESTION, PARAPHRASE, 1))
    refused = await cacheproxy("calibrate", str(pairs), cwd=tmp_path)
    assert refused.code == 2
    assert "too few" in refused.err.splitlines()[-1]


# explain


@pytest.fixture
async def backend() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as upstream:
        yield upstream


async def test_explain_opens_an_empty_directory_by_itself(tmp_path: Path) -> None:
    told = await cacheproxy("explain", QUESTION, "--key", "sk-1", "--data-dir", "data", cwd=tmp_path)
    assert (told.code, told.err) == (0, "")
    assert told.out.splitlines()[-1].startswith("outcome    miss: no_candidate, decided in ")
    assert not (tmp_path / ".local").exists()


async def explained(data_dir: Path, text: str, *words: str, cwd: Path, **environ: str) -> dict[str, Any]:
    given = ["--data-dir", str(data_dir), "--model", MODEL, "--key", "sk-explain", "--json", *words]
    told = await cacheproxy("explain", text, *given, cwd=cwd, **environ)
    assert (told.code, told.err) == (0, "")
    [line] = told.out.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


@pytest.mark.slow
async def test_explain_asks_the_proxy_that_is_running(backend: ScriptedUpstream, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    async with started(proxy_settings(backend.url, data_dir)) as live:
        assert running_admin_url(data_dir) == live.admin_url
        kept = await live.fill(chat(), key="sk-explain")
        exact = await explained(data_dir, QUESTION, cwd=tmp_path)
        near = await explained(data_dir, PARAPHRASE, cwd=tmp_path)
        far = await explained(data_dir, "How do I cancel my subscription?", cwd=tmp_path)
    assert [(one["outcome"], one["tier"]) for one in (exact, near, far)] == [
        ("hit", "exact"),
        ("hit", "semantic"),
        ("miss", ""),
    ]
    assert near["entry"] == kept.get("x-cacheproxy-entry")
    assert [one["text"] for one in far["candidates"]] == [QUESTION]
    assert backend.calls == 1
    assert running_admin_url(data_dir) is None
    assert (await explained(data_dir, PARAPHRASE, cwd=tmp_path))["entry"] == near["entry"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "request_body",
    [chat(), {"model": MODEL, "prompt": "Why?"}, {"model": MODEL, "input": "Why?"}],
    ids=lambda body: [*body][1],
)
async def test_explain_reads_a_whole_request_of_any_api(tmp_path: Path, request_body: dict[str, Any]) -> None:
    (tmp_path / "request.json").write_text(json.dumps({**request_body, "temperature": 1.5}))
    told = await cacheproxy("explain", "--body", "request.json", "--key", "sk-1", cwd=tmp_path)
    assert told.code == 0
    assert "outcome    bypass: temperature" in told.out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "nothing to explain: give a question"),
        (["caf\udce9"], "the question and its options must be UTF-8 text"),
        (["hi", "--key", "\udce9"], "the question and its options must be UTF-8 text"),
        pytest.param(["hi", "--category", "nope"], "unknown category; this pack has: ", marks=pytest.mark.slow),
        (["--body", "list.json"], "list.json: the request body must be a JSON object, got an array"),
        (["--body", "deep.json"], "deep.json: the request body is nested deeper than 64 levels"),
        (["--body", "surrogate.json"], "surrogate.json: the request body holds an unpaired UTF-16 surrogate"),
    ],
    ids=lambda value: "-".join(value).encode("ascii", "replace").decode() if isinstance(value, list) else "",
)
async def test_explain_refuses_what_no_proxy_would_take(tmp_path: Path, words: list[str], complaint: str) -> None:
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "deep.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    (tmp_path / "surrogate.json").write_text('{"model": "\\ud800"}')
    refused = await cacheproxy("explain", *words, cwd=tmp_path)
    assert (refused.code, refused.out) == (2, "")
    assert refused.complaint.startswith(complaint)


async def test_explain_needs_the_admin_token_and_no_proxy_between(backend: ScriptedUpstream, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    environ = {"CACHEPROXY_ADMIN__TOKEN": "admin-token", "http_proxy": "http://127.0.0.1:9"}
    async with started(proxy_settings(backend.url, data_dir, admin={"token": "admin-token"})):
        assert (await explained(data_dir, QUESTION, cwd=tmp_path, **environ))["outcome"] == "miss"
        refused = await cacheproxy("explain", QUESTION, "--data-dir", str(data_dir), cwd=tmp_path)
    assert refused.code == 2
    assert refused.complaint == "the running proxy refused: give the admin token as a bearer token"


# serve


@pytest.mark.slow
async def test_serve_logs_one_json_object_a_line(backend: ScriptedUpstream, tmp_path: Path) -> None:
    async with serving(tmp_path, backend.url, environ={"CACHEPROXY_LOG__LEVEL": "debug"}) as server:
        await server.proxy.fill(chat(), key="sk-1")
        assert await server.stop() == 0
        events = [event["event"] for event in server.events]
        assert {"encoder_opened", "server_started", "server_draining"} <= set(events)
        assert all({"event", "level", "timestamp"} <= event.keys() for event in server.events)
