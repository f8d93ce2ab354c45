"""Starting federated training: what is checked before, and that nothing stays when it is over."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import socket
import stat
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key, load_ssh_public_key

from cacheproxy.cli import main
from cacheproxy.embed.head import Head
from cacheproxy.embed.headfile import SCHEMA, Manifest, read, write
from cacheproxy.errors import ConfigError
from cacheproxy.federation import app
from cacheproxy.federation.children import Child, descendants, wait_until
from cacheproxy.federation.keys import SIGNING, make_keys, public_half
from cacheproxy.federation.node import Joining
from cacheproxy.federation.ports import free_port, is_loopback, need_free, parted
from cacheproxy.federation.server import Serving, toml
from cacheproxy.federation.tale import PROGRESS, Tale
from cacheproxy.federation.trial import deal
from cacheproxy.learn.pairfile import FILE, PairRows
from tests.support.polling import eventually


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the logging of the test process alone."""
    monkeypatch.setattr("cacheproxy.logs.configure", lambda _: None)


def serving(out: Path, **told: Any) -> Serving:
    return Serving(**{"out": out, "host": "127.0.0.1", "port": free_port(), **told})


def joining(data_dir: Path, **told: Any) -> Joining:
    return Joining(**{"superlink": "127.0.0.1:9092", "data_dir": data_dir, "own": {}, **told})


def test_the_app_is_found_in_the_checkout() -> None:
    assert (app.app_folder() / "cacheproxy_federated" / "client_app.py").is_file()


def test_an_installation_without_the_app_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_SHELVES", ())
    with pytest.raises(ConfigError, match="lacks the federated app; install"):
        app.app_folder()


@pytest.mark.parametrize(
    ("missing", "command", "extra"),
    [
        ("flwr", ["simulate", "--pairs", "FILE", "--out", "out"], "cacheproxy[federated]"),
        ("ray", ["simulate", "--pairs", "FILE", "--out", "out"], "cacheproxy[simulate]"),
        ("flwr", ["serve", "--dir", "out"], "cacheproxy[federated]"),
        ("flwr", ["join", "--superlink", "127.0.0.1:9092"], "cacheproxy[federated]"),
    ],
)
def test_without_flower_each_command_names_what_to_install(
    missing: str, command: list[str], extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("")
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else there(name))
    told = CliRunner().invoke(main, ["federated", *[str(pairs) if word == "FILE" else word for word in command]])
    assert (told.exit_code, f"pip install '{extra}'" in told.output) == (2, True)


def test_flower_calls_nobody_and_keeps_its_files_where_it_is_told(tmp_path: Path) -> None:
    told = app.environment(tmp_path, {"CACHEPROXY_FEDERATED_OUT": "out"})
    assert {name: told[name] for name in app.QUIET} == app.QUIET
    assert (told["FLWR_HOME"], told["CACHEPROXY_FEDERATED_OUT"]) == (str(tmp_path), "out")


def test_what_one_run_was_told_does_not_reach_the_next(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CACHEPROXY_FEDERATED_KEY", "another run's")
    assert "CACHEPROXY_FEDERATED_KEY" not in app.environment(tmp_path)


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        ({"host": "0.0.0.0"}, "needs TLS: give --certificates"),
        ({"nodes": ("one.pub",)}, "--node needs TLS"),
        ({"certificates": "keys"}, "server.crt: is not there"),
        ({"key": "signing.pem"}, "signing.pem: is not there"),
        ({"start": "head"}, "manifest.json: cannot be read"),
    ],
)
def test_a_server_that_cannot_work_is_not_started(told: dict[str, Any], problem: str, tmp_path: Path) -> None:
    paths = {
        name: tuple(tmp_path / one for one in value) if isinstance(value, tuple) else tmp_path / value
        for name, value in told.items()
        if name != "host"
    }
    with pytest.raises(ConfigError, match=problem):
        serving(tmp_path, **{**told, **paths}).check()


def test_a_port_that_is_taken_is_told_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: cannot be used .* choose another --port"):
            serving(tmp_path, port=port).check()
    need_free("127.0.0.1", port)


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        ({}, "no training pairs yet; set federated.collect"),
        ({"superlink": "train.example.org:9092"}, "needs TLS: give --root-certificates"),
        ({"superlink": "train.example.org"}, "is no HOST:PORT"),
        ({"superlink": "127.0.0.1:0"}, "is no HOST:PORT"),
        ({"node_key": True}, "--node-key needs TLS"),
        ({"own": {"dp-noise": 1.0}}, "--dp-noise needs --dp-clip"),
        ({"root_certificates": True}, "is not there"),
    ],
)
def test_a_node_that_cannot_work_is_not_started(told: dict[str, Any], problem: str, tmp_path: Path) -> None:
    paths = {name: tmp_path / "none" for name, value in told.items() if value is True}
    with pytest.raises(ConfigError, match=problem):
        joining(tmp_path, **{**told, **paths}).check()


def test_where_a_node_keeps_its_pairs_is_not_in_the_list_of_processes(tmp_path: Path) -> None:
    data, home = tmp_path / "data", tmp_path / "home"
    told = joining(data, own={"least-pairs": 50})
    assert not [word for word in told.command(home) if str(data) in word or FILE in word]


@pytest.mark.parametrize(("address", "parts"), [("a.b:1", ("a.b", 1)), ("[::1]:65535", ("[::1]", 65535))])
def test_addresses_are_host_and_port(address: str, parts: tuple[str, int]) -> None:
    assert parted(address) == parts


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("localhost", True), ("[::1]", True), ("0.0.0.0", False), ("localhost.example", False)],
)
def test_loopback_is_what_only_this_machine_reaches(host: str, local: bool) -> None:
    assert is_loopback(host) is local


def test_settings_are_written_as_toml_that_reads_back() -> None:
    told = {"base": 'a "quoted" \\ name', "int8": True, "rounds": 3, "dp-delta": 1e-05, "lr": 0.5}
    assert tomllib.loads(toml(told)) == told


def test_keys_are_made_that_fit_together(tmp_path: Path) -> None:
    files = {file.name: file for file in make_keys(tmp_path, ["train.example.org", "127.0.0.1"], ["one"])}
    authority, server = (x509.load_pem_x509_certificate(files[name].read_bytes()) for name in ("ca.crt", "server.crt"))
    server.verify_directly_issued_by(authority)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["train.example.org"]
    private = load_ssh_private_key(files["one.key"].read_bytes(), None)
    public = load_ssh_public_key(files["one.pub"].read_bytes())
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert private.public_key() == public
    secret = [name for name, file in files.items() if stat.S_IMODE(file.stat().st_mode) != 0o644]
    assert sorted(secret) == ["one.key", "server.key", "signing.pem"]
    assert all(stat.S_IMODE(files[name].stat().st_mode) == 0o600 for name in secret)


@pytest.mark.parametrize(
    ("hosts", "nodes", "problem"),
    [
        (["localhost"], ["../one"], "is no name of a file"),
        (["localhost"], [""], "is no name of a file"),
        (["localhost"], ["one.two"], "is no name of a file"),
        (["localhost"], ["server"], "the server's own files"),
        (["localhost"], ["Signing"], "the server's own files"),
        (["localhost"], ["one", "one"], "two nodes of one name"),
        (["b\u00fccher.example"], [], "is no host's name or address"),
        ([""], [], "is no host's name or address"),
        (["a host"], [], "is no host's name or address"),
        (["x" * 64 + ".example"], [], "is no host's name or address"),
        (["fe80::1%eth0"], [], "is no host's name or address"),
    ],
)
def test_names_that_make_no_keys_are_refused_before_any_is_made(
    hosts: list[str], nodes: list[str], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=problem):
        make_keys(tmp_path / "keys", hosts, nodes)
    assert not (tmp_path / "keys").exists()


def test_names_and_addresses_of_hosts_are_taken(tmp_path: Path) -> None:
    hosts = ["train.example.org", "*.example.org", "xn--bcher-kva.example", "a_b", "10.0.0.1", "::1"]
    content = next(file for file in make_keys(tmp_path, hosts, ["node-1_A"]) if file.name == "server.crt").read_bytes()
    names = x509.load_pem_x509_certificate(content).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.DNSName) == hosts[:4]


def test_a_run_that_contradicts_itself_is_refused_before_anything_starts(tmp_path: Path) -> None:
    served = ["federated", "serve", "--dir", str(tmp_path / "out"), "--port", str(free_port()), "--base", "b"]
    for more, problem in (
        (["--strategy", "krum", "--dim", "16"], "krum against 1 hostile nodes needs a quorum of 5"),
        (["--dp-clip", "0.5", "--dim", "16"], "dp-clip and dp-noise go together"),
        (["--dim", "5000"], "larger than any proxy takes"),
    ):
        told = CliRunner().invoke(main, [*served, *more, "--data-dir", str(tmp_path)])
        assert (told.exit_code, problem in told.output) == (2, True), told.output
    assert not (tmp_path / "out" / "flower").exists()


def test_keys_are_never_overwritten(tmp_path: Path) -> None:
    make_keys(tmp_path, ["localhost"], [])
    before = (tmp_path / SIGNING).read_bytes()
    with pytest.raises(ConfigError, match="would be overwritten"):
        make_keys(tmp_path, ["localhost"], [])
    assert (tmp_path / SIGNING).read_bytes() == before


def test_the_key_that_is_printed_is_the_one_that_proxies_need(tmp_path: Path) -> None:
    told = CliRunner().invoke(main, ["federated", "keys", "--out", str(tmp_path), "--node", "one"])
    assert told.exit_code == 0, told.output
    signing = public_half(tmp_path / SIGNING)
    assert f'encoder.head_keys = "{signing}"' in told.output
    manifest = Manifest(
        schema=SCHEMA, base="b", dim_in=4, dim=4, int8=False, sha256="", parent="b", round=1, thresholds={"*": 0.5}
    )
    key: Any = load_pem_private_key((tmp_path / SIGNING).read_bytes(), None)
    write(tmp_path / "head", Head.identity(4), manifest, key)
    assert read(tmp_path / "head", [signing]).manifest.key == signing


FAMILY = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"])
time.sleep(600)
"""
COMMAND = """
import os, sys, time
from pathlib import Path
from cacheproxy.federation.children import Child, ended_by_signals
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
with ended_by_signals(), Child(sleep, os.environ, Path("log")) as child:
    print(child.pid, flush=True)
    time.sleep(600)
"""


async def test_a_child_ends_with_its_own_children_even_those_that_went_away_from_it(tmp_path: Path) -> None:
    with Child([sys.executable, "-c", FAMILY], os.environ, tmp_path / "log") as child:
        await eventually(lambda: len(descendants(child.pid)) == 2, "both are started", within_s=20)
        family = {child.pid, *descendants(child.pid)}
    await eventually(lambda: not [pid for pid in family if running(pid)], "all ended", within_s=20)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's word for it")
async def test_a_child_ends_when_the_command_is_killed(tmp_path: Path) -> None:
    with a_command(tmp_path) as command:
        pid = told_pid(command)
        assert running(pid)
        command.kill()
        await eventually(lambda: not running(pid), "it ended", within_s=20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
async def test_a_command_that_is_asked_to_end_ends_its_children_first(number: signal.Signals, tmp_path: Path) -> None:
    with a_command(tmp_path) as command:
        pid = told_pid(command)
        command.send_signal(number)
        assert command.wait(20) != 0
        assert not running(pid)


async def test_who_asks_twice_to_end_leaves_nothing_behind(tmp_path: Path) -> None:
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    with a_command(tmp_path, COMMAND.replace("import time; time.sleep(600)", stubborn)) as command:
        pid = told_pid(command)
        await eventually(lambda: (tmp_path / "log").read_text() == "up\n", "it does not listen", within_s=20)
        command.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.5)
        command.send_signal(signal.SIGTERM)
        assert command.wait(5) != 0, "at once, not after the grace"
        assert not running(pid)


def a_command(folder: Path, code: str = COMMAND) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def told_pid(command: subprocess.Popen[str]) -> int:
    assert command.stdout is not None
    return int(command.stdout.readline())


def test_a_child_that_ends_at_once_is_told_with_its_last_lines(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"the server ended at once \(exit code 3\).*\n.*no such port"),
        Child(
            [sys.executable, "-c", "print('no such port'); raise SystemExit(3)"], os.environ, tmp_path / "log"
        ) as child,
    ):
        wait_until(lambda: False, child, 20, "the server")


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="no-such-program: cannot be started"),
        Child(["no-such-program"], os.environ, tmp_path / "log"),
    ):
        pass


def test_progress_is_told_in_words_once(tmp_path: Path) -> None:
    scores = {"f05": 0.8, "precision": 0.9, "recall": 0.7, "nodes": 3.0, "held_pairs": 153.0}
    file = tmp_path / PROGRESS
    file.write_bytes(msgspec.json.encode({"event": "round", "round": 9, "of": 9, "refused": {}, **scores}) + b"\n")
    tale = Tale(tmp_path)  # what was there before is another run's
    lines = [
        {"event": "begun", "round": 0, "of": 2, **scores},
        {"event": "asked_to_train", "round": 1},
        {"event": "round", "round": 1, "of": 2, "refused": {"silent": 1, "shape": 2}, **scores},
        {"event": "no_quorum", "round": 2, "sound": 1, "refused": {"error": 2}, "said": {"no-pairs": 2}},
        {"event": "ended", "why": "too few nodes"},
    ]
    with file.open("ab") as out:
        for line in lines:
            out.write(msgspec.json.encode(line) + b"\n")
        out.write(b'{"event": "fini')
    assert list(tale.lines()) == [
        "before training: F0.5 0.800, precision 0.900, recall 0.700, 3 nodes, 153 held-back pairs",
        "round 1 of 2: F0.5 0.800, precision 0.900, recall 0.700 (2 shape, 1 silent)",
        "round 2: 1 sound replies are too few (2 error)",
    ]
    assert (tale.why_ended, tale.finished, list(tale.lines())) == ("too few nodes", False, [])


@pytest.mark.parametrize("skew", [False, True])
def test_pairs_are_dealt_out_by_whole_groups(skew: bool) -> None:
    whole = dealable(600)
    dealt = deal(whole, 6, seed=3, skew=skew)
    assert sum(len(one.right) for one in dealt) == 600
    groups = [set(one.group.tolist()) for one in dealt]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 200
    assert all(90 <= len(one.right) <= 110 for one in dealt)
    for one in dealt:
        assert set(one.group[one.held].tolist()).isdisjoint(one.group[~one.held].tolist())
        assert 0.05 < one.held.mean() < 0.5


def test_skew_gives_each_client_topics_of_its_own() -> None:
    whole = dealable(600)
    spread = [float(np.std(one.a[:, 0])) for one in deal(whole, 6, seed=3, skew=True)]
    even = [float(np.std(one.a[:, 0])) for one in deal(whole, 6, seed=3, skew=False)]
    assert np.mean(spread) < 0.5 * np.mean(even)


def test_the_same_seed_deals_the_same_pairs() -> None:
    whole = dealable(300)
    one, other = (deal(whole, 3, seed=1, skew=False) for _ in range(2))
    assert [a.group.tolist() for a in one] == [b.group.tolist() for b in other]
    assert [a.group.tolist() for a in one] != [b.group.tolist() for b in deal(whole, 3, seed=2, skew=False)]


def test_too_few_pairs_or_one_great_group_cannot_be_dealt_out() -> None:
    with pytest.raises(ConfigError, match="60 pairs are too few for 6 clients"):
        deal(dealable(60), 6, seed=0, skew=False)
    tied = replace(dealable(600), group=np.zeros(600, dtype=np.int64))
    with pytest.raises(ConfigError, match="too many pairs share questions"):
        deal(tied, 6, seed=0, skew=False)


def dealable(n: int) -> PairRows:
    """Return pairs in groups of three, whose vectors differ by group along the first axis most."""
    random = np.random.default_rng(0)
    group = np.arange(n) // 3
    made = random.normal(size=(n, 8)).astype(np.float32) * 0.1
    made[:, 0] += np.linspace(-1, 1, n)
    return PairRows(
        a=made,
        b=made,
        right=np.arange(n) % 2 == 0,
        category=("default",) * n,
        group=group,
        held=np.zeros(n, dtype=np.bool_),
        texts=None,
    )


def running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
