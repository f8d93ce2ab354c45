"""A secret may come from a file that the environment names; an engine's password goes into its address."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_type_hints

import pytest

from cacheproxy.configure import load
from cacheproxy.errors import ConfigError
from cacheproxy.settings import Secret, Settings

if TYPE_CHECKING:
    from pathlib import Path

CANARY = "canary-of-a-secret-file"


def secret_keys() -> list[tuple[str, str]]:
    sections = [(name, type(getattr(Settings(), name))) for name in Settings.__struct_fields__]
    return [(name, key) for name, kind in sections for key, hint in get_type_hints(kind).items() if hint is Secret]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(f"{CANARY}\n")
    return path


@pytest.mark.parametrize(("section", "key"), secret_keys(), ids=".".join)
def test_every_secret_may_be_in_a_file(section: str, key: str, file: Path) -> None:
    environ = {f"CACHEPROXY_{section.upper()}__{key.upper()}_FILE": str(file), "CACHEPROXY_STORE__URL": "redis://r/0"}
    assert getattr(getattr(load(environ=environ), section), key).reveal() == CANARY


def test_the_key_of_a_named_backend_may_be_in_a_file(file: Path) -> None:
    environ = {
        "CACHEPROXY_UPSTREAMS__A__URL": "http://a/v1",
        "CACHEPROXY_UPSTREAMS__A__MODELS": "a-*",
        "CACHEPROXY_UPSTREAMS__A__API_KEY_FILE": str(file),
    }
    assert load(environ=environ).upstreams["a"].api_key.reveal() == CANARY


def test_keys_that_are_no_secrets_are_read_from_no_file(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key store\.url_file"):
        load(environ={"CACHEPROXY_STORE__URL_FILE": str(file)})
    assert load(environ={"CACHEPROXY_ACCESS__FILE": str(file)}).access.file == str(file)


def test_a_secret_given_twice_is_refused_without_showing_it(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"admin\.token is given twice") as caught:
        load(environ={"CACHEPROXY_ADMIN__TOKEN": "another", "CACHEPROXY_ADMIN__TOKEN_FILE": str(file)})
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n", b"one\ntwo\n", b"\xff\xfe", b"x" * 70_000])
def test_a_file_that_holds_no_secret_is_refused_by_name(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"environment: admin\.token: .*secret"):
        load(environ={"CACHEPROXY_ADMIN__TOKEN_FILE": str(file)})


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"admin\.token: .*absent: cannot be read \(No such file"):
        load(environ={"CACHEPROXY_ADMIN__TOKEN_FILE": str(tmp_path / "absent")})


@pytest.mark.parametrize(
    ("url", "joined"),
    [
        ("redis://r:6379/0", "redis://:p%40%3A%2F@r:6379/0"),
        ("rediss://ada@r:6379/0", "rediss://ada:p%40%3A%2F@r:6379/0"),
        ("redis+cluster://a:1,b:2", "redis+cluster://:p%40%3A%2F@a:1,b:2"),
        ("redis+sentinel://a:1,b:2/main/0", "redis+sentinel://:p%40%3A%2F@a:1,b:2/main/0"),
    ],
)
def test_the_password_of_an_engine_becomes_part_of_its_address(url: str, joined: str) -> None:
    store = load(environ={"CACHEPROXY_STORE__URL": url, "CACHEPROXY_STORE__PASSWORD": "p@:/"}).store
    assert store.url == joined


@pytest.mark.parametrize("url", ["", "memory://", "sqlite:///x.db"])
def test_a_password_without_an_engine_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"environment: store\.password: only an engine"):
        load(environ={"CACHEPROXY_STORE__URL": url, "CACHEPROXY_STORE__PASSWORD": CANARY})


def test_a_password_in_two_places_is_refused() -> None:
    with pytest.raises(ConfigError, match="holds a password already") as caught:
        load(environ={"CACHEPROXY_STORE__URL": "redis://:other@r/0", "CACHEPROXY_STORE__PASSWORD": CANARY})
    assert CANARY not in str(caught.value)
    assert "other" not in str(caught.value).replace("another", "")
