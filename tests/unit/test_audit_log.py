"""The audit log is appended to, bounded, private, and shows when it was tampered with."""

from __future__ import annotations

import asyncio
import stat
from typing import TYPE_CHECKING

import msgspec
import pytest

from cacheproxy.errors import ConfigError, NotChanged
from cacheproxy.govern.audit import KEPT_FILES, AuditLog, broken_at
from tests.support.clock import FakeClock

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def read(path: Path) -> bytes:
    return path.read_bytes()


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def block(path: Path) -> None:
    """Put a directory in the file's place, which even root cannot write to as to a file."""
    path.unlink()
    path.mkdir()


def unblock(path: Path) -> None:
    path.rmdir()


async def written(log: AuditLog, count: int) -> None:
    for number in range(count):
        await log.record("operator@127.0.0.1", "tests.write", f"n{number}", before=number - 1, after=number)


async def test_a_line_says_who_did_what_when_from_what_to_what(path: Path) -> None:
    clock = FakeClock()
    await AuditLog(path, clock).record(
        "a", "policies.patch", "code", before={"t": 0.8}, after={"t": 0.9}, outcome="done"
    )
    [line] = read(path).splitlines()
    deed = msgspec.json.decode(line)
    assert deed | {"hash": ""} == {
        "n": 1,
        "at": "2027-01-15T08:00:00.000+00:00",
        "actor": "a",
        "action": "policies.patch",
        "target": "code",
        "before": {"t": 0.8},
        "after": {"t": 0.9},
        "outcome": "done",
        "prev": "0" * 64,
        "hash": "",
    }


async def test_the_log_is_for_its_owner_only(path: Path) -> None:
    log = AuditLog(path, FakeClock(), file_bytes=600)
    await written(log, 4)
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}


async def test_a_restart_goes_on_where_the_log_ended(path: Path) -> None:
    await written(AuditLog(path, FakeClock()), 2)
    await written(AuditLog(path, FakeClock()), 1)
    deeds, more = await AuditLog(path, FakeClock()).page()
    assert ([deed.n for deed in deeds], more) == ([3, 2, 1], None)
    assert broken_at(path) is None


@pytest.mark.parametrize("of", [0, 1, 2])
@pytest.mark.parametrize("tamper", ["changed", "taken out"])
async def test_a_line_altered_or_taken_out_shows(path: Path, of: int, tamper: str) -> None:
    await written(AuditLog(path, FakeClock()), 4)
    lines = read(path).splitlines(keepends=True)
    if tamper == "changed":
        lines[of] = lines[of].replace(b"operator", b"somebody")
    else:
        del lines[of]
    write(path, b"".join(lines))
    oldest_gone = tamper == "taken out" and of == 0  # what rotation does, too
    assert (broken_at(path) is None) is oldest_gone


async def test_a_line_that_a_crash_cut_is_passed_over_and_the_chain_goes_on(path: Path) -> None:
    await written(AuditLog(path, FakeClock()), 2)
    with path.open("ab") as file:
        file.write(b'{"n":3,"at":"20')
    await written(AuditLog(path, FakeClock()), 1)
    deeds, _ = await AuditLog(path, FakeClock()).page()
    assert [deed.n for deed in deeds] == [3, 2, 1]
    assert broken_at(path) is None
    assert b'{"n":3,"at":"20\n' in read(path)


async def test_full_files_are_kept_up_to_a_bound_and_the_chain_runs_through_them(path: Path) -> None:
    log = AuditLog(path, FakeClock(), file_bytes=900)
    await written(log, 60)
    files = list(path.parent.iterdir())
    assert len(files) == KEPT_FILES
    assert all(file.stat().st_size <= 900 for file in files)
    assert broken_at(path) is None
    deeds, _ = await log.page(limit=1000)
    assert [deed.n for deed in deeds] == list(range(60, 60 - len(deeds), -1))


async def test_pages_run_through_everything_once(path: Path) -> None:
    log = AuditLog(path, FakeClock(), file_bytes=1500)
    await written(log, 20)
    seen: list[int] = []
    cursor: int | None = None
    while True:
        deeds, cursor = await log.page(before=cursor, limit=3)
        seen += [deed.n for deed in deeds]
        if cursor is None:
            break
    whole, _ = await log.page(limit=1000)
    assert seen == [deed.n for deed in whole]


async def test_writers_at_once_get_a_line_each(path: Path) -> None:
    log = AuditLog(path, FakeClock())
    deeds = await asyncio.gather(*(log.record("a", "b", str(at)) for at in range(25)))
    assert sorted(deed.n for deed in deeds) == list(range(1, 26))
    assert broken_at(path) is None


async def test_what_cannot_be_written_is_refused_and_leaves_no_gap(path: Path) -> None:
    log = AuditLog(path, FakeClock())
    await written(log, 1)
    block(path)
    with pytest.raises(NotChanged, match="nothing was changed"):
        await log.record("a", "b", "c")
    unblock(path)
    await written(log, 2)
    assert broken_at(path) is None


def test_a_log_that_cannot_be_opened_stops_the_start(path: Path) -> None:
    path.mkdir()
    with pytest.raises(ConfigError, match=r"audit\.jsonl: cannot be used"):
        AuditLog(path, FakeClock())
