"""What an erasure means of all that is remembered beside entries; verdicts of it are gone from memory and file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cacheproxy.learn.feedback import Feedback
from cacheproxy.learn.serves import Serve
from cacheproxy.learn.traces import Trace, meant
from cacheproxy.learn.verdicts import Verdict, Verdicts, Word
from cacheproxy.model import Selector
from tests.support.clock import FakeClock

if TYPE_CHECKING:
    from pathlib import Path

QUESTION = bytes(range(32))
TRACE = Trace(at_s=100.0, tenant="t", entry_id="e", question=QUESTION, category="c", user="u")


@pytest.mark.parametrize(
    ("selector", "erased", "is_meant"),
    [
        (Selector(), (), False),
        (Selector(), ("e",), True),
        (Selector(), (QUESTION[:16].hex(),), True),
        (Selector(), ("other",), False),
        (Selector(tenant="t"), (), True),
        (Selector(tenant="x"), (), False),
        (Selector(user="u"), (), True),
        (Selector(user="x"), (), False),
        (Selector(tenant="t", user="x"), (), False),
        (Selector(tenant="t", category="c"), (), True),
        (Selector(tenant="t", category="x"), (), False),
        (Selector(tenant="t", before_s=101.0), (), True),
        (Selector(tenant="t", before_s=100.0), (), False),
        (Selector(tenant="t", tag="a"), (), False),
        (Selector(tenant="t", tag="a"), ("e",), True),
        (Selector(tenant="t", model="m"), (), False),
        (Selector(ids=("x",)), (), False),
    ],
)
def test_a_trace_is_meant_by_an_entry_or_by_all_that_is_given(
    selector: Selector, erased: tuple[str, ...], is_meant: bool
) -> None:
    assert meant(selector, frozenset(erased), TRACE) is is_meant


def verdict(**fields: Any) -> Verdict:
    told: dict[str, Any] = {
        "at_s": 1.0, "tenant": "t", "entry_id": "e", "question": b"q" * 16, "word": Word.BAD, "category": "c",
        "similarity": 0.9, "threshold": 0.8, "entry_text": "", "question_text": "", "comment": "", "user": "",
    }  # fmt: skip
    return Verdict(**{**told, **fields})


def held(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


async def test_an_erased_verdict_leaves_file_and_quarantine(tmp_path: Path) -> None:
    async with Verdicts(tmp_path / "f.sqlite3") as verdicts:
        await verdicts.record(
            verdict(entry_text="canary-1", question_text="canary-2", comment="canary-3" * 500, user="u")
        )
        await verdicts.record(verdict(entry_id="other", comment="stays"))
        assert held(tmp_path).count(b"canary") > 3
        assert await verdicts.forget(Selector(user="u")) == 1
        assert b"canary" not in held(tmp_path)
        assert b"stays" in held(tmp_path)
        assert verdicts.quarantined_s("t", "e", b"q" * 16) is None
        assert verdicts.quarantined_s("t", "other", b"q" * 16) == 1.0
        assert verdicts.standing("t", "e") == 0
    async with Verdicts(tmp_path / "f.sqlite3") as verdicts:
        assert len(verdicts) == 1


async def test_a_replaced_verdict_leaves_nothing_of_itself(tmp_path: Path) -> None:
    async with Verdicts(tmp_path / "f.sqlite3") as verdicts:
        for comment in ("canary" * 400, "short"):
            await verdicts.record(verdict(comment=comment))
        await verdicts.forget(Selector(tenant="t"))
        assert b"canary" not in held(tmp_path)


async def test_a_file_of_the_version_before_is_taken_over_without_its_old_pages(tmp_path: Path) -> None:
    import contextlib
    import sqlite3

    path = tmp_path / "f.sqlite3"
    async with Verdicts(path) as verdicts:
        await verdicts.record(verdict(comment="kept"))
    with contextlib.closing(sqlite3.connect(path)) as old, old:
        old.executescript(
            "PRAGMA secure_delete = OFF; ALTER TABLE verdicts DROP COLUMN user; PRAGMA user_version = 1;"
            f"CREATE TABLE x (t); INSERT INTO x VALUES ('{'canary' * 1000}'); DELETE FROM x; DROP TABLE x;"
        )
    assert b"canary" in held(tmp_path)
    async with Verdicts(path) as verdicts:
        assert len(verdicts) == 1
        await verdicts.record(verdict(entry_id="new", user="u"))
        assert await verdicts.forget(Selector(user="u")) == 1
    assert b"canary" not in held(tmp_path)


async def test_serves_are_forgotten_with_their_verdicts(tmp_path: Path) -> None:
    async with Verdicts(tmp_path / "f.sqlite3") as verdicts:
        feedback = Feedback(verdicts, FakeClock())
        for tenant, user in (("t", "u"), ("t", ""), ("x", "u")):
            serve = Serve(tenant=tenant, entry_id="e", question=QUESTION, text="", category="c", user=user)
            feedback._serves.remember(f"r-{tenant}{user}", serve)
        await feedback.forget(Selector(tenant="t", user="u"))
        assert feedback.recall("t", "r-tu") is None
        assert feedback.recall("t", "r-t") is not None
        assert feedback.recall("x", "r-xu") is not None
