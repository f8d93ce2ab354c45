from __future__ import annotations

import asyncio
import json
import stat
import threading
from datetime import date
from typing import TYPE_CHECKING, Any

import pytest

from cacheproxy.access.keeper import Keeper, spent_path
from cacheproxy.access.keyfile import change_keys, read_keys
from cacheproxy.errors import ConfigError, NotAuthenticated
from cacheproxy.settings import Secret
from tests.support.clock import FakeClock
from tests.support.virtual_keys import KEY, SECRET, record

if TYPE_CHECKING:
    from pathlib import Path

    from cacheproxy.access.keyring import Keyring

BEARER = [(b"authorization", b"Bearer " + KEY.encode())]
OTHER = "sk-cp-" + "o" * 43

FULL = record(
    models=("gpt-4o*", "o?"),
    requests_per_minute=1,
    tokens_per_minute=2,
    tokens_per_day=3,
    expires=date(2031, 2, 28),
    revoked=True,
    upstream_key=Secret("sk-upstream-1"),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "keys.json"
    change_keys(file, SECRET, lambda _: [record()])
    return file


def entries(path: Path) -> Any:
    return json.loads(path.read_text())


def spoil(path: Path, **fields: Any) -> None:
    document = entries(path)
    document["keys"][0].update(fields)
    path.write_text(json.dumps(document))


def test_records_come_back_as_they_were_and_the_key_is_not_in_the_file(path: Path) -> None:
    change_keys(
        path, SECRET, lambda records: [*records, FULL.__class__(**{**_fields(FULL), "id": "k2", "hash": "0" * 64})]
    )
    first, second = read_keys(path, SECRET)
    assert first == record()
    assert _fields(second) == {**_fields(FULL), "id": "k2", "hash": "0" * 64}
    assert KEY not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def _fields(of: Any) -> dict[str, Any]:
    return {name: getattr(of, name) for name in of.__struct_fields__}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"id": ""}, r"keys\[0\] \(''\): .*\$\.id"),
        ({"id": "a b"}, r"\$\.id"),
        ({"id": 7}, r"keys\[0\]: .*\$\.id"),
        ({"name": ""}, r"\$\.name"),
        ({"name": "a\nb"}, r"\$\.name"),
        ({"tenant": " x"}, r"\$\.tenant"),
        ({"hash": "abc"}, r"\('k1'\): .*\$\.hash"),
        ({"hash": None}, r"\$\.hash"),
        ({"models": "gpt-4o"}, r"\$\.models"),
        ({"models": [""]}, r"\$\.models\[0\]"),
        ({"requests_per_minute": 0}, r"\$\.requests_per_minute"),
        ({"tokens_per_minute": "many"}, r"\$\.tokens_per_minute"),
        ({"tokens_per_day": 1.5}, r"\$\.tokens_per_day"),
        ({"expires": "2030-02-30"}, r"\$\.expires"),
        ({"revoked": "no"}, r"\$\.revoked"),
        ({"upstream_key": ""}, r"\$\.upstream_key"),
        ({"upstream_key": "sk canary"}, r"\$\.upstream_key"),
        ({"upstream_key": "sk-canary\r\nx: y"}, r"\$\.upstream_key"),
        ({"upstream_key": 7}, r"\$\.upstream_key"),
        ({"upstream_key": "sk-canary", "upstream_key_env": "V"}, "exclude each other"),
        ({"requests_per_minutes": 5}, "requests_per_minutes"),
    ],
)
def test_a_broken_entry_is_named_with_its_key_and_never_quoted(path: Path, fields: dict[str, Any], said: str) -> None:
    spoil(path, **fields)
    with pytest.raises(ConfigError, match=said) as refusal:
        read_keys(path, SECRET)
    assert refusal.value.message.startswith(f"{path}: keys[0]")
    assert "canary" not in refusal.value.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", 'a list "keys"'),
        (b'{"keys": {}}', 'a list "keys"'),
        (b'{"keys": []}', "version"),
        (b'{"version": 2, "keys": []}', "version must be 1"),
        (b'{"version": 1, "keys": []}', "install.key"),
        (b'{"version": 1, "install": "0", "keys": []}', "install.key"),
    ],
)
def test_a_broken_file_is_named(path: Path, text: bytes, said: str) -> None:
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=said) as refusal:
        read_keys(path, SECRET)
    assert refusal.value.message.startswith(f"{path}: ")


def test_an_entry_that_is_no_object_or_comes_twice_is_named(path: Path) -> None:
    document = entries(path)
    path.write_text(json.dumps({**document, "keys": ["k1"]}))
    with pytest.raises(ConfigError, match=r"keys\[0\]"):
        read_keys(path, SECRET)
    path.write_text(json.dumps({**document, "keys": document["keys"] * 2}))
    with pytest.raises(ConfigError, match=r"keys\[1\] \('k1'\): id is another entry's too"):
        read_keys(path, SECRET)
    path.write_text(json.dumps({**document, "more": 1}))
    with pytest.raises(ConfigError, match="'more'"):
        read_keys(path, SECRET)


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cacheproxy keys new"):
        read_keys(tmp_path / "keys.json", SECRET)


def test_keys_of_another_install_are_refused_as_a_whole(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"made under another install\.key"):
        read_keys(path, b"t" * 32)


def test_a_change_that_fails_leaves_the_file(path: Path) -> None:
    before = path.read_bytes()

    def fail(_: object) -> Any:
        raise ConfigError("no")

    with pytest.raises(ConfigError):
        change_keys(path, SECRET, fail)
    assert path.read_bytes() == before
    assert {file.name for file in path.parent.iterdir()} == {"keys.json", ".keys.json.lock"}


async def test_writers_at_the_same_time_lose_nothing(path: Path) -> None:
    def add(number: int) -> None:
        made = record(f"sk-cp-{number}", id=f"n{number}")
        change_keys(path, SECRET, lambda records: [*records, made])

    await asyncio.gather(*(asyncio.to_thread(add, number) for number in range(20)))
    assert len(read_keys(path, SECRET)) == 21


# The keeper


def keeper(path: Path, clock: FakeClock | None = None) -> Keeper:
    return Keeper(path, SECRET, clock or FakeClock(), {})


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def remove(path: Path) -> None:
    path.unlink()


async def test_a_changed_file_is_read_again(path: Path) -> None:
    kept = keeper(path)
    assert kept.gate.admit(BEARER)
    change_keys(path, SECRET, lambda _: [record(revoked=True)])
    await kept.tend()
    with pytest.raises(NotAuthenticated, match="revoked"):
        kept.gate.admit(BEARER)


async def test_a_file_that_breaks_or_goes_leaves_the_old_keys_in_force(path: Path) -> None:
    kept = keeper(path)
    cut_short(path)
    await kept.tend()
    assert kept.gate.admit(BEARER)
    remove(path)
    await kept.tend()
    kept.reload()
    assert kept.gate.admit(BEARER)
    change_keys(path, SECRET, lambda _: [record(OTHER)])
    await kept.tend()
    with pytest.raises(NotAuthenticated):
        kept.gate.admit(BEARER)


async def test_a_reload_is_not_undone_by_a_slower_read_of_an_older_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = keeper(path)
    change_keys(path, SECRET, lambda _: [record(name="renamed")])
    attempt, read, go_on = kept._attempt, threading.Event(), threading.Event()

    def slow() -> Keyring | ConfigError:
        found = attempt()
        read.set()
        assert go_on.wait(10)
        return found

    monkeypatch.setattr(kept, "_attempt", slow)
    tending = asyncio.create_task(kept.tend())
    assert await asyncio.to_thread(read.wait, 10)
    monkeypatch.undo()
    change_keys(path, SECRET, lambda _: [record(revoked=True)])
    kept.reload()
    go_on.set()
    await tending
    with pytest.raises(NotAuthenticated, match="revoked"):
        kept.gate.admit(BEARER)


def test_a_broken_file_stops_the_start(path: Path) -> None:
    spoil(path, expires="soon")
    with pytest.raises(ConfigError, match=r"keys\[0\] \('k1'\): .*expires"):
        keeper(path)


async def test_the_tokens_of_the_day_outlive_the_process(path: Path) -> None:
    clock = FakeClock()
    change_keys(path, SECRET, lambda _: [record(tokens_per_day=100)])
    kept = keeper(path, clock)
    charge = kept.gate.admit(BEARER).charge
    assert charge is not None
    charge(60)
    await kept.tend()
    again = keeper(path, clock)
    assert again.gate.accounts.spent(clock.now()) == {"k1": 60}
    clock.advance(86_400)
    assert keeper(path, clock).gate.accounts.spent(clock.now()) == {}


@pytest.mark.parametrize("text", [b"", b"{}", b'{"day": "2026-01-01", "tokens": {"k1": "x"}}', b"\xff"])
def test_damaged_tokens_of_the_day_do_not_stop_the_start(path: Path, text: bytes) -> None:
    spent_path(path).write_bytes(text)
    assert keeper(path).gate.admit(BEARER)
