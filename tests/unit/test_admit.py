from __future__ import annotations

from typing import Any

import pytest

from cacheproxy.model import Plan, Reply
from cacheproxy.policy.admit import Keep, Refuse, admit

PLAN = Plan(
    category="default",
    exact=True,
    semantic=True,
    store=True,
    embed=True,
    threshold=0.8,
    ttl_s=100.0,
    candidates=4,
)
MESSAGE: dict[str, Any] = {"role": "assistant", "content": "Hello."}


def choice(finish: object = "stop", **message: Any) -> dict[str, Any]:
    return {"index": 0, "message": MESSAGE | message, "finish_reason": finish}


def reply(*choices: Any, **fields: Any) -> Reply:
    return Reply(body={"choices": list(choices), **fields}, source="body")


GOOD = reply(choice())


def ttl_s(*headers: tuple[str, str]) -> float | str:
    """How long an ordinary answer with these headers is kept, or why it is not."""
    found = admit("chat", 200, headers, GOOD, PLAN)
    return found.ttl_s if isinstance(found, Keep) else found.reason


def test_a_whole_ordinary_answer_is_kept_for_the_plans_ttl() -> None:
    assert admit("chat", 200, [("Content-Type", "application/json")], GOOD, PLAN) == Keep(reply=GOOD, ttl_s=100.0)


KEPT = {
    "two choices": reply(choice(), choice()),
    "reasoning beside content": reply(choice(reasoning_content="hm")),
    "empty companions": reply(choice(tool_calls=[], function_call=None, refusal="", audio=None), error=None),
    "blanks around": reply(choice(content="\n Hello ")),
}


@pytest.mark.parametrize("told", KEPT.values(), ids=KEPT)
def test_ordinary_variations_are_kept(told: Reply) -> None:
    assert isinstance(admit("chat", 200, [], told, PLAN), Keep)


REFUSED: dict[str, tuple[Reply, str]] = {
    "error object": (reply(choice(), error={"message": "x"}), "error_object"),
    "error text": (reply(choice(), error="x"), "error_object"),
    "no choices": (reply(), "no_choices"),
    "choices null": (Reply(body={"choices": None}, source="body"), "no_choices"),
    "choices an object": (Reply(body={"choices": {"0": choice()}}, source="body"), "no_choices"),
    "choices absent": (Reply(body={}, source="body"), "no_choices"),
    "choice null": (reply(None), "no_message"),
    "message null": (reply({"message": None, "finish_reason": "stop"}), "no_message"),
    "message text": (reply({"message": "Hello.", "finish_reason": "stop"}), "no_message"),
    "cut at the limit": (reply(choice("length")), "finish_length"),
    "filtered": (reply(choice("content_filter")), "finish_content_filter"),
    "tools called": (reply(choice("tool_calls")), "finish_tool_calls"),
    "function called": (reply(choice("function_call")), "finish_function_call"),
    "unknown finish": (reply(choice("eos\r\nx: y")), "finish_unknown"),
    "finish that is no text": (reply(choice(["stop"])), "finish_unknown"),
    "no finish": (reply(choice(None)), "finish_missing"),
    "second choice cut": (reply(choice(), choice("length")), "finish_length"),
    "tool calls that claim to stop": (reply(choice(tool_calls=[{}])), "tool_calls"),
    "function call that claims to stop": (reply(choice(function_call={"name": "f"})), "tool_calls"),
    "refusal": (reply(choice(refusal="No.")), "refusal"),
    "audio": (reply(choice(audio={"id": "a"})), "audio"),
    "content null": (reply(choice(content=None)), "no_content"),
    "content empty": (reply(choice(content="")), "no_content"),
    "content blank": (reply(choice(content=" \n")), "no_content"),
    "content in parts": (reply(choice(content=[{"type": "text", "text": "x"}])), "no_content"),
    "second choice empty": (reply(choice(), choice(content="")), "no_content"),
}


@pytest.mark.parametrize(("told", "reason"), REFUSED.values(), ids=REFUSED)
def test_an_answer_that_is_not_whole_or_not_ordinary_is_refused(told: Reply, reason: str) -> None:
    assert admit("chat", 200, [], told, PLAN) == Refuse(reason=reason)


@pytest.mark.parametrize("status", [100, 199, 201, 202, 203, 204, 206, 301, 400, 429, 500])
def test_only_status_200_is_kept(status: int) -> None:
    assert admit("chat", status, [], GOOD, PLAN) == Refuse(reason=f"status_{status}")


def test_bytes_that_made_no_reply_are_refused_for_their_own_reason() -> None:
    assert admit("chat", 200, [], "stream_not_finished", PLAN) == Refuse(reason="stream_not_finished")


DIRECTIVES: dict[str, tuple[list[tuple[str, str]], float | str]] = {
    "none": ([], 100.0),
    "no-store": ([("Cache-Control", "no-store")], "upstream_cache_control"),
    "private": ([("cache-control", "max-age=60, Private")], "upstream_cache_control"),
    "no-cache, as every event stream says": ([("cache-control", "no-cache, must-revalidate")], 100.0),
    "in a second header": ([("cache-control", "x"), ("CACHE-CONTROL", "no-store")], "upstream_cache_control"),
    "max-age": ([("cache-control", "max-age=60")], 60.0),
    "max-age beyond the plan": ([("cache-control", "max-age=6000")], 100.0),
    "max-age of 0": ([("cache-control", "max-age=0")], "zero_ttl"),
    "max-age that is nonsense": ([("cache-control", "max-age=soon")], "zero_ttl"),
    "s-maxage before max-age": ([("cache-control", "max-age=5, s-maxage=60")], 60.0),
    "two of max-age": ([("cache-control", "max-age=5"), ("cache-control", "max-age=60")], 5.0),
    "must-revalidate": ([("cache-control", "must-revalidate")], 100.0),
    "harmless vary": ([("vary", "Accept-Encoding, Origin"), ("Vary", "Authorization,")], 100.0),
    "vary by a header": ([("vary", "accept-encoding, x-user")], "upstream_vary"),
    "vary by everything": ([("vary", "*")], "upstream_vary"),
    "set-cookie": ([("set-cookie", "a=b")], 100.0),
}


@pytest.mark.parametrize(("headers", "expected"), DIRECTIVES.values(), ids=DIRECTIVES)
def test_the_backends_directives_only_ever_narrow(headers: list[tuple[str, str]], expected: float | str) -> None:
    assert ttl_s(*headers) == expected


def test_a_request_that_asked_for_no_time_keeps_nothing() -> None:
    plan = Plan(category="c", exact=True, semantic=False, store=True, embed=False, threshold=0, ttl_s=0, candidates=1)
    assert admit("chat", 200, [], GOOD, plan) == Refuse(reason="zero_ttl")
