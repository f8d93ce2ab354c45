from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from cacheproxy.errors import ConfigError
from cacheproxy.learn.serves import Serve, Serves
from cacheproxy.learn.verdicts import Verdict, Verdicts, Word, pairs

if TYPE_CHECKING:
    from pathlib import Path

Q1, Q2 = b"1" * 32, b"2" * 32


def verdict(word: Word, question: bytes = Q1, entry: str = "e1", **more: Any) -> Verdict:
    told = {"tenant": "t", "category": "default", "similarity": 0.9, "threshold": 0.8, "comment": ""}
    told |= {"entry_text": "How?", "question_text": "How so?", "at_s": 1.0}
    return Verdict(word=word, entry_id=entry, question=question, **{**told, **more})


async def test_a_quarantine_holds_for_one_entry_and_one_question(tmp_path: Path) -> None:
    async with Verdicts(tmp_path / "f.sqlite3") as verdicts:
        await verdicts.record(verdict(Word.BAD))
        assert verdicts.quarantined("e1", Q1)
        assert not verdicts.quarantined("e1", Q2)
        assert not verdicts.quarantined("e2", Q1)


async def test_the_latest_word_counts_after_a_restart_too(tmp_path: Path) -> None:
    path = tmp_path / "f.sqlite3"
    async with Verdicts(path) as verdicts:
        for word in (Word.BAD, Word.GOOD, Word.GOOD):
            await verdicts.record(verdict(word))
        await verdicts.record(verdict(Word.BAD, Q2))
    async with Verdicts(path) as verdicts:
        assert not verdicts.quarantined("e1", Q1)
        assert verdicts.quarantined("e1", Q2)
        assert verdicts.standing("e1") == 0
        assert len(verdicts) == 1
    assert [pair["label"] for pair in pairs(path)] == [0, 1, 1, 0]


async def test_only_similarity_hits_with_their_texts_become_pairs(tmp_path: Path) -> None:
    path = tmp_path / "f.sqlite3"
    async with Verdicts(path) as verdicts:
        await verdicts.record(verdict(Word.BAD, similarity=None))
        await verdicts.record(verdict(Word.BAD, question_text=""))
        await verdicts.record(verdict(Word.GOOD, Q2))
    assert list(pairs(path)) == [{"a": "How?", "b": "How so?", "label": 1, "category": "default", "similarity": 0.9}]


async def test_somebody_elses_file_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "f.sqlite3"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (x)")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="not a file of verdicts"):
        async with Verdicts(path):
            pass
    assert path.read_bytes() == before
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(ConfigError, match="cannot be used"):
        async with Verdicts(path):
            pass
    with pytest.raises(ConfigError, match="no verdicts yet"):
        list(pairs(tmp_path / "missing.sqlite3"))


def serve(tenant: str = "t", entry: str = "e1", question: bytes = Q1) -> Serve:
    return Serve(tenant=tenant, entry_id=entry, question=question, text="", category="default")


def test_serves_are_found_by_response_and_by_entry_and_never_by_another_tenant() -> None:
    serves = Serves()
    serves.remember("r1", serve())
    serves.remember("r2", serve(question=Q2))
    assert serves.find("t", "r1") == serve()
    assert serves.find("t", "e1") == serve(question=Q2)
    assert serves.find("u", "r1") is None
    assert serves.find("u", "e1") is None


def test_serves_are_bounded_and_the_oldest_go_first() -> None:
    serves = Serves(most=4)
    for number in range(10):
        serves.remember(f"r{number}", serve(entry=f"e{number}"))
    assert len(serves) == 4
    assert serves.find("t", "r9") is not None
    assert serves.find("t", "r0") is None
    serves.remember("", serve(entry="e"))
    assert serves.find("t", "") is None
