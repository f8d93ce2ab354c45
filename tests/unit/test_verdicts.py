from __future__ import annotations

import contextlib
import sqlite3
import tracemalloc
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from cacheproxy.errors import ConfigError
from cacheproxy.learn.feedback import Feedback, Said
from cacheproxy.learn.ledger import Ledger
from cacheproxy.learn.serves import Serve, Serves
from cacheproxy.learn.verdicts import Verdict, Verdicts, Word, pairs
from cacheproxy.model import Controls, Lookup, Scope
from cacheproxy.query.chat import read_chat
from tests.support.clock import FakeClock
from tests.support.entries import make_entry

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
        assert verdicts.quarantined_s("t", "e1", Q1) == 1.0
        for other in (("t", "e1", Q2), ("t", "e2", Q1), ("u", "e1", Q1)):
            assert verdicts.quarantined_s(*other) is None


async def test_the_latest_word_counts_after_a_restart_too(tmp_path: Path) -> None:
    path = tmp_path / "f.sqlite3"
    async with Verdicts(path) as verdicts:
        for word in (Word.BAD, Word.GOOD, Word.GOOD):
            await verdicts.record(verdict(word))
        await verdicts.record(verdict(Word.BAD, Q2))
    async with Verdicts(path) as verdicts:
        assert verdicts.quarantined_s("t", "e1", Q1) is None
        assert verdicts.quarantined_s("t", "e1", Q2) == 1.0
        assert verdicts.standing("t", "e1") == 0
        assert len(verdicts) == 2
    assert [pair["label"] for pair in pairs(path)] == [1, 0]


async def test_one_tenants_words_push_nobody_elses_out_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "f.sqlite3"
    async with Verdicts(path, Ledger(most=6, most_of_a_tenant=4)) as verdicts:
        await verdicts.record(verdict(Word.BAD, tenant="a"))
        for number in range(20):
            await verdicts.record(verdict(Word.GOOD, entry=f"e{number}", tenant="b"))
            await verdicts.record(verdict(Word.GOOD, tenant="b"))
        for tenant in "cde":
            await verdicts.record(verdict(Word.BAD, tenant=tenant))
        kept = [("b", "e19"), ("b", "e1"), *((tenant, "e1") for tenant in "acde")]
    async with Verdicts(path) as verdicts:
        assert len(verdicts) == 6
        assert all(verdicts.quarantined_s(tenant, "e1", Q1) for tenant in "acde")
        assert all(verdicts.standing(*pair) == (1 if pair[0] == "b" else -1) for pair in kept)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert sorted(connection.execute("SELECT tenant, entry FROM verdicts")) == sorted(kept)


async def test_opening_a_file_that_grew_too_large_keeps_the_newest(tmp_path: Path) -> None:
    path = tmp_path / "f.sqlite3"
    async with Verdicts(path) as verdicts:
        for number in range(9):
            await verdicts.record(verdict(Word.BAD, entry=f"e{number}"))
    async with Verdicts(path, Ledger(most_of_a_tenant=3)) as verdicts:
        assert len(verdicts) == 3
    async with Verdicts(path) as verdicts:
        assert [verdicts.standing("t", f"e{number}") for number in range(9)] == [0] * 6 + [-1] * 3


WORDS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 4), st.booleans()), max_size=60)


@given(words=WORDS)
def test_a_ledger_is_bounded_and_only_the_largest_tenant_gives_way(words: list[tuple[str, int, bool]]) -> None:
    ledger = Ledger(most=6, most_of_a_tenant=4)
    model: dict[str, dict[int, bool]] = {}
    for at_s, (tenant, number, good) in enumerate(words, start=1):
        before = {name: len(said) for name, said in model.items()}
        model.setdefault(tenant, {}).pop(number, None)
        model[tenant][number] = good
        for dropped_tenant, _, question in ledger.write((tenant, "e", bytes([number])), good=good, at_s=at_s):
            assert before.get(dropped_tenant, 0) >= max(before.values()) or dropped_tenant == tenant
            assert model[dropped_tenant].pop(question[0]) is not None
        assert len(ledger) == sum(map(len, model.values())) <= 6
        assert all(len(said) <= 4 for said in model.values())
        for name, said in model.items():
            assert ledger.standing(name, "e") == sum(1 if good else -1 for good in said.values())
            bad = {number for number in range(5) if ledger.quarantined_s((name, "e", bytes([number]))) is not None}
            assert bad == {number for number, good in said.items() if not good}


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


def serve(tenant: str = "t", entry: str = "e1", question: bytes = Q1, text: str = "") -> Serve:
    return Serve(tenant=tenant, entry_id=entry, question=question, text=text, category="default")


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


def test_serves_are_bounded_in_bytes() -> None:
    serves = Serves(most_bytes=1_000_000)
    for number in range(1000):
        serves.remember(f"r{number}", serve(entry=f"e{number}", text="x" * 8000))
        assert serves.held_bytes <= 1_000_000
    assert 80 < len(serves) < 120
    assert serves.find("t", "r999") is not None
    for number in range(1000):
        serves.remember(f"r{number}", serve(entry="e999"))
        serves.forget_latest("t", "e999")
    held, count = serves.held_bytes, len(serves)
    serves.remember("r999", serve(entry="e999"))
    serves.forget_latest("t", "e999")
    assert (serves.held_bytes, len(serves)) == (held, count)


def test_an_id_longer_than_feedback_takes_is_not_remembered() -> None:
    serves = Serves()
    serves.remember("r" * 257, serve())
    serves.remember("r" * 256, serve(entry="e2"))
    assert serves.find("t", "r" * 257) is None
    assert serves.find("t", "e1") is not None
    assert serves.find("t", "r" * 256) is not None


@pytest.mark.parametrize("similarity", [None, 0.9], ids=["exact", "similar"])
def test_hits_of_long_prompts_keep_no_prompt(tmp_path: Path, similarity: float | None) -> None:
    feedback = Feedback(Verdicts(tmp_path / "f.sqlite3"), FakeClock())
    tracemalloc.start()
    try:
        for number in range(200):
            body = {"model": "m", "messages": [{"role": "user", "content": f"{number} " + "lorem ipsum " * 10_000}]}
            query = read_chat(body, Scope(tenant="t", namespace=""), Controls())
            entry = make_entry("e")
            feedback.served(f"r{number}", query, entry, Lookup(similarity=similarity))
            feedback.kept(f"live{number}", query, entry)
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held_bytes < 2_000_000  # 24 MB with the prompts
    found = feedback.recall("t", "r199")
    assert (found is None) == (similarity is None)
    assert found is None or found.text == ""


@pytest.mark.parametrize(("chars", "kept"), [(8192, True), (8193, False)])
def test_a_text_is_kept_up_to_eight_kib(tmp_path: Path, chars: int, kept: bool) -> None:
    feedback = Feedback(Verdicts(tmp_path / "f.sqlite3"), FakeClock())
    for letter, size in (("x", chars), ("\N{EURO SIGN}", (chars + 2) // 3)):
        body = {"model": "m", "messages": [{"role": "user", "content": letter * size}]}
        query = read_chat(body, Scope(tenant="t", namespace=""), Controls())
        feedback.served(letter, query, make_entry("e"), Lookup(similarity=0.9))
        found = feedback.recall("t", letter)
        assert found is not None
        if letter == "x":
            assert found.text == ("x" * chars if kept else "")
        else:
            assert len(found.text.encode()) <= 8192


async def test_of_an_entrys_own_question_only_older_answers_are_quarantined(tmp_path: Path) -> None:
    entry, at_s = make_entry("e"), make_entry("e").created_s + 1
    async with Verdicts(tmp_path / "f.sqlite3") as verdicts:
        feedback = Feedback(verdicts, FakeClock(at_s))
        for question in (entry.fingerprint, Q1):
            served = Serve(tenant=entry.tenant, entry_id=entry.id, question=question, text="", category="default")
            await feedback.judge(Said(tenant=entry.tenant, given_id=entry.id, word=Word.BAD), served, entry)
        newer = make_entry("e", created_s=at_s)
        assert feedback.quarantined(entry, entry.fingerprint)
        assert not feedback.quarantined(newer, entry.fingerprint)
        assert feedback.quarantined(entry, Q1)
        assert feedback.quarantined(newer, Q1)
