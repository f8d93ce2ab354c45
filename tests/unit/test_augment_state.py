from __future__ import annotations

import asyncio
import sqlite3
import stat
from contextlib import closing
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from cacheproxy.augment.arms import Arm, Situation
from cacheproxy.augment.helpful import FEATURES
from cacheproxy.augment.state import AugmentState
from cacheproxy.augment.worth import Standing
from cacheproxy.errors import AugmentUnavailable, ConfigError

if TYPE_CHECKING:
    from pathlib import Path

import numpy as np

MODELS = "smollm2/minilm"
ASKED = Situation(max_similarity=0.8, mean_helpfulness=0.6, examples=3, question_tokens=30)
ONE = Standing(
    entry_id="e1",
    tenant="t1",
    category="faq",
    user="u1",
    tokens=100,
    since_s=5.0,
    at_s=10.0,
    quality=0.75,
    words=3.0,
    offloads=2.5,
    uses=4.0,
    loss=0.25,
    replays=2,
    better=0.125,
    pinned=True,
)


def another(name: str, **changes: Any) -> Standing:
    return replace(ONE, entry_id=name, **changes)


def learn(state: AugmentState) -> None:
    for number in range(30):
        state.router.reward("faq", Arm.AUGMENTED, ASKED, 0.9)
        state.helpfulness.learn(np.ones(len(FEATURES)), 1.0, category="faq")
        state.gains.learn("faq", 0.7, 1.0, augmented=number % 2 == 0)
        state.observed.note("faq", Arm.LARGE, 1.0, 0.01, float(number))


def parts(state: AugmentState) -> tuple[bytes, ...]:
    return tuple(part.to_bytes() for part in (state.router, state.helpfulness, state.gains, state.observed))


def on_disk(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(path.parent.iterdir()))


async def test_all_that_was_learnt_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "augment.sqlite3"
    async with AugmentState(path, MODELS) as state:
        learn(state)
        state.put(ONE)
        state.put(another("e2", pinned=False))
        told = parts(state)
        choice = state.router.choose("faq", ASKED, Random(1), 0.0)
    async with AugmentState(path, MODELS) as state:
        assert parts(state) == told
        assert state.router.choose("faq", ASKED, Random(1), 0.0) == choice
        assert state.standing("e1") == ONE
        assert [one.entry_id for one in state.standings("faq")] == ["e1", "e2"]
        assert list(state.standings("code")) == []
        assert len(list(state.standings())) == 2
        assert state.standing("e3") is None


async def test_what_was_learnt_with_other_models_is_not_read_but_examples_are(tmp_path: Path) -> None:
    path = tmp_path / "augment.sqlite3"
    async with AugmentState(path, MODELS) as state:
        fresh = parts(state)
        learn(state)
        state.put(ONE)
    async with AugmentState(path, "qwen/minilm") as state:
        assert parts(state) == fresh
        assert state.standing("e1") == ONE


async def test_a_part_of_another_version_starts_afresh_and_the_others_do_not(tmp_path: Path) -> None:
    path = tmp_path / "augment.sqlite3"
    async with AugmentState(path, MODELS) as state:
        fresh = parts(state)
        learn(state)
        told = parts(state)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE learnt SET state = x'80' WHERE part = 'router'")
    with capture_logs() as logs:
        async with AugmentState(path, MODELS) as state:
            assert parts(state) == (fresh[0], *told[1:])
    assert [(line["event"], line["part"]) for line in logs] == [("augment_state_unreadable", "router")]


@pytest.mark.parametrize("wrong", ["PRAGMA user_version = 99", "PRAGMA application_id = 1"])
async def test_a_file_of_another_version_is_refused_and_left_alone(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "augment.sqlite3"
    async with AugmentState(path, MODELS) as state:
        state.put(ONE)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(wrong)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"augment\.sqlite3.*move it aside"):
        async with AugmentState(path, MODELS):
            pass
    assert path.read_bytes() == before


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "augment.sqlite3"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(ConfigError, match="move it aside"):
        async with AugmentState(path, MODELS):
            pass


async def test_the_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "augment.sqlite3"
    async with AugmentState(path, MODELS) as state:
        learn(state)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_what_is_tended_survives_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "augment.sqlite3"
    async with AugmentState(path, MODELS) as state:
        learn(state)
        state.put(ONE)
        await state.tend()
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("SELECT count(*) FROM learnt").fetchone() == (4,)
            assert connection.execute("SELECT entry_id FROM examples").fetchall() == [("e1",)]


async def test_nothing_is_written_where_nothing_changed(tmp_path: Path) -> None:
    path = tmp_path / "augment.sqlite3"
    async with AugmentState(path, MODELS) as state:
        learn(state)
        await state.tend()
        before = on_disk(path)
        await state.tend()
        assert on_disk(path) == before


async def test_dropped_examples_are_gone_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "augment.sqlite3"
    async with AugmentState(path, MODELS) as state:
        state.put(ONE)
        state.put(another("e2"))
        await state.tend()
        state.drop(["e1", "unknown"])
        assert state.standing("e1") is None
    async with AugmentState(path, MODELS) as state:
        assert [one.entry_id for one in state.standings()] == ["e2"]


async def test_an_erasure_leaves_nothing_of_an_example_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "augment.sqlite3"
    async with AugmentState(path, MODELS) as state:
        for number in range(50):
            state.put(another(f"kept{number}", tenant="tenant-that-stays"))
            state.put(another(f"gone{number}", tenant="tenant-that-goes"))
        state.put(another("named-entry", tenant="tenant-that-stays"))
        await state.tend()
        assert b"tenant-that-goes" in on_disk(path)
        gone = await state.forget(lambda one: one.tenant == "tenant-that-goes", ["named-entry", "never-known"])
        assert gone == 51
        assert b"tenant-that-goes" not in on_disk(path)
        assert b"named-entry" not in on_disk(path)
        assert len(list(state.standings())) == 50
    async with AugmentState(path, MODELS) as state:
        assert len(list(state.standings())) == 50


async def test_of_too_many_examples_the_oldest_without_a_pin_goes(tmp_path: Path) -> None:
    path = tmp_path / "augment.sqlite3"
    async with AugmentState(path, MODELS, most_examples=3) as state:
        state.put(another("pinned"))
        for name in ("a", "b", "c", "d"):
            state.put(another(name, pinned=False))
        assert [one.entry_id for one in state.standings()] == ["pinned", "c", "d"]
    async with AugmentState(path, MODELS, most_examples=3) as state:
        assert len(list(state.standings())) == 3


async def test_what_is_quarantined_is_not_forgotten_for_want_of_room(tmp_path: Path) -> None:
    async with AugmentState(tmp_path / "augment.sqlite3", MODELS, most_examples=2) as state:
        state.put(another("shut", pinned=False, quarantined=True))
        for name in ("a", "b", "c"):
            state.put(another(name, pinned=False))
        assert [one.entry_id for one in state.standings()] == ["shut", "c"]


async def test_examples_are_counted_by_category_as_they_come_and_go(tmp_path: Path) -> None:
    path = tmp_path / "augment.sqlite3"
    async with AugmentState(path, MODELS) as state:
        assert state.counts() == {}
        state.put(ONE)
        state.put(replace(ONE, quality=0.1))
        state.put(another("e2", category="code"))
        state.put(another("e3", category="code"))
        assert state.counts() == {"faq": 1, "code": 2}
        state.put(another("e3"))  # its question is of another category now
        state.drop(("e2", "never known"))
        assert state.counts() == {"faq": 2}
    async with AugmentState(path, MODELS) as state:
        assert state.counts() == {"faq": 2}


async def test_a_file_of_before_quarantines_is_read_and_made_new(tmp_path: Path) -> None:
    path = tmp_path / "augment.sqlite3"
    async with AugmentState(path, MODELS) as state:
        learn(state)
        state.put(ONE)
        told = parts(state)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("ALTER TABLE examples DROP COLUMN quarantined")
        connection.execute("PRAGMA user_version = 1")
    async with AugmentState(path, MODELS) as state:
        assert parts(state) == told
        assert state.standing("e1") == ONE
        state.put(replace(ONE, pinned=False, quarantined=True))
    async with AugmentState(path, MODELS) as state:
        assert state.standing("e1") == replace(ONE, pinned=False, quarantined=True)


async def test_a_write_that_fails_is_told_and_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "augment.sqlite3"
    async with AugmentState(path, MODELS) as state:
        learn(state)
        state.put(ONE)
        state.put(another("e2"))
        await state.tend()
        state.put(replace(ONE, quality=0.25))
        state.drop(["e2"])
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(AugmentUnavailable):
                await state.tend()
            with pytest.raises(AugmentUnavailable):
                await state.forget(lambda _: False, ["e2"])
        await state.tend()
        with closing(sqlite3.connect(path)) as other:
            assert other.execute("SELECT entry_id, quality FROM examples").fetchall() == [("e1", 0.25)]


async def test_after_the_end_nothing_can_be_written(tmp_path: Path) -> None:
    state = AugmentState(tmp_path / "augment.sqlite3", MODELS)
    async with state:
        pass
    state.put(ONE)
    with pytest.raises(AugmentUnavailable):
        await state.tend()


async def test_tending_while_learning_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "augment.sqlite3"
    async with AugmentState(path, MODELS) as state:
        for number in range(20):
            state.put(another(f"e{number}"))
            tending = asyncio.create_task(state.tend())
            await asyncio.sleep(0)
            state.put(another(f"e{number}", quality=0.5))
            learn(state)
            await tending
        told = parts(state)
    async with AugmentState(path, MODELS) as state:
        assert parts(state) == told
        assert {one.quality for one in state.standings()} == {0.5}


async def test_the_file_holds_no_text(tmp_path: Path) -> None:
    path = tmp_path / "augment.sqlite3"
    async with AugmentState(path, MODELS) as state:
        state.put(ONE)
    with closing(sqlite3.connect(path)) as connection:
        columns = {row[1]: row[2] for row in connection.execute("PRAGMA table_info(examples)")}
    assert {name for name, kind in columns.items() if kind == "TEXT"} == {"entry_id", "tenant", "category", "user"}
