from __future__ import annotations

import pytest

from cacheproxy.upstream.local.generate import Event, Finish, Piece, generate
from cacheproxy.upstream.local.request import Ask, ContextExceeded
from tests.support.local_model import ScriptedModel


def run(model: ScriptedModel, *, prompt: str = "Hi", max_tokens: int = 50, stops: tuple[str, ...] = ()) -> list[Event]:
    ask = Ask(messages=(("user", prompt),), max_tokens=max_tokens, stops=stops)
    return list(generate(model, ask, lambda: False))


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Piece))


def test_an_answer_that_ends_by_itself_finishes_with_stop() -> None:
    events = run(ScriptedModel(["Hello", "Ġworld", "."]))
    assert text_of(events) == "Hello world."
    assert events[-1] == Finish(reason="stop", prompt_tokens=2, completion_tokens=3)


def test_an_answer_cut_at_the_limit_finishes_with_length() -> None:
    events = run(ScriptedModel(["one", "Ġtwo", "Ġthree"]), max_tokens=2)
    assert text_of(events) == "one two"
    assert events[-1] == Finish(reason="length", prompt_tokens=2, completion_tokens=2)


def test_the_context_window_is_a_limit_too() -> None:
    events = run(ScriptedModel(["x"] * 50, context_tokens=20), prompt="p" * 15)
    assert events[-1] == Finish(reason="length", prompt_tokens=15, completion_tokens=5)


def test_a_prompt_that_fills_the_context_window_is_refused() -> None:
    with pytest.raises(ContextExceeded):
        run(ScriptedModel(["x"], context_tokens=20), prompt="p" * 20)


def test_a_stop_string_over_two_tokens_ends_the_answer_before_it() -> None:
    events = run(ScriptedModel(["Hello", "ĠEN", "D", "Ġmore"]), stops=("END",))
    assert text_of(events) == "Hello "
    assert events[-1] == Finish(reason="stop", prompt_tokens=2, completion_tokens=3)


def test_a_stop_string_that_only_began_is_shown() -> None:
    assert text_of(run(ScriptedModel(["Hello", "ĠEN"]), stops=("END",))) == "Hello EN"


def test_a_character_cut_by_the_limit_is_replaced_and_not_lost() -> None:
    events = run(ScriptedModel(["ok", "ðŁ", "ĻĤ"]), max_tokens=2)
    assert text_of(events) == "ok\N{REPLACEMENT CHARACTER}"


def test_a_cancelled_answer_has_no_finish() -> None:
    ask = Ask(messages=(("user", "Hi"),))
    assert list(generate(ScriptedModel(["Hello"], gated=True), ask, lambda: True)) == []
