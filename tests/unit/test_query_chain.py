from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cacheproxy.model import Controls, Query, Scope, Trait
from cacheproxy.query.chain import ABOUT, MOST_CHARS, MOST_MESSAGES, in_context, leading_questions, plain
from cacheproxy.query.chat import read_chat
from cacheproxy.query.recent import RecentQuestions
from cacheproxy.query.responses import read_responses

TENANT = Scope(tenant="t" * 64)
SYSTEM = {"role": "system", "content": "Be brief."}


def user(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **fields}


def assistant(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def talk(*messages: dict[str, Any], **fields: Any) -> Query:
    return read_chat({"model": "m", "messages": list(messages), **fields}, TENANT, Controls())


CHAINS: dict[str, tuple[list[dict[str, Any]], tuple[str, ...]]] = {
    "nothing": ([], ()),
    "a system prompt": ([SYSTEM], ()),
    "a turn": ([user("What is Go?"), assistant("A language.")], ("What is Go?", "A language.")),
    "after a system prompt": ([SYSTEM, user("A?"), assistant("B.")], ("A?", "B.")),
    "two turns": ([user("A?"), assistant("B."), user("C?"), assistant("D.")], ("A?", "B.", "C?", "D.")),
    "parts": (
        [user([{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]), assistant("C.")],
        ("A\nB", "C."),
    ),
    "a greeting": ([assistant("How can I help?")], ("", "How can I help?")),
    "the user's turns alone": ([user("A?"), user("B?")], ("A?", "", "B?", "")),
    "empty fields that clients send back": (
        [user("A?"), assistant("B.", refusal=None, tool_calls=None, annotations=[])],
        ("A?", "B."),
    ),
    "as many messages as may be": ([user("A?"), assistant("B.")] * (MOST_MESSAGES // 2), ("A?", "B.") * 6),
}


@pytest.mark.parametrize(("history", "chain"), CHAINS.values(), ids=CHAINS)
def test_plain_talk_is_a_chain(history: list[dict[str, Any]], chain: tuple[str, ...]) -> None:
    assert talk(*history, user("Why?")).chain == chain


EXACT: dict[str, list[dict[str, Any]]] = {
    "a tool call": [user("A?"), assistant(None, tool_calls=[{"id": "1"}]), {"role": "tool", "content": "x"}],
    "a tool result": [user("A?"), assistant("B."), {"role": "tool", "tool_call_id": "1", "content": "x"}],
    "a picture": [user([{"type": "text", "text": "A"}, {"type": "image_url", "image_url": {"url": "x"}}])],
    "a message that is empty": [user("A?"), assistant("")],
    "a message of blanks": [user(" \n"), assistant("B.")],
    "null": [user("A?"), assistant(None)],
    "an assistant that spoke twice": [user("A?"), assistant("B."), assistant("C.")],
    "a system prompt within": [user("A?"), SYSTEM, assistant("B.")],
    "an unknown role": [user("A?"), {"role": "critic", "content": "B."}],
    "one message too many": [user("A?"), assistant("B.")] * (MOST_MESSAGES // 2) + [user("C?")],
    "too much text": [user("A?"), assistant("b" * MOST_CHARS)],
    "a refusal": [user("A?"), assistant([{"type": "refusal", "refusal": "No."}])],
    "a part with more than text": [user([{"type": "text", "text": "A", "cache_control": {"type": "x"}}])],
}


@pytest.mark.parametrize("history", EXACT.values(), ids=EXACT)
def test_any_other_history_must_be_equal_to_the_byte(history: list[dict[str, Any]]) -> None:
    query, other = talk(*history, user("Why?")), talk(*history[:-1], {**history[-1], "x": 1}, user("Why?"))
    assert query.chain == ()
    assert query.compatibility != other.compatibility
    altered = [{**history[0], "content": "Another?"}, *history[1:]]
    assert talk(*altered, user("Why?")).compatibility != query.compatibility


def test_conversations_of_one_shape_meet_and_only_the_same_request_is_the_same() -> None:
    one = talk(SYSTEM, user("What is Go?"), assistant("A language."), user("Who made it?"))
    other = talk(SYSTEM, user("What's Go?"), assistant("A game."), user("Who made it?"))
    assert one.compatibility == other.compatibility
    assert one.fingerprint != other.fingerprint


TURN = [user("A?"), assistant("B.")]
APART: dict[str, Query] = {
    "one turn": talk(*TURN, user("Why?")),
    "no turn": talk(user("Why?")),
    "two turns": talk(*TURN, *TURN, user("Why?")),
    "the answer left out": talk(user("A?"), user("Why?")),
    "a greeting": talk(assistant("B."), user("Why?")),
    "a system prompt": talk(SYSTEM, *TURN, user("Why?")),
    "another system prompt": talk({**SYSTEM, "content": "Be long."}, *TURN, user("Why?")),
    "a name": talk(user("A?", name="ann"), assistant("B."), user("Why?")),
    "a name at the end": talk(*TURN, user("Why?", name="ann")),
    "another model": talk(*TURN, user("Why?"), model="n"),
    "another temperature": talk(*TURN, user("Why?"), temperature=0),
    "an unknown field": talk(*TURN, user("Why?"), vendor=1),
}


def test_another_shape_or_setting_is_another_partition() -> None:
    assert len({query.compatibility for query in APART.values()}) == len(APART)
    assert len({query.fingerprint for query in APART.values()}) == len(APART)


def test_what_names_an_answer_sets_only_the_exact_key_apart() -> None:
    def items(ident: str) -> Query:
        said = {"type": "message", "id": ident, "status": "completed", "role": "assistant"}
        parts = [{"type": "output_text", "text": "B.", "annotations": []}]
        body = {"model": "m", "input": [user("A?"), {**said, "content": parts}, user("Why?")]}
        return read_responses(body, TENANT, Controls())

    one, other = items("msg_1"), items("msg_2")
    assert one.chain == ("A?", "B.")
    assert one.compatibility == other.compatibility
    assert one.fingerprint != other.fingerprint


AGAIN: dict[str, tuple[list[dict[str, Any]], bool]] = {
    "after its answer": ([user("Why?"), assistant("B.")], True),
    "twice in a row": ([user("Why?")], True),
    "in other letters": ([user("  why "), assistant("B.")], True),
    "longer ago": ([user("Why?"), assistant("B."), user("How?"), assistant("C.")], False),
    "never": ([user("How?"), assistant("B.")], False),
    "after tools": ([user("Why?"), assistant(None, tool_calls=[{}]), {"role": "tool", "content": "x"}], True),
}


@pytest.mark.parametrize(("history", "again"), AGAIN.values(), ids=AGAIN)
def test_the_same_question_again_wants_another_answer(history: list[dict[str, Any]], again: bool) -> None:
    assert (Trait.ASKED_AGAIN in talk(*history, user("Why?")).traits) == again


def test_a_recent_question_with_another_history_was_asked_otherwise() -> None:
    recent = RecentQuestions()
    one, other = talk(*TURN, user("Why?")), talk(user("X?"), assistant("B."), user("Why?"))
    assert not recent.asked_otherwise(one, remember=True)
    assert not recent.asked_otherwise(one, remember=True)
    assert recent.asked_otherwise(other, remember=True)


SAME: dict[str, tuple[str, str, bool]] = {
    "a last mark": ("Who made it?", "Who made it", True),
    "the first letter": ("who made it", "Who made it", True),
    "white space": ("Who  made\nit", "Who made it", True),
    "a mark that counts": ("What is 5!", "What is 5?", False),
    "case that counts": ("What is US", "What is us", False),
    "a word": ("Who made it", "Who made them", False),
}


@pytest.mark.parametrize(("one", "other", "same"), SAME.values(), ids=SAME)
def test_plain_text_differs_only_in_what_means_nothing(one: str, other: str, same: bool) -> None:
    assert (plain(one) == plain(other)) == same


def test_a_question_in_its_context_is_a_unit_vector_between_both() -> None:
    question, before = np.eye(4, dtype=np.float32)[:2]
    placed = in_context(question, [before])
    assert placed.dtype == np.float32
    assert np.linalg.norm(placed) == pytest.approx(1.0)
    assert placed @ question == pytest.approx(placed @ before)
    assert in_context(question, [before], ABOUT) @ before > placed @ before
    assert in_context(question, []) @ question == pytest.approx(1.0)
    assert (in_context(question, [-question]) == question).all()


def test_the_last_three_questions_count() -> None:
    assert leading_questions(("A?", "1", "", "2", "C?", "3", "D?", "4", "E?", "5")) == ("C?", "D?", "E?")
