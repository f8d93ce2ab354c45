"""What is owed, in a file: whatever a crash leaves of it, nothing that is owed is lost, and writing costs little."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from cacheproxy.owing import Owed, Owing

if TYPE_CHECKING:
    from collections.abc import Iterable


def one(token: str, ids: Iterable[str] = ()) -> Owed:
    return Owed(asked_s=1.0, parts=("notes",), ids=tuple(ids), meant={"tenant": "t"}, token=token)


def tokens(path: Path) -> list[str]:
    """Return what a restart would find."""
    return [owed.token for owed in Owing(path)]


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def written() -> int:
    """Return how many bytes this process has written so far."""
    counters = Path("/proc/self/io")
    if not counters.exists():
        pytest.skip("this system does not count what a process writes")
    return int(counters.read_text().split()[3])


async def test_what_is_owed_is_found_again_in_its_order_and_what_is_done_is_not(tmp_path: Path) -> None:
    owing = Owing(tmp_path / "j")
    for number in range(200):
        owing.put(one(str(number)))
        await owing.save()
        if number % 2:
            owing.discard(str(number - 1))
            await owing.save()
    assert tokens(tmp_path / "j") == [str(number) for number in range(1, 200, 2)]
    for owed in owing:
        owing.discard(owed.token)
    await owing.save()
    assert files(tmp_path) == []


async def test_what_changed_takes_the_place_of_what_was_written(tmp_path: Path) -> None:
    owing = Owing(tmp_path / "j")
    for token in "ab":
        owing.put(one(token))
        await owing.save()
    owing.put(one("a", ["id"]))
    await owing.save()
    assert [owed.ids for owed in Owing(tmp_path / "j")] == [("id",), ()]


async def test_a_crash_in_the_midst_of_a_line_loses_that_line_alone(tmp_path: Path) -> None:
    owing = Owing(tmp_path / "j")
    for token in "abc":
        owing.put(one(token))
        await owing.save()
    tail = tmp_path / "j.tail"
    tail.write_bytes(tail.read_bytes()[:-10])
    again = Owing(tmp_path / "j")
    assert [owed.token for owed in again] == ["a", "b"]
    again.put(one("d"))
    await again.save()
    assert tokens(tmp_path / "j") == ["a", "b", "d"]


async def test_a_crash_between_the_file_and_its_tail_changes_nothing(tmp_path: Path) -> None:
    owing = Owing(tmp_path / "j")
    for token in "abc":
        owing.put(one(token))
        await owing.save()
    owing.discard("b")
    await owing.save()
    tail = (tmp_path / "j.tail").read_bytes()
    whole = Owing(tmp_path / "j")
    whole.put(one("d"))
    whole.discard("d")
    await whole.save()
    (tmp_path / "j.tail").write_bytes(tail)
    assert tokens(tmp_path / "j") == ["a", "c"]


def test_a_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    old = {"asked_s": 1.0, "parts": ["notes"], "ids": ["x"], "meant": {"tenant": "t"}, "descendants": False}
    (tmp_path / "j").write_bytes(msgspec.json.encode([old, {**old, "token": "k"}]))
    owing = Owing(tmp_path / "j")
    assert [owed.ids for owed in owing] == [("x",), ("x",)]
    assert "k" in owing


async def test_only_the_owner_reads_what_is_written(tmp_path: Path) -> None:
    owing = Owing(tmp_path / "j")
    for token in "ab":
        owing.put(one(token))
        await owing.save()
    assert {path.stat().st_mode & 0o777 for path in files(tmp_path)} == {0o600}
    assert len(files(tmp_path)) == 2


async def test_writing_one_down_costs_the_same_however_many_are_owed(tmp_path: Path) -> None:
    owing, ids = Owing(tmp_path / "j"), [f"{number:032x}" for number in range(20)]
    costs = []
    for begin in (0, 300):
        before = written()
        for number in range(begin, begin + 300):
            owing.put(one(str(number), ids))
            await owing.save()
        costs.append(written() - before)
    assert costs[1] < 1.5 * costs[0]
    assert sum(costs) < 5 * len(msgspec.json.encode(list(owing)))
