from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from cacheproxy.configure import load
from cacheproxy.errors import ConfigError
from cacheproxy.settings import NamedUpstream, Secret, Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    Write = Callable[[str], Path]

CANARY = "sk-canary-settings"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        file = tmp_path / "cacheproxy.toml"
        file.write_text(text, encoding="utf-8")
        return file

    return write


def from_environment(**environ: str) -> Settings:
    return load(environ=environ)


def test_without_any_source_the_defaults_hold() -> None:
    assert load(environ={}) == Settings()


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(write: Write) -> None:
    file = write("[server]\nport = 1\nadmin_port = 1\nmax_depth = 1\n")
    environ = {"CACHEPROXY_SERVER__PORT": "2", "CACHEPROXY_SERVER__ADMIN_PORT": "2"}
    server = load(file, environ, {"server": {"port": 3}}).server
    assert (server.port, server.admin_port, server.max_depth, server.host) == (3, 2, 1, "127.0.0.1")


def test_every_leaf_is_an_environment_variable() -> None:
    for section in Settings.__struct_fields__:
        values = getattr(Settings(), section)
        for key in getattr(values, "__struct_fields__", ()):
            value = getattr(values, key)
            told = value.reveal() if isinstance(value, Secret) else str(value)
            assert load(environ={f"CACHEPROXY_{section.upper()}__{key.upper()}": told}) == Settings()


def test_named_tables_are_merged_key_by_key_from_file_and_environment(write: Write) -> None:
    file = write(
        "[upstreams.b]\nurl = 'http://b/v1'\nmodels = ['b-*', 'c']\nweight = 2\n[aliases]\nfast = 'b-1'\nold = 'b-0'\n"
    )
    environ = {
        "CACHEPROXY_UPSTREAMS__B__WEIGHT": "3",
        "CACHEPROXY_UPSTREAMS__B__API_KEY": CANARY,
        "CACHEPROXY_UPSTREAMS__C_2__URL": "http://c/v1",
        "CACHEPROXY_UPSTREAMS__C_2__MODELS": "x*, y ,",
        "CACHEPROXY_UPSTREAMS__C_2__PASS_KEY": "true",
        "CACHEPROXY_ALIASES__FAST": "b-2",
    }
    settings = load(file, environ)
    assert settings.upstreams == {
        "b": NamedUpstream(url="http://b/v1", models=("b-*", "c"), weight=3, api_key=Secret(CANARY)),
        "c_2": NamedUpstream(url="http://c/v1", models=("x*", "y"), pass_key=True),
    }
    assert settings.upstreams["b"].api_key.reveal() == CANARY
    assert CANARY not in repr(settings)
    assert settings.aliases == {"fast": "b-2", "old": "b-0"}


@pytest.mark.parametrize(("told", "read"), [("1", True), ("true", True), ("False", False), ("0", False)])
def test_switches_are_read_from_text(told: str, read: bool) -> None:
    assert from_environment(CACHEPROXY_UPSTREAM__ASK_STREAM_USAGE=told).upstream.ask_stream_usage is read


def test_other_environment_variables_are_ignored() -> None:
    assert from_environment(CACHEPROXY_CONFIG="x", PATH="y", cacheproxy_server__port="1") == Settings()


WRONG_FILES = {
    "[server]\nport = 70000": ("server.port", "65535"),
    "[server]\nport = true": ("server.port",),
    "[server]\nport = 'x'": ("server.port",),
    "[server]\nprot = 1": ("server.prot", "max_depth"),
    "[srever]\nport = 1": ("'srever'", "upstream"),
    "server = 1": ("[server]",),
    "[server.port]\nx = 1": ("server.port",),
    "[upstream]\nidle_timeout_s = 0": ("upstream.idle_timeout_s",),
    "[upstream]\nidle_timeout_s = nan": ("upstream.idle_timeout_s",),
    "[upstream]\nidle_timeout_s = inf": ("upstream.idle_timeout_s",),
    "[store]\nmax_entries = 0": ("store.max_entries",),
    "[log]\nlevel = 'loud'": ("log.level", "debug, info, warning, error"),
    "[encoder]\nprecision = 'fp8'": ("encoder.precision", "fp32, int8"),
    "[upstreams]\nb = 1": ("upstreams.b", "table"),
    "[upstreams.b]": ("upstreams.b", "url"),
    "[upstreams.b]\nurl = 'http://b'": ("upstreams.b", "models"),
    "[upstreams.b]\nurl = 'http://b'\nmodels = ['b']\nweight = -1": ("upstreams.b.weight",),
    "[upstreams.b]\nurl = 'http://b'\nmodels = [1]": ("upstreams.b.models",),
    "[upstreams.b]\nurl = 'http://b'\nmodels = ['b']\nwieght = 1": ("upstreams.b.wieght", "weight"),
    "[upstreams.b]\nurl = 'http://b'\nmodels = ['b']\nmax_concurrency = 0": ("upstreams.b.max_concurrency",),
    "[upstreams.default]\nurl = 'http://b'": ("upstreams.default", "another name"),
    "[upstreams.a__b]\nurl = 'http://b'": ("upstreams.a__b", "another name"),
    "[upstreams.'B/1']\nurl = 'http://b'": ("upstreams.B/1", "another name"),
    "[aliases]\na = 1": ("aliases.a",),
    "[aliases]\na = ''": ("aliases.a",),
    "['upstreams.b']\nurl = 'http://b'": ("'upstreams.b'",),
    "[server": ("not valid TOML",),
}


@pytest.mark.parametrize(("text", "named"), WRONG_FILES.items(), ids=map(repr, WRONG_FILES))
def test_a_wrong_value_is_refused_by_file_and_key(write: Write, text: str, named: tuple[str, ...]) -> None:
    file = write(text)
    with pytest.raises(ConfigError) as refusal:
        load(file, environ={})
    assert refusal.value.message.startswith(str(file))
    assert all(name in refusal.value.message.replace("$.", "") for name in named)


def test_a_wrong_value_is_traced_to_the_source_that_won(write: Write) -> None:
    file = write("[server]\nport = 70000")
    with pytest.raises(ConfigError, match=r"^environment: "):
        load(file, environ={"CACHEPROXY_SERVER__PORT": "70001"})
    with pytest.raises(ConfigError, match=r"^command line: "):
        load(file, environ={}, flags={"server": {"port": 70002}})
    assert load(file, environ={"CACHEPROXY_SERVER__PORT": "1"}).server.port == 1


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"\xff")
    for name in ("absent.toml", ".", "latin"):
        with pytest.raises(ConfigError) as refusal:
            load(tmp_path / name, environ={})
        assert refusal.value.message.startswith(str(tmp_path / name))


def test_a_secret_shows_in_no_form_but_reveal() -> None:
    settings = from_environment(CACHEPROXY_ADMIN__TOKEN=CANARY)
    token = settings.admin.token
    assert token.reveal() == CANARY
    shown = (repr(settings), str(settings), repr(token), str(token), f"{token}", f"{token:>9}", "%s" % token)  # noqa: UP031 - one of the forms
    assert CANARY not in "".join(shown)
    with pytest.raises(TypeError):
        msgspec.json.encode(settings)


def test_a_secret_is_text_and_its_refusal_does_not_show_it(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"admin\.token") as refusal:
        load(write(f"[admin]\ntoken = ['{CANARY}']"), environ={})
    assert CANARY not in refusal.value.message


def test_settings_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Settings().server.port = 1  # type: ignore[misc]  # the point


def test_the_data_directory_follows_the_users_conventions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert Settings().data.path() == Path("/home/someone/.local/share/cacheproxy")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert Settings().data.path() == Path("/data/cacheproxy")
    assert from_environment(CACHEPROXY_DATA__DIR="~/x").data.path() == Path("/home/someone/x")
