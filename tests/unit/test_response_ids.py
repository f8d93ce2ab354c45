from __future__ import annotations

import pytest

from cacheproxy.dialect.ids import entry_of, made_of, new_id, new_tail, question_of, tail_of

ENTRY = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("original", "prefix"),
    [
        ("chatcmpl-abc", "chatcmpl-"),
        ("resp_abc", "resp_"),
        ("gen-1", "gen-"),
        ("abc", "chatcmpl-"),
        (None, "chatcmpl-"),
        ("x" * 99 + "-", "chatcmpl-"),
        ("a b-c", "chatcmpl-"),
    ],
)
def test_a_new_id_looks_like_the_backends_own_and_tells_its_entry(original: object, prefix: str) -> None:
    tail = new_tail(ENTRY, original)
    made = new_id(original, tail, "chatcmpl-")
    assert made == f"{prefix}{tail}"
    assert tail_of(made) == tail != new_tail(ENTRY, original)
    assert entry_of(made) == ENTRY


def test_the_id_of_a_similarity_hit_tells_its_question() -> None:
    made = new_id("resp_1", new_tail(ENTRY, "resp_1", bytes(range(32))), "resp_")
    assert (entry_of(made), question_of(made)) == (ENTRY, bytes(range(16)))
    assert made_of(made, "resp_1")
    assert question_of(new_id("resp_1", new_tail(ENTRY, "resp_1"), "resp_")) == question_of("resp_1") == b""


@pytest.mark.parametrize("original", ["resp_1", "\ud800", None, 7])
def test_a_new_id_tells_which_answer_it_was_made_for(original: object) -> None:
    made = new_id(original, new_tail(ENTRY, original), "resp_")
    assert made_of(made, original)
    assert not made_of(made, "resp_2")
    assert not made_of("resp_1", "resp_1")


@pytest.mark.parametrize(
    "foreign", ["", "chatcmpl-abc", ENTRY, f"resp_{ENTRY}", f"resp_{'0' * 50}", "resp_" + "g" * 50]
)
def test_an_id_of_the_backend_tells_no_entry(foreign: str) -> None:
    assert entry_of(foreign) is None
    assert tail_of(foreign) == ""
